from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.data.sources import ExampleError
from sqlr1_jax.evaluate.benchmarks import formats
from sqlr1_jax.evaluate.benchmarks.formats import Gold

SEPARATOR = "\t----- bird -----\t"
GOLDS = [Gold("7", "pets", "SELECT 1", ""), Gold("9", "pets", "SELECT 2", ""), Gold("b", "zoo", "SELECT 3", "")]


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "golds"),
    [
        ("spider.json", [{"db_id": "a", "query": "SELECT 1", "sql": {}}], [Gold("0", "a", "SELECT 1", "")]),
        (
            "bird.json",
            [{"question_id": 846, "db_id": "a", "SQL": "SELECT 1", "difficulty": "simple"}],
            [Gold("846", "a", "SELECT 1", "simple")],
        ),
        (
            "heldout.json",
            [{"id": "h-0", "db_id": "a", "sql": "SELECT 1", "sql_complexity": "Complex"}, {"db_id": "b", "sql": "x"}],
            [Gold("h-0", "a", "SELECT 1", "Complex"), Gold("1", "b", "x", "")],
        ),
        ("ours.jsonl", '{"id": 3, "db_id": "a", "sql": "SELECT 1"}\n', [Gold("3", "a", "SELECT 1", "")]),
        (
            "mixed.jsonl",
            '{"question_id": 3, "db_id": "a", "sql": "SELECT 1", "difficulty": "simple"}\n',
            [Gold("3", "a", "SELECT 1", "simple")],
        ),
        ("gold.sql", "SELECT\t1\ta\nSELECT 2\tb\n", [Gold("0", "a", "SELECT\t1", ""), Gold("1", "b", "SELECT 2", "")]),
    ],
)  # fmt: skip
def test_gold_files_of_every_form_are_read(tmp_path: Path, name: str, content: Any, golds: list[Gold]) -> None:
    assert formats.read_golds(write(tmp_path, name, content)) == golds


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [{"db_id": "a", "question": "?"}], "record 0 has no sql"),
        ("a.json", [{"query": "SELECT 1"}], "record 0 has no db_id"),
        ("a.json", [{"query": "SELECT 1", "db_id": "../a"}], "not a valid name of a database"),
        (
            "a.json",
            [{"id": 1, "db_id": "a", "sql": "x"}, {"id": "1", "db_id": "a", "sql": "y"}],
            "two records have the id 1",
        ),
        ("a.json", [], "has no gold query"),
        ("a.json", {"db_id": "a"}, "not a JSON list"),
        ("a.sql", "SELECT 1\ta\nSELECT 2\n", "line 2 has no tab"),
    ],
)
def test_an_unusable_gold_record_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ExampleError, match=message) as error:
        formats.read_golds(path)
    assert str(path) in str(error.value)


def test_a_missing_or_garbled_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"nowhere.json: no such file; check --gold="):
        formats.read_golds(tmp_path / "nowhere.json")
    (tmp_path / "gold.sql").write_bytes(b"SELECT '\xff'\ta\n")
    with pytest.raises(ExampleError, match="byte 8 is not UTF-8"):
        formats.read_golds(tmp_path / "gold.sql")


