"""Makes a share of the databases and their questions.

`python -m sqlr1_jax.synth.worker` takes a job as JSON on standard input and writes one line of JSON a
database on standard output. Never imports JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.synth import databases, phrasings, teacher, words
from sqlr1_jax.synth.checks import sound
from sqlr1_jax.synth.families import FAMILIES, Draft, Draw
from sqlr1_jax.synth.queries import sql
from sqlr1_jax.synth.reasoning import reason

SFT, NEW_NAMES = "sft", "newnames"
_STREAMS = {SFT: "cold_start"}  # names of random streams that differ from their split's; a new name makes new data
_DRAFTS = 25  # tries at one question before its database is given up
_DATABASES = 50  # databases tried in one place


class SynthError(Sqlr1Error):
    """The data could not be made; the message says where."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make, and which share of it: places `share`, `share + shares`, … of every split."""

    folder: str
    seed: int
    teacher_errors: float
    splits: dict[str, tuple[int, int]]  # databases, and questions a database
    share: int = 0
    shares: int = 1


def make(job: Job) -> Iterator[dict[str, Any]]:
    """One item a database: split, index, schema (qualified) and records, in the order of its share."""
    place = 0
    for split, (count, questions) in job.splits.items():
        families = assign(job.seed, split, count * questions)
        for index in range(count):
            if place % job.shares == job.share:
                yield _database(job, split, index, families[index * questions : (index + 1) * questions])
            place += 1


def _stream(split: str) -> str:
    """The name that seeds a split's random numbers."""
    return _STREAMS.get(split, split)


def assign(seed: int, split: str, count: int) -> list[str]:
    """A family for each question: their shares to the nearest question, shuffled."""
    total = sum(family.share for family in FAMILIES.values())
    exact = {name: count * family.share / total for name, family in FAMILIES.items()}
    quota = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: quota[name] - exact[name])
    for name in by_remainder[: count - sum(quota.values())]:
        quota[name] += 1
    deck = [name for name, times in quota.items() for _ in range(times)]
    random.Random(f"{seed}/{_stream(split)}/families").shuffle(deck)
    return deck


class _Question(NamedTuple):
    family: str
    draft: Draft
    text: str
    style: str


def _database(job: Job, split: str, index: int, families: list[str]) -> dict[str, Any]:
    """The first database in this place on which every family finds a sound question."""
    name = f"{split}_{index:05d}"
    for attempt in range(_DATABASES):
        rng = random.Random(f"{job.seed}/{_stream(split)}/{index}/{attempt}")
        database = databases.make(rng, words.COMMON, words.RESERVED if split == NEW_NAMES else None)
        with contextlib.closing(databases.build(database)) as connection:
            questions = _questions(rng, database, connection, families)
            if len(questions) < len(families):
                continue
            databases.save(connection, Path(job.folder) / "databases" / name / f"{name}.sqlite")
        records = [
            {"id": f"{split}-{index:06d}-{place:02d}", "db_id": name} | _record(job, split, index, place, one, database)
            for place, one in enumerate(questions)
        ]
        return {"split": split, "index": index, "schema": databases.schema_text(database), "records": records}
    raise SynthError(f"{split}, place {index}: no database of {_DATABASES} carries all of {', '.join(families)}.")


def _questions(
    rng: random.Random, database: databases.Database, connection: sqlite3.Connection, families: list[str]
) -> list[_Question]:
    """A question for each family, all different; fewer where one family finds none."""
    draw, seen, questions = Draw(rng, database), set[str](), list[_Question]()
    for family in families:
        draft = _sound_draft(draw, family, connection, seen)
        if draft is None:
            break
        seen.add(sql(draft.query))
        questions.append(_Question(family, draft, *phrasings.ask(rng, draft.wording or family, draft)))
    return questions


def _sound_draft(draw: Draw, family: str, connection: sqlite3.Connection, seen: set[str]) -> Draft | None:
    for _ in range(_DRAFTS):
        try:
            draft = FAMILIES[family].draw(draw)
        except IndexError:  # this table has no such column
            continue
        if sql(draft.query) not in seen and sound(connection, draft.query):
            return draft
    return None


def _record(
    job: Job, split: str, index: int, place: int, question: _Question, database: databases.Database
) -> dict[str, Any]:
    """A record in SynSQL's form; in the cold start its gold is spoiled or not by a draw of its own."""
    query = question.draft.query
    habit = teacher.habit(query)
    luck = random.Random(f"{job.seed}/{_stream(split)}/{index}/{place}/teacher").random()
    spoiled = split == SFT and bool(habit) and luck < job.teacher_errors
    if spoiled:
        query = teacher.spoil(query)
    record = {
        "sql_complexity": FAMILIES[question.family].complexity,
        "question_style": question.style,
        "question": question.text,
        "external_knowledge": "",
        "cot": reason(query, database.home),
        "sql": sql(query),
        "family": question.family,
        "habit": habit,
    }
    return record | {"spoiled": spoiled} if split == SFT else record


def main() -> None:
    """Answers one job."""
    job = Job(**json.load(sys.stdin))
    for item in make(job):
        sys.stdout.write(json.dumps(item) + "\n")


if __name__ == "__main__":
    main()
