"""Writes questions: phrasings.toml has several templates for each query family, each with SynSQL's name for its style.

phrasings.toml explains the slots of a template.
"""

from __future__ import annotations

import itertools
import random
import re
import tomllib
from pathlib import Path

from sqlr1_jax.synth.families import COUNT, Draft
from sqlr1_jax.synth.queries import Condition

VAGUE = "Vague"
# Fraction of vague questions in a family that has vague templates. It makes a quarter of all questions vague.
VAGUE_SHARE = 0.28

_FILE = tomllib.loads(Path(__file__).with_name("phrasings.toml").read_text(encoding="utf-8"))

# (style, template) pairs by family.
TEMPLATES: dict[str, tuple[tuple[str, str], ...]] = {
    family: tuple((style, text) for style, texts in styles.items() for text in texts)
    for family, styles in _FILE["templates"].items()
}


def all_words() -> str:
    """A text with every word that a question can have, except names and values."""
    word_lists = itertools.chain(
        _FILE["extremes"].values(),
        _FILE["aggregates"].values(),
        _FILE["comparisons"].values(),
        _FILE["count_comparisons"].values(),
        [_FILE["introductions"], _FILE["vague_introductions"], _FILE["set_operations"].values(), _FILE["small_words"]],
    )
    texts = [text for templates in TEMPLATES.values() for _, text in templates]
    texts += [f" {words}" for words in itertools.chain(*word_lists)]
    return "\n".join(re.sub(r"\{\w+\}", "", text) for text in texts)


def write_question(rng: random.Random, name: str, draft: Draft) -> tuple[str, str]:
    """A question that asks for a draft's query, and its style. `name` is a key of `TEMPLATES`."""
    vague = [template for template in TEMPLATES[name] if template[0] == VAGUE]
    precise = [template for template in TEMPLATES[name] if template[0] != VAGUE]
    style, text = rng.choice(vague if vague and rng.random() < VAGUE_SHARE else precise)
    return text.format(**_fill_slots(rng, draft, style == VAGUE)), style


def _fill_slots(rng: random.Random, draft: Draft, vague: bool) -> dict[str, str]:
    slots = dict(draft.slots)
    if "aggregate" in slots:
        slots["aggregate"] = rng.choice(_FILE["aggregates"][slots["aggregate"]])
    if "extreme" in slots:
        slots["extreme"] = rng.choice(_FILE["extremes"][slots["extreme"]])
    if "set_operation" in slots:
        slots["set_operation"] = _FILE["set_operations"][slots["set_operation"]]
    for condition, name in zip(draft.filters, ("condition", "second_condition"), strict=False):
        # After "with" it reads `age over 3`, after "whose" `age is over 3`.
        column, words = condition.left.column, condition.right if condition.op == "=" else _comparison(rng, condition)
        slots |= {name: f"{column} {words}", f"{name}_is": f"{column} is {words}"}
    slots |= {"filter": "", "and_filter": ""}
    if draft.filters:
        slots["bound"] = _comparison(rng, draft.filters[0])
        introduction = rng.choice(_FILE["vague_introductions" if vague else "introductions"])
        slots["filter"] = " " + introduction.format(**slots)
        slots["and_filter"] = f" and with {slots['condition']}"
    return slots


def _comparison(rng: random.Random, condition: Condition) -> str:
    words = _FILE["count_comparisons" if condition.left == COUNT else "comparisons"]
    return f"{rng.choice(words[condition.op])} {condition.right}"
