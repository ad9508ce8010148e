"""Questions in words: several phrasings a family, each with SynSQL's name for its style.

Slots: t the table (u: the parent it is joined to), c the column shown, g the one grouped by, n the number,
a an aggregate's word, s a superlative, k a count, m a bound, o above or below; f and w the first filter
after "with" and after "whose", h and x the second; r the filter, if any, with the word that introduces it. A
"Vague" phrasing names no table. Every name follows a space, so that it is the same token as in the schema.
"""

from __future__ import annotations

import itertools
import random
import re

from sqlr1_jax.synth.families import COUNT, Draft
from sqlr1_jax.synth.queries import Condition

VAGUE = "Vague"
VAGUE_SHARE = 0.28  # of the questions of a family that has vague phrasings: a quarter of all

_EXTREMES = {"max": ("highest", "largest", "greatest"), "min": ("lowest", "smallest", "least")}
_AGGREGATES = {
    "max": ("highest", "maximum"),
    "min": ("lowest", "minimum"),
    "avg": ("average", "mean"),
    "sum": ("total",),
}
_COUNTED = {">": ("more than", "over"), "<": ("fewer than", "less than")}  # before a number of rows
_SETS = {"intersect": "and also", "except": "but not"}
_SMALL_WORDS = ("no", "some", "and", "or", "is")  # which the slots bring along
_OPS = {
    ">": ("over", "above", "more than"),
    "<": ("under", "below", "less than"),
    ">=": ("at least",),
    "<=": ("at most",),
    "=": ("equal to",),
}
_INTRODUCED = ("with {f}", "whose {w}", "having {f}", "where {w}")
_INTRODUCED_VAGUELY = ("where {w}", "with {f}", "for which {w}")

PHRASINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "filter": (
        ("Imperative", "Show the {c} of {t}{r}."),
        ("Interrogative", "What is the {c} of each of the {t}{r}?"),
        ("Descriptive", "I want to see the {c} of all {t}{r}."),
        ("Concise", "The {c} of {t}{r}."),
        (VAGUE, "Show the {c}{r}."),
        (VAGUE, "What is the {c}{r}?"),
    ),
    "count": (
        ("Interrogative", "How many {t} have {f}?"),
        ("Imperative", "Count the {t}{r}."),
        ("Formal", "What is the number of {t}{r}?"),
        ("Colloquial", "How many {t} are there{r}?"),
        (VAGUE, "How many have {f}?"),
        (VAGUE, "Count those{r}."),
    ),
    "aggregate": (
        ("Interrogative", "What is the {a} {n} of {t}{r}?"),
        ("Imperative", "Find the {a} {n} among the {t}{r}."),
        ("Descriptive", "I want to know the {a} {n} of all {t}{r}."),
        ("Concise", "The {a} {n} of {t}{r}."),
        (VAGUE, "What is the {a} {n}{r}?"),
        (VAGUE, "Find the {a} {n}{r}."),
    ),
    "distinct": (
        ("Imperative", "Show the different {c} of {t}{r}."),
        ("Interrogative", "What are the distinct {c} of {t}{r}?"),
        ("Descriptive", "List, without repeats, the {c} of {t}{r}."),
        ("Formal", "Give the unique {c} of all {t}{r}."),
        (VAGUE, "What different {c} are there{r}?"),
        (VAGUE, "List the unique {c}{r}."),
    ),
    "superlative": (
        ("Interrogative", "Among the {t}{r}, what is the {c} of the one with the {s} {n}?"),
        ("Imperative", "Show the {c} of the {t} row with the {s} {n}{and_r}."),
        ("Colloquial", "Of all {t}{r}, which {c} has the {s} {n}?"),
        ("Concise", "The {c} of the {s} {n} in {t}{r}."),
        (VAGUE, "Which {c} has the {s} {n}{r}?"),
        (VAGUE, "Show the {c} with the {s} {n}{r}."),
    ),
    "top_k": (
        ("Imperative", "Show the {c} of the {k} {t} with the {s} {n}{and_r}, {s} first."),
        ("Interrogative", "Among the {t}{r}, which {k} have the {s} {n}? Show the {c}, {s} first."),
        ("Descriptive", "List the {c} of {k} {t}{r}, those with the {s} {n} first."),
        ("Concise", "The {c} of the {k} {t} of {s} {n}{and_r}, {s} first."),
        (VAGUE, "Show the {c} of the {k} with the {s} {n}{and_r}, {s} first."),
    ),
    "two_filters": (
        ("Imperative", "Show the {c} of {t} with {f} {and} {h}."),
        ("Interrogative", "What is the {c} of each of the {t} whose {w} {and} {x}?"),
        ("Descriptive", "I want to see the {c} of all {t} where {w} {and} {x}."),
        ("Concise", "The {c} of {t} having {f} {and} {h}."),
        (VAGUE, "Show the {c} where {w} {and} {x}."),
        (VAGUE, "What is the {c} with {f} {and} {h}?"),
    ),
    "count_distinct": (
        ("Interrogative", "How many different {c} do the {t}{r} have?"),
        ("Imperative", "Count the distinct {c} of {t}{r}."),
        ("Formal", "What is the number of unique {c} among {t}{r}?"),
        ("Descriptive", "I want to know how many different {c} occur in {t}{r}."),
        (VAGUE, "How many different {c} are there{r}?"),
    ),
    "group_count": (
        ("Interrogative", "How many {t}{r} are there for each {g}?"),
        ("Imperative", "For each {g}, count the {t}{r}."),
        ("Descriptive", "Show every {g} and its number of {t}{r}."),
        ("Formal", "Give each {g} with the count of {t}{r}."),
        (VAGUE, "How many are there for each {g}{r}?"),
        (VAGUE, "For every {g}, count those{r}."),
    ),
    "group_aggregate": (
        ("Imperative", "Show each {g} and the {a} {n} of its {t}{r}."),
        ("Interrogative", "What is the {a} {n} of {t}{r} for each {g}?"),
        ("Formal", "For every {g}, give the {a} {n} of {t}{r}."),
        ("Concise", "The {a} {n} of {t}{r} by {g}."),
        (VAGUE, "Show each {g} and its {a} {n}{r}."),
        (VAGUE, "What is the {a} {n} for each {g}{r}?"),
    ),
    "having": (
        ("Interrogative", "Which {g} have {m} {t}?"),
        ("Imperative", "List the {g} with {m} {t}."),
        ("Descriptive", "I want each {g} that has {m} {t}."),
        ("Formal", "Give every {g} shared by {m} {t}."),
        (VAGUE, "Which {g} occur {m} times?"),
    ),
    "having_aggregate": (
        ("Interrogative", "Which {g} of {t} have {a} {n} {m}?"),
        ("Imperative", "Among the {t}, list each {g} whose {a} {n} is {m}."),
        ("Descriptive", "I want each {g} of {t} with {a} {n} {m}."),
        ("Formal", "Give every {g} for which the {a} {n} of {t} is {m}."),
        (VAGUE, "Which {g} have {a} {n} {m}?"),
    ),
    "join_filter": (
        ("Imperative", "Show the {c} of {t} whose {u} have {f}."),
        ("Interrogative", "What is the {c} of each of the {t} of {u}{r}?"),
        ("Descriptive", "I want to see the {c} of all {t} that belong to {u}{r}."),
        ("Concise", "The {c} of {t} of {u}{r}."),
        (VAGUE, "Show the {c}{r}."),
        (VAGUE, "What is the {c}{r}?"),
    ),
    "join_count": (
        ("Interrogative", "How many {t} belong to {u}{r}?"),
        ("Imperative", "Count the {t} of {u}{r}."),
        ("Formal", "What is the number of {t} whose {u} have {f}?"),
        ("Colloquial", "How many {t} are there{r}?"),
    ),
    "join_distinct": (
        ("Imperative", "Show the different {c} of {u} whose {t} have {f}."),
        ("Interrogative", "What are the distinct {c} of {u} with {t}{r}?"),
        ("Descriptive", "List, without repeats, the {c} of {u} that have {t}{r}."),
        ("Formal", "Give the unique {c} of {u} of {t}{r}."),
        (VAGUE, "What different {c} are there{r}?"),
        (VAGUE, "List the unique {c}{r}."),
    ),
    "join_superlative": (
        ("Interrogative", "What is the {c} of the {u} of the {t} with the {s} {n}?"),
        ("Imperative", "Show the {c} of {u} for the one of the {t} with the {s} {n}."),
        ("Colloquial", "Of the {u} that have {t}, which {c} goes with the {s} {n}?"),
        ("Concise", "The {c} of {u} for the {s} {n} in {t}."),
        (VAGUE, "Which {c} has the {s} {n}?"),
        (VAGUE, "Show the {c} with the {s} {n}."),
    ),
    "join_group": (
        ("Imperative", "Show each {g} of {u} and the {a} {n} of its {t}."),
        ("Interrogative", "What is the {a} {n} of {t} for each {g} of their {u}?"),
        ("Formal", "For every {g} of {u}, give the {a} {n} of {t}."),
        ("Concise", "The {a} {n} of {t} by {g} of {u}."),
        (VAGUE, "Show each {g} and its {a} {n}."),
        (VAGUE, "What is the {a} {n} for each {g}?"),
    ),
    "nested_average": (
        ("Imperative", "Show the {c} of {t} with {n} {o} the average."),
        ("Interrogative", "What is the {c} of each of the {t} whose {n} is {o} average?"),
        ("Descriptive", "I want to see the {c} of all {t} that are {o} the average {n}."),
        ("Concise", "The {c} of {t} {o} the mean {n}."),
        (VAGUE, "Show the {c} where {n} is {o} the average."),
        (VAGUE, "What is the {c} with {n} {o} average?"),
    ),
    "in_subquery": (
        ("Imperative", "Show the {c} of {u} that have {some} {t}{r}."),
        ("Interrogative", "What is the {c} of each of the {u} with {some} {t}{r}?"),
        ("Descriptive", "I want to see the {c} of all {u} that own {some} {t}{r}."),
        ("Concise", "The {c} of {u} having {some} {t}{r}."),
    ),
    "set_operation": (
        ("Interrogative", "Which {c} occur among {t} with {f} {set} among those with {h}?"),
        ("Imperative", "Find the {c} shared by {t} with {f} {set} by {t} with {h}."),
        ("Descriptive", "I want each {c} found for {t} where {w} {set} where {x}."),
        ("Formal", "Give every {c} seen in {t} whose {w} {set} in those whose {x}."),
        (VAGUE, "Which {c} occur where {w} {set} where {x}?"),
    ),
    "cte": (
        ("Interrogative", "What is the {a} total {n} of {t} of any {g}?"),
        ("Imperative", "Sum the {n} of {t} for each {g} and give the {a} sum."),
        ("Descriptive", "I want the {a} of the sums of {n} over the {g} of {t}."),
        ("Formal", "Among the total {n} of {t} of each {g}, find the {a}."),
        (VAGUE, "Sum the {n} for each {g} and give the {a} sum."),
    ),
    "cte_count": (
        ("Interrogative", "How many {g} of {t} have a total {n} {m}?"),
        ("Imperative", "Sum the {n} of {t} for each {g} and count the sums {m}."),
        ("Descriptive", "I want to know how many {g} have {t} with a total {n} {m}."),
        ("Formal", "Count each {g} of {t} whose total {n} is {m}."),
        (VAGUE, "How many {g} have a total {n} {m}?"),
    ),
    "window": (
        ("Imperative", "Show the {c} of {t} and the rank by {n}, {s} first."),
        ("Interrogative", "How do {t} rank by {n}, {s} first? Show the {c} and the rank."),
        ("Descriptive", "I want the {c} and the rank of all {t}, the {s} {n} being 1."),
        ("Concise", "The {c} and rank of {t} by {n}, {s} first."),
        (VAGUE, "Show the {c} and the rank by {n}, {s} first."),
    ),
    "window_group": (
        ("Imperative", "Show each {g} and the {c} of its {t} with the {s} {n}."),
        ("Interrogative", "In each {g} of {t}, which {c} has the {s} {n}? Show both."),
        ("Formal", "For every {g}, give it and the {c} of the {s} {n} in {t}."),
        ("Concise", "Each {g} of {t} and its {c} of {s} {n}."),
        (VAGUE, "Show each {g} and its {c} with the {s} {n}."),
    ),
}


