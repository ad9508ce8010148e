"""Makes a share of the databases and their questions.

`python -m sqlr1_jax.synth.worker` reads a job as JSON from standard input and writes one line of JSON for each database
to standard output. It never imports JAX.
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
from sqlr1_jax.synth.checks import is_sound
from sqlr1_jax.synth.databases import Database
from sqlr1_jax.synth.families import FAMILIES, Draft, Draw
from sqlr1_jax.synth.queries import sql
from sqlr1_jax.synth.reasoning import reason

SFT, NEW_NAMES = "sft", "newnames"
# Random streams whose name differs from their split's. Renaming them would change the data.
_STREAMS = {SFT: "cold_start"}
_MAX_DRAFTS = 25  # attempts at one question, after which its database is discarded
_MAX_DATABASES = 50  # databases tried for one index of a split


class SynthError(Sqlr1Error):
    """The data could not be made; the message names the folder, or the split and the index."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make, and which share of it.

    Counted over all splits, a share has the databases `share`, `share + num_shares`, `share + 2 * num_shares` …
    """

    folder: str
    seed: int
    teacher_errors: float  # fraction of wrong gold queries in the SFT split, among those that a habit can spoil
    splits: dict[str, tuple[int, int]]  # databases, and questions per database
    share: int = 0
    num_shares: int = 1


def make(job: Job) -> Iterator[dict[str, Any]]:
    """Yields one item for each database of the share, in order: split, index, schema (qualified format) and records.

    Raises:
      SynthError: no database was found on which all of its families have a question.
    """
    number = 0
    for split, (count, questions) in job.splits.items():
        families = assign_families(job.seed, split, count * questions)
        for index in range(count):
            if number % job.num_shares == job.share:
                yield _make_database(job, split, index, families[index * questions : (index + 1) * questions])
            number += 1


def assign_families(seed: int, split: str, count: int) -> list[str]:
    """A family for each of `count` questions, in random order; family counts are their rounded shares."""
    total = sum(family.share for family in FAMILIES.values())
    exact = {name: count * family.share / total for name, family in FAMILIES.items()}
    quota = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: quota[name] - exact[name])
    for name in by_remainder[: count - sum(quota.values())]:
        quota[name] += 1
    deck = [name for name, times in quota.items() for _ in range(times)]
    random.Random(f"{seed}/{_stream(split)}/families").shuffle(deck)
    return deck


def _stream(split: str) -> str:
    """The name that seeds a split's random numbers."""
    return _STREAMS.get(split, split)


class _Question(NamedTuple):
    family: str
    draft: Draft
    text: str
    style: str


def _make_database(job: Job, split: str, index: int, families: list[str]) -> dict[str, Any]:
    """The first random database on which every family has a sound question, with its records."""
    name = f"{split}_{index:05d}"
    for attempt in range(_MAX_DATABASES):
        rng = random.Random(f"{job.seed}/{_stream(split)}/{index}/{attempt}")
        database = databases.make(rng, words.COMMON, words.RESERVED if split == NEW_NAMES else None)
        with contextlib.closing(databases.build(database)) as connection:
            questions = _draw_questions(rng, database, connection, families)
            if len(questions) < len(families):
                continue
            databases.save(connection, Path(job.folder) / "databases" / name / f"{name}.sqlite")
        records = [
            {"id": f"{split}-{index:06d}-{i:02d}", "db_id": name} | _record(job, split, index, i, question, database)
            for i, question in enumerate(questions)
        ]
        return {"split": split, "index": index, "schema": databases.schema_text(database), "records": records}
    raise SynthError(
        f"{split}, database {index}: none of {_MAX_DATABASES} random databases has a question of each family "
        f"({', '.join(families)}). Ask for fewer questions per database, or use another seed."
    )


def _draw_questions(
    rng: random.Random, database: Database, connection: sqlite3.Connection, families: list[str]
) -> list[_Question]:
    """A question for each family, all different; stops at the first family that has none."""
    draw, seen, questions = Draw(rng, database), set[str](), list[_Question]()
    for family in families:
        draft = _sound_draft(draw, family, connection, seen)
        if draft is None:
            break
        seen.add(sql(draft.query))
        questions.append(_Question(family, draft, *phrasings.write_question(rng, draft.templates or family, draft)))
    return questions


def _sound_draft(draw: Draw, family: str, connection: sqlite3.Connection, seen: set[str]) -> Draft | None:
    for _ in range(_MAX_DRAFTS):
        try:
            draft = FAMILIES[family].draw(draw)
        except IndexError:  # the table has no column that the family needs
            continue
        if sql(draft.query) not in seen and is_sound(connection, draft.query):
            return draft
    return None


def _record(job: Job, split: str, index: int, number: int, question: _Question, database: Database) -> dict[str, Any]:
    """A record with SynSQL's names. In the SFT split the teacher's habit may spoil its gold query.

    Each question has a random stream of its own for this decision, so `teacher_errors` changes nothing else.
    """
    query = question.draft.query
    habit = teacher.habit(query)
    luck = random.Random(f"{job.seed}/{_stream(split)}/{index}/{number}/teacher").random()
    spoiled = split == SFT and bool(habit) and luck < job.teacher_errors
    if spoiled:
        query = teacher.spoil(query)
    record = {
        "sql_complexity": FAMILIES[question.family].complexity,
        "question_style": question.style,
        "question": question.text,
        "external_knowledge": "",
        "cot": reason(query, database.table_of),
        "sql": sql(query),
        "family": question.family,
        "habit": habit,
    }
    return record | {"spoiled": spoiled} if split == SFT else record


def main() -> None:
    """Runs one job."""
    job = Job(**json.load(sys.stdin))
    for item in make(job):
        sys.stdout.write(json.dumps(item) + "\n")


if __name__ == "__main__":
    main()
