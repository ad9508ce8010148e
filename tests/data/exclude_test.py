from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.data import example
from sqlr1_jax.data.exclude import ExcludeRecord, Exclusion, read_list
from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.evaluate.heldout import choose_databases
from testing import tiny_runs

JUDGED = tiny_runs.REPOSITORY / "configs" / "judged_databases.jsonl"


def write(folder: Path, *records: Any, name: str = "exclude.jsonl") -> str:
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The file of a source."""
    return write(tmp_path, {"db_id": "pets", "question": "How many dogs?", "sql": "SELECT 1"}, name="questions.jsonl")


def exclusion(file: str, *paths: str, training: bool = True) -> Exclusion:
    return Exclusion(paths, f"jsonl:{file}", file, training)


def test_records_are_read_with_their_place(tmp_path: Path) -> None:
    lines = [{"id": 17, "db_id": "pets\n", "rule": "ties", "reason": "…", "source": "/data/x.json"}, "", {"db_id": 7}]
    path = write(tmp_path, *lines, {"id": 0})
    assert read_list(path) == [
        ExcludeRecord(path, 1, "17", "pets", "/data/x.json", "ties"),
        ExcludeRecord(path, 3, "", "7", "", "database"),
        ExcludeRecord(path, 4, "0", "", "", "listed"),
    ]


@pytest.mark.parametrize("record", ['"3"', "{", "[1]", {"rule": "ties"}, {"id": "", "db_id": None}])
def test_a_record_without_an_id_and_a_database_is_an_error(tmp_path: Path, record: Any) -> None:
    path = write(tmp_path, {"id": 1}, record)
    with pytest.raises(ExampleError) as error:
        read_list(path)
    assert str(error.value) == f"{path}, line 2: each line must be a JSON object with an id or a db_id."


def test_a_list_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(
        ExampleError, match=r"^one\.jsonl,other\.jsonl: no such list .*=\"\('one\.jsonl','other\.jsonl'\)\""
    ):
        read_list("one.jsonl,other.jsonl")


def test_an_id_leaves_out_one_example_and_a_database_all_of_its_examples(tmp_path: Path, file: str) -> None:
    ids = write(tmp_path, {"id": 1, "db_id": "pets"}, {"id": "q2"})
    databases = write(tmp_path, {"db_id": "shop"}, name="databases.jsonl")
    lists = exclusion(file, ids, databases)
    examples = [("0", "pets"), ("1", "pets"), ("q2", "zoo"), ("3", "shop"), ("4", "shop"), ("5", "Shop")]
    assert [lists.leaves_out(*one) for one in examples] == [False, True, True, True, True, False]


def test_records_without_a_source_apply_to_training_only(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, {"id": 1, "db_id": "pets"}, {"db_id": "shop"})
    heldout = exclusion(file, path, training=False)
    assert not heldout.leaves_out("1", "pets")
    assert not heldout.leaves_out("1", "other")  # nor are they checked
    assert not heldout.leaves_out("2", "shop")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "source", ["{file}", "jsonl:{file}", "synsql:{file}", "questions.jsonl", "jsonl:../{name}/questions.jsonl"]
)
def test_a_record_applies_to_the_file_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str, training: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    source = source.format(file=file, name=tmp_path.name)
    lists = exclusion(
        file, write(tmp_path, {"id": 1, "source": source}, {"db_id": "shop", "source": source}), training=training
    )
    assert lists.leaves_out("1", "pets")
    assert lists.leaves_out("2", "shop")
    assert not lists.leaves_out("2", "pets")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("source", ["/elsewhere/questions.jsonl", "jsonl:/elsewhere/questions.jsonl", "hub:owner/name"])
def test_a_record_about_another_file_does_not_apply(tmp_path: Path, file: str, source: str, training: bool) -> None:
    path = write(tmp_path, {"id": 1, "db_id": "shop", "source": source}, {"db_id": "pets", "source": source})
    lists = exclusion(file, path, training=training)
    assert not lists.leaves_out("1", "pets")
    text = f"{file}: 0 of 1 examples left out by {path}; 2 records are about other files (first: {source})"
    assert lists.messages(1) == [(logging.WARNING if training else logging.INFO, text)]


def test_a_list_of_a_hub_data_set_names_it(tmp_path: Path) -> None:
    lists = Exclusion([write(tmp_path, {"id": 1, "source": "hub:owner/name"})], "hub:owner/name", "owner/name", True)
    assert lists.leaves_out("1", "pets")


def test_an_id_on_another_database_is_an_error(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, {"id": 0, "db_id": "pets"}, {"id": 1, "db_id": "pets"}, {"id": 1, "db_id": "shop"})
    lists = exclusion(file, path)
    assert lists.leaves_out("0", "pets")
    with pytest.raises(ExampleError) as error:
        lists.leaves_out("1", "pets")
    assert str(error.value) == (
        f"{path}, line 3: record 1 is on database 'shop', but in {file} it is on 'pets', so the list belongs to other "
        f"data. Make a list for this file with `python -m sqlr1_jax.check --data=jsonl:{file} --output=FILE`, or take "
        "this one out of config.data.exclude."
    )


def test_the_log_counts_each_example_under_its_first_rule(tmp_path: Path, file: str) -> None:
    records = [{"id": 1, "rule": "ties"}, {"id": 1, "rule": "empty"}, {"id": 2, "rule": "ties"}, {"id": 3}]
    ids, databases = write(tmp_path, *records), write(tmp_path, {"db_id": "shop"}, name="databases.jsonl")
    lists = exclusion(file, ids, databases)
    for one in [("1", "shop"), ("2", "pets"), ("4", "shop"), ("5", "shop"), ("6", "shop"), ("7", "pets")]:
        lists.leaves_out(*one)
    text = f"{file}: 5 of 6 examples left out by {ids}, {databases} (database 3, ties 2)"
    assert (lists.messages(6), exclusion(file).messages(6)) == ([(logging.INFO, text)], [])


def test_the_judged_databases_are_those_of_the_document() -> None:
    document = (tiny_runs.REPOSITORY / "docs" / "spider.md").read_text(encoding="utf-8")
    paragraph = next(text for text in document.split("\n\n") if text.startswith("architecture, "))
    names = re.split(r",\s+", paragraph.strip())
    assert [json.loads(line) for line in JUDGED.read_text().splitlines()] == [{"db_id": name} for name in names]
    assert len(names) == 20


def test_training_on_spider_leaves_out_what_evaluation_draws(shared_data: Path) -> None:
    spec, lists = f"spider:{shared_data}/spider_train", (str(JUDGED),)
    trained = example.read_examples(spec, exclude=lists)
    judged = choose_databases(example.read_examples(spec, exclude=lists, training=False), 20, 0, seed=2)
    assert len(judged) == 938
    assert len(trained) == 6918 - 938
    assert not {one.db_id for one in trained} & {one.db_id for one in judged}
