from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlr1_jax import config_checks
from sqlr1_jax.data import sources
from sqlr1_jax.data.sources import ExampleError

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50)
@given(
    st.lists(values, max_size=6),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_json_list_yields_what_json_loads(
    tmp_path_factory: pytest.TempPathFactory,
    elements: list[Any],
    chunk: int,
    indent: int | None,
    ascii_: bool,
    encoding: str,
) -> None:
    """And where in the file each of them is, whatever the line ends and the byte order mark."""
    path = tmp_path_factory.mktemp("list") / "data.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=ascii_), encoding=encoding)
    read = list(sources.json_list(path, chunk))
    assert [value for value, _ in read] == elements
    content = path.read_bytes()
    assert [json.loads(content[start : start + length]) for _, (start, length) in read] == elements


def test_json_list_never_loads_a_long_list_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    record = json.dumps({"cot": "x" * 10_000})
    with path.open("w") as file:
        file.write("[" + ",\n".join([record] * 6000) + "]")
    assert path.stat().st_size > 60e6
    tracemalloc.start()
    count = sum(1 for _ in sources.json_list(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6000
    assert peak < 30e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "not a JSON list"),
        ("", "not a JSON list of records. Write"),
        ('[{"a": 1}, {"a": ' + "[" * 100_000, "record 1 .it is nested too deeply.. Repair the record"),
        ('[{"a": 1}, ' + "9" * 5000 + "]", "record 1 .a number has too many digits"),
        ('[{"a": 1}, {"a": 2', "record 1"),
        ('[{"a": 1}, {"a" 2}]', "record 1"),
        ('[{"a": 1}, ', "record 1 .the file ends"),
        ('[{"a": 1}, 12', "record 1 .the file ends"),
    ],
)
def test_the_error_names_the_file_and_record_of_broken_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ExampleError, match=message) as error:
        list(sources.json_list(path))
    assert "data.json" in str(error.value)


def test_json_list_finds_broken_json_without_reading_the_rest(tmp_path: Path) -> None:
    """A reader that waited for more text to complete the broken record would load the whole file."""
    path = tmp_path / "data.json"
    filler = json.dumps({"cot": "".join(random.Random(0).choices("abc", k=1000))})
    path.write_text("[" + filler + ", {broken}, " + ", ".join([filler] * 20_000) + "]")
    stream = sources.json_list(path)
    assert next(stream)[0] == json.loads(filler)
    tracemalloc.start()
    with pytest.raises(ExampleError, match="record 1"):
        next(stream)
    assert tracemalloc.get_traced_memory()[1] < 15e6
    tracemalloc.stop()


def test_jsonl_skips_blank_lines_and_empties_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n\n  \n{broken\n"text"\n')
    records = sources.open_source("jsonl", str(path)).records()
    assert [record[:2] for record in records] == [(0, {"a": 1}), (1, {}), (2, {})]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_record_is_read_again_alone(tmp_path: Path, name: str) -> None:
    lines = ['{"question": "Où ?", "SQL": "SELECT 1"}', '{"question": "北京", "query": "SELECT 2"}']
    text = "\r\n".join(lines) if name == "data.jsonl" else "[" + ",\r\n".join(lines) + "]"
    (tmp_path / name).write_text("\ufeff" + text, newline="", encoding="utf-8")
    source = sources.open_source("synsql", str(tmp_path / name))
    expected = [{"question": "Où ?", "sql": "SELECT 1"}, {"question": "北京", "sql": "SELECT 2"}]
    records = list(source.records())
    assert [record.fields for record in records] == expected
    with (tmp_path / name).open("rb") as file:
        assert [source.read(file.fileno(), record.span) for record in reversed(records)] == expected[::-1]
        with pytest.raises(ExampleError, match="changed while it was in use"):
            source.read(file.fileno(), sources.Span(1, 5))


def test_a_source_is_a_folder_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "train_spider.json").write_text("[]")
    (tmp_path / "dev.json").write_text("[]")
    (tmp_path / "database").mkdir()
    by_folder = sources.open_source("spider", str(tmp_path))
    assert by_folder.file == str(tmp_path / "train_spider.json")
    assert by_folder.databases == tmp_path / "database"
    assert sources.open_source("spider", str(tmp_path / "dev.json")).file == str(tmp_path / "dev.json")
    assert sources.open_source("bird", str(tmp_path)).file == str(tmp_path / "dev.json")
    assert sources.open_source("hub", "owner/name").databases is None


def test_hub_records_are_renamed_by_any_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"query": "SELECT 1"}, {"SQL": "SELECT 2", "evidence": "e"}, {"sql": "SELECT 3", "cot": "c"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    records = [record.fields for record in sources.open_source("hub", "birdsql/bird23-train-filtered").records()]
    assert records == [
        {"sql": "SELECT 1"},
        {"sql": "SELECT 2", "knowledge": "e"},
        {"sql": "SELECT 3", "reasoning": "c"},
    ]


@pytest.mark.parametrize("prefix", [name for name in config_checks.SOURCES if name not in ("synth", "hub")])
def test_the_error_names_a_missing_file(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ExampleError, match="no such data") as error:
        sources.open_source(prefix, str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in str(error.value)
    with pytest.raises(ExampleError, match="a folder without"):
        sources.open_source(prefix, str(tmp_path))


def test_each_split_of_bird_has_its_own_database_folder(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text("[]")
        (tmp_path / f"{split}_databases").mkdir()
        source = sources.open_source("bird", str(tmp_path / f"{split}.json"))
        assert source.databases == tmp_path / f"{split}_databases"


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Restore"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer .*git lfs pull"),
        (b"<!DOCTYPE html>", "is a web page"),
        ('[{"a": 1}]'.encode("utf-16-le"), "is UTF-16 .*iconv"),
        ('[{"a": 1}]'.encode("utf-16"), "is UTF-16.*iconv"),
        (b'[{"a":\n "\xff"}]', "in line 2, byte 2 is not UTF-8.*iconv"),
    ],
)
def test_a_file_that_is_no_data_is_named_with_the_fix(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExampleError, match=message) as error:
        list(sources.open_source("bird", str(tmp_path / name)).records())
    assert name in str(error.value)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ExampleError, match=r"train\.parquet cannot be read as parquet .*: download it again"):
        list(sources.open_source("parquet", str(tmp_path)).records())


@pytest.mark.parametrize("prompt", [5, True, 1.5, None, [], {}, [3], [None], [{"role": "user"}], {"content": 7}])
def test_a_prompt_of_another_type_has_no_question(tmp_path: Path, prompt: object) -> None:
    record = {"prompt": prompt, "reward_model": {"ground_truth": {"db_id": "a", "sql": "SELECT 1"}}}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    [read] = sources.open_source("jsonl", str(tmp_path / "a.jsonl")).records()
    assert (read.fields["question"], read.fields["sql"]) == ("", "SELECT 1")
