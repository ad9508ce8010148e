from __future__ import annotations

import random
import re
from typing import Any

import pytest

from sqlr1_jax.synth import databases, phrasings, words
from sqlr1_jax.synth.families import FAMILIES, Draw
from sqlr1_jax.synth.phrasings import PHRASINGS, VAGUE


@pytest.mark.parametrize("name", PHRASINGS)
def test_phrasings_are_several_and_of_several_styles(name: str) -> None:
    assert len(PHRASINGS[name]) >= 4
    assert len({style for style, _ in PHRASINGS[name]}) >= 4


@pytest.mark.parametrize("name", PHRASINGS)
def test_only_vague_phrasings_leave_the_table_out(name: str) -> None:
    for style, text in PHRASINGS[name]:
        assert ("{t}" not in text and "{u}" not in text) == (style == VAGUE)


def test_every_family_can_be_asked() -> None:
    rng = random.Random(0)
    for family_name, family in FAMILIES.items():
        asked = 0
        for _ in range(30):
            draw = Draw(rng, databases.make(rng, words.COMMON))
            try:
                draft = family.draw(draw)
            except IndexError:
                continue
            name = draft.wording or family_name
            question, style = phrasings.ask(rng, name, draft)
            assert "{" not in question
            assert style in {one for one, _ in PHRASINGS[name]}
            asked += 1
        assert asked >= 10, family_name


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
    everything = [record for split in records.values() for record in split]
    vague = [record for record in everything if record["question_style"] == VAGUE]
    assert 0.2 < len(vague) / len(everything) < 0.33
    assert [r["question"] for r in vague if tables & set(re.findall("[a-z]+", r["question"]))] == []


def test_no_article_stands_before_an_aggregate() -> None:
    assert not any(re.search(r"\b[aA] \{a\}", text) for family in PHRASINGS.values() for _, text in family)