@pytest.mark.parametrize(
    ("content", "sql", "ignored"),
    [
        ('{"id": 9, "db_id": "pets", "sql": "x"}\n{"id": "b", "sql": null, "text": ""}\n', {"9": "x", "b": None}, 0),
        ('{"question_id": 7, "sql": "x"}\n{"id": "other", "db_id": "elsewhere", "sql": "y"}', {"7": "x"}, 1),
        ('{"sql": "x"}\n\n{"sql": "y"}\n{"sql": "z"}\n{"sql": "w"}', {"7": "x", "9": "y", "b": "z"}, 1),
        ("SELECT 1\n\nSELECT\t3\tzoo\n", {"7": "SELECT 1", "9": "", "b": "SELECT\t3"}, 0),
        ("SELECT 1\n2\n3\n\n \n", {"7": "SELECT 1", "9": "2", "b": "3"}, 0),
        ({"7": f"x{SEPARATOR}pets", "9": "y"}, {"7": "x", "9": "y"}, 0),  # ids
        ({"0": f"x{SEPARATOR}pets", "2": f"y{SEPARATOR}zoo"}, {"7": "x", "b": "y"}, 0),  # positions
        ({"7": "x", "9": None, "846": "y"}, {"7": "x", "9": None}, 1),
        ({}, {}, 0),
        ('["x", "y\\nz"]', {"7": "x", "9": "y\nz"}, 0),
        ('[\n "x",\n null,\n "y",\n "z"\n]', {"7": "x", "9": None, "b": "y"}, 1),
        ('[{"id": 9, "sql": "x"}, {"question_id": 7, "sql": "y"}]', {"9": "x", "7": "y"}, 0),
        ('\ufeff{"id": 9, "sql": "x"}\n', {"9": "x"}, 0),
        ('\ufeff{"7": "x"}', {"7": "x"}, 0),
        ("\ufeffSELECT 1\nSELECT 2", {"7": "SELECT 1", "9": "SELECT 2"}, 0),
    ],
)  # fmt: skip
def test_prediction_files_of_every_form_are_read(
    tmp_path: Path, content: Any, sql: dict[str, str | None], ignored: int
) -> None:
    assert formats.read_predictions(write(tmp_path, "predictions", content), GOLDS) == formats.Predictions(sql, ignored)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 7, "sql": "x"}\n{"id": "7", "sql": "y"}', "line 2 is a second prediction for 7"),
        ('{"id": 7, "db_id": "zoo", "sql": "x"}', "line 1 is for 7 on zoo, but the gold file has 7 on pets"),
        ('{"id": 7, "sql": "x"}\n{"id": 9', "line 2 is not a prediction"),
        ('{"id": 7}\n{"id": 9}', "line 1 is not a prediction"),
        ({"7": ["x"]}, "prediction 7 is not text"),
        ("SELECT a\nFROM t\nSELECT 2\nSELECT 3\n", "has 4 lines for 3 gold queries"),
        ('["x", "y"', "begins as a JSON list but is not JSON"),
        ('["x", 3]', "prediction 0 is not a prediction"),
        ("[" * 100_000, "begins as a JSON list but is not JSON .it is nested too deeply"),
        ('{\n"0": "x",\n"1": \n}', "begins as JSON but is not JSON .Expecting value"),
        ('{"a":' * 100_000, "begins as JSON but is not JSON .it is nested too deeply"),
        ('{"0": ' + "9" * 5000 + "}", "begins as JSON but is not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("<html>", "is a web page"),
        ("", "is empty"),
        ({"0": f"x{SEPARATOR}zoo"}, "prediction 0 is for 7 on zoo"),
        ('{"id": 1, "sql": "x"}\n{"id": 2, "sql": "y"}', "none of its 2 predictions has an id of the gold file"),
    ],
)
def test_contradictory_predictions_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, "predictions", content)
    with pytest.raises(ExampleError, match=message) as error:
        formats.read_predictions(path, GOLDS)
    assert str(path) in str(error.value)


def test_databases_are_found_and_a_missing_one_is_named(tmp_path: Path, pets: Path) -> None:
    assert formats.find_databases(GOLDS[:1], pets.parents[1]) == {"pets": pets}
    assert formats.find_databases(GOLDS, pets) == {"pets": pets, "zoo": pets}  # one file for all
    with pytest.raises(ExampleError, match=r"1 of 2 databases are missing, first zoo.*--databases="):
        formats.find_databases(GOLDS, pets.parents[1])
    (tmp_path / "zoo").mkdir()
    assert formats.find_databases(GOLDS[2:], tmp_path, lenient=True) == {"zoo": tmp_path / "zoo" / "zoo.sqlite"}
    (tmp_path / "zoo" / "zoo.sqlite").write_text("")
    with pytest.raises(ExampleError, match=r"zoo.sqlite is empty"):
        formats.find_databases(GOLDS[2:], tmp_path)


