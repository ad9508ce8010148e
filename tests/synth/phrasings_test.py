from __future__ import annotations

import random
import re
from typing import Any

import pytest

from sqlr1_jax.synth import databases, phrasings, words
from sqlr1_jax.synth.families import FAMILIES, Draw
from sqlr1_jax.synth.phrasings import TEMPLATES, VAGUE


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_family_has_four_templates_and_four_styles(name: str) -> None:
    assert len(TEMPLATES[name]) >= 4
    assert len({style for style, _ in TEMPLATES[name]}) >= 4


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_vague_templates_leave_the_table_out(name: str) -> None:
    for style, text in TEMPLATES[name]:
        assert ("{table}" not in text and "{parent}" not in text) == (style == VAGUE)


def test_every_family_has_its_questions() -> None:
    rng = random.Random(0)
    for family_name, family in FAMILIES.items():
        questions = 0
        for _ in range(30):
            draw = Draw(rng, databases.make(rng, words.COMMON))
            try:
                draft = family.draw(draw)
            except IndexError:
                continue
            name = draft.templates or family_name
            question, style = phrasings.write_question(rng, name, draft)
            assert "{" not in question
            assert style in {known for known, _ in TEMPLATES[name]}
            questions += 1
        assert questions >= 10, family_name


def test_names_follow_a_space_and_values_are_quoted(records: dict[str, list[dict[str, Any]]]) -> None:
    names = "|".join((*words.names(words.COMMON), *words.names(words.RESERVED)))
    values = "|".join(words.values())
    for split in records.values():
        for record in split:
            for text in (record["question"], " " + record["cot"], record["sql"]):
                assert re.search(rf"(?<! )\b({names})\b", text) is None
                assert re.search(rf"(?<! ')\b({values})\b|\b({values})\b(?!')", text) is None


def test_vague_questions_name_no_table_and_are_about_a_quarter(
    records: dict[str, list[dict[str, Any]]],
) -> None:
    tables = {*words.COMMON.tables, *words.RESERVED.tables}
    all_records = [record for split in records.values() for record in split]
    vague = [record for record in all_records if record["question_style"] == VAGUE]
    assert 0.2 < len(vague) / len(all_records) < 0.33
    assert [r["question"] for r in vague if tables & set(re.findall("[a-z]+", r["question"]))] == []


def test_no_article_precedes_an_aggregate() -> None:
    assert not any(re.search(r"\b[aA] \{aggregate\}", text) for family in TEMPLATES.values() for _, text in family)