def all_words() -> str:
    """A text with every word that a question can have, but for names and values."""
    choices = (
        *_EXTREMES.values(),
        *_AGGREGATES.values(),
        *_OPS.values(),
        *_COUNTED.values(),
        _INTRODUCED,
        _INTRODUCED_VAGUELY,
    )
    texts = [text for phrasing in PHRASINGS.values() for _, text in phrasing]
    texts += [f" {words}" for words in (*itertools.chain(*choices), *_SETS.values(), *_SMALL_WORDS)]
    return "\n".join(re.sub(r"\{\w+\}", "", text) for text in texts)


def ask(rng: random.Random, name: str, draft: Draft) -> tuple[str, str]:
    """A question for a draft, and its style."""
    phrasings = PHRASINGS[name]
    vague = [p for p in phrasings if p[0] == VAGUE]
    chosen = vague if vague and rng.random() < VAGUE_SHARE else [p for p in phrasings if p[0] != VAGUE]
    style, text = rng.choice(chosen)
    return text.format(**_slots(rng, draft, style == VAGUE)), style


def _slots(rng: random.Random, draft: Draft, vague: bool) -> dict[str, str]:
    slots = dict(draft.slots)
    if "a" in slots:
        slots["a"] = rng.choice(_AGGREGATES[slots["a"]])
    if "s" in slots:
        slots["s"] = rng.choice(_EXTREMES[slots["s"]])
    if "set" in slots:
        slots["set"] = _SETS[slots["set"]]
    if "in" in slots:
        slots["some"] = "no" if slots["in"] == "no" else "some"
    for condition, (with_, whose) in zip(draft.filters, (("f", "w"), ("h", "x")), strict=False):
        slots[with_], slots[whose] = _filter_words(rng, condition)
    slots |= {"r": "", "and_r": ""}
    if draft.filters:
        slots["m"] = _op_words(rng, draft.filters[0])
        slots["r"] = " " + rng.choice(_INTRODUCED_VAGUELY if vague else _INTRODUCED).format(**slots)
        slots["and_r"] = f" and with {slots['f']}"
    return slots


def _op_words(rng: random.Random, condition: Condition) -> str:
    words = _COUNTED if condition.left == COUNT else _OPS
    return f"{rng.choice(words[condition.op])} {condition.right}"


def _filter_words(rng: random.Random, condition: Condition) -> tuple[str, str]:
    """A condition after "with" (`age over 3`) and after "whose" (`age is over 3`)."""
    if condition.op == "=":
        return f"{condition.left.column} {condition.right}", f"{condition.left.column} is {condition.right}"
    words = _op_words(rng, condition)
    return f"{condition.left.column} {words}", f"{condition.left.column} is {words}"