def test_default_databases_are_next_to_the_gold_file(tmp_path: Path) -> None:
    assert formats.default_databases(tmp_path / "dev.json") == tmp_path / "databases"
    (tmp_path / "dev_databases").mkdir()
    assert formats.default_databases(tmp_path / "dev.json") == tmp_path / "dev_databases"


def test_a_suite_is_all_files_of_the_database_folder(tmp_path: Path, pets: Path) -> None:
    assert formats.suite_files(pets, "pets") == [pets]
    (tmp_path / "a").mkdir()
    for name in ("a/a.sqlite", "a/a2.sqlite", "a/a.sqlite.bak", "a/a.db", "flat.sqlite", "other.sqlite"):
        shutil.copy(pets, tmp_path / name)
    main = tmp_path / "a" / "a.sqlite"
    assert [path.name for path in formats.suite_files(main, "a")] == ["a.sqlite", "a2.sqlite"]
    assert [path.name for path in formats.suite_files(main, "a", lenient=True)] == [
        "a.sqlite",
        "a.sqlite.bak",
        "a2.sqlite",
    ]
    assert formats.suite_files(tmp_path / "flat.sqlite", "flat") == [tmp_path / "flat.sqlite"]


def test_a_file_of_sql_named_as_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("SELECT 1\n")
    with pytest.raises(ExampleError, match=r"predictions.json is named as JSON and begins with 'SELECT 1'"):
        formats.read_predictions(path, GOLDS)


def test_files_of_the_system_are_not_in_a_suite(tmp_path: Path, pets: Path) -> None:
    main = tmp_path / "a" / "a.sqlite"
    main.parent.mkdir()
    for name in ("a.sqlite", "._a.sqlite", "a.sqlite-wal", "a.sqlite-shm", "a.sqlite-journal"):
        shutil.copy(pets, main.parent / name)
    assert formats.suite_files(main, "a") == formats.suite_files(main, "a", lenient=True) == [main]


def test_ids_that_occur_twice_go_by_position_under_the_official_rules(tmp_path: Path) -> None:
    path = tmp_path / "gold.json"
    path.write_text(
        json.dumps([{"question_id": i, "db_id": "pets", "SQL": f"SELECT {n}"} for n, i in enumerate([1, 0, 1])])
    )
    with pytest.raises(ExampleError, match=r"two records have the id 1.*--compat"):
        formats.read_golds(path)
    golds = formats.read_golds(path, lenient=True)
    assert [(gold.id, gold.record_id) for gold in golds] == [("0", "1"), ("1", "0"), ("2", "1")]
    (tmp_path / "predictions").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    assert formats.read_predictions(tmp_path / "predictions", golds).sql == {"0": "a", "1": "b", "2": "c"}
    (tmp_path / "predictions").write_text(
        "".join(f'{{"id": {i}, "sql": "{sql}"}}\n' for i, sql in ((1, "a"), (0, "b"), (1, "c")))
    )
    assert formats.read_predictions(tmp_path / "predictions", golds).sql == {"0": "a", "1": "b", "2": "c"}
    (tmp_path / "predictions").write_text('{"id": 0, "sql": "a"}\n{"id": 0, "sql": "b"}\n{"id": 0, "sql": "c"}\n')
    with pytest.raises(ExampleError, match="line 3 has the id 0, but the gold file has 1 there"):
        formats.read_predictions(tmp_path / "predictions", golds)


@pytest.mark.parametrize("db_id", ["x" * 300, "a\0b", "\ud800"])
def test_a_db_id_that_no_file_can_have_is_a_missing_database(tmp_path: Path, db_id: str) -> None:
    for lenient in (False, True):
        with pytest.raises(ExampleError, match="1 of 1 databases are missing"):
            formats.find_databases([Gold("0", db_id, "SELECT 1", "")], tmp_path, lenient)
