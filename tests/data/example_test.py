from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sqlr1_jax.data import example
from sqlr1_jax.data.example import Example, ExampleError
from sqlr1_jax.data.record_index import IndexedExamples
from testing.damage import few_or_many
from testing.damaged_data import damaged_files


def record(**more: Any) -> dict[str, Any]:
    return {"db_id": "pets", "question": "How many dogs?", "sql": "SELECT count(*) FROM dogs"} | more


def jsonl(folder: Path, *records: Any) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return f"jsonl:{path}"


@pytest.fixture
def databases(pets: Path) -> str:
    return str(pets.parents[1])


def test_a_record_needs_three_fields(tmp_path: Path, pets: Path, databases: str) -> None:
    spec = jsonl(tmp_path, record())
    assert example.read_examples(spec, databases) == [
        Example("0", "pets", pets, "How many dogs?", "SELECT count(*) FROM dogs", source=spec)
    ]


def test_synsql_records_may_have_the_fields_of_the_embedded_data(tmp_path: Path, pets: Path, databases: str) -> None:
    full = record(
        id="cold-1",
        sql_complexity="Complex",
        question_style="Vague",
        external_knowledge="Dogs are animals.",
        cot="count",
        family="count",
        habit="dropped_distinct",
        spoiled=True,
    )
    path = tmp_path / "sft.json"
    path.write_text(json.dumps([full, record()]))
    first, second = example.read_examples(f"synsql:{path}", databases)
    assert first == Example(
        "cold-1", "pets", pets, "How many dogs?", "SELECT count(*) FROM dogs", "Dogs are animals.", "count",
        f"synsql:{path}", "Complex", "Vague", "count", "dropped_distinct", True,
    )  # fmt: skip
    assert (second.id, second.reasoning, second.habit, second.spoiled) == ("1", "", "", False)


@pytest.mark.parametrize("location", ["pets/pets.sqlite", "pets.sqlite"])
def test_databases_are_found_next_to_the_data(tmp_path: Path, pets: Path, location: str) -> None:
    path = tmp_path / "databases" / location
    path.parent.mkdir(parents=True)
    shutil.copy(pets, path)
    (tmp_path / "data.json").write_text(json.dumps([record()]))
    assert example.read_examples(f"synsql:{tmp_path}")[0].database == path


def test_one_database_file_serves_all_questions(tmp_path: Path, pets: Path) -> None:
    assert example.read_examples(jsonl(tmp_path, record(db_id="other")), str(pets))[0].database == pets


def test_spider_and_bird_are_read_from_their_folders(tmp_path: Path, pets: Path) -> None:
    for folder in ("database", "dev_databases"):
        shutil.copytree(pets.parent, tmp_path / folder / "pets")
    spider = {"db_id": "pets", "question": "How many?", "query": "SELECT 1", "query_toks": [], "sql": {"from": {}}}
    (tmp_path / "train_spider.json").write_text(json.dumps([spider]))
    (one,) = example.read_examples(f"spider:{tmp_path}")
    assert (one.id, one.sql, one.knowledge, one.reasoning) == ("0", "SELECT 1", "", "")
    assert one.database == tmp_path / "database" / "pets" / "pets.sqlite"
    bird = {"question_id": 41, "db_id": "pets", "question": "How many?", "evidence": "all", "SQL": "SELECT 2"}
    (tmp_path / "dev.json").write_text(json.dumps([bird | {"difficulty": "simple"}]))
    (one,) = example.read_examples(f"bird:{tmp_path}/dev.json")
    assert (one.id, one.sql, one.knowledge, one.complexity) == ("41", "SELECT 2", "all", "simple")
    assert one.database == tmp_path / "dev_databases" / "pets" / "pets.sqlite"


def test_parquet_reads_the_question_from_the_prompt(tmp_path: Path, databases: str) -> None:
    datasets = pytest.importorskip("datasets")
    truth = {"style": "rule", "ground_truth": {"db_id": "pets", "sql": "SELECT 1"}}
    content = "Question:\nold\n\nDatabase Schema:\nt\n\nQuestion:\nHow many\ndogs?\n\nInstructions:\n- one"
    rows = [
        {"prompt": [{"role": "user", "content": content}], "reward_model": truth, "extra_info": {"index": 0}},
        {"prompt": [{"role": "user", "content": "nothing"}], "reward_model": truth, "extra_info": {"index": 1}},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    (one,) = example.read_examples(f"parquet:{tmp_path}", databases)
    assert (one.id, one.question, one.sql) == ("0", "How many\ndogs?", "SELECT 1")


def test_parquet_prefers_columns_to_the_prompt(tmp_path: Path, databases: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    truth = {"style": "rule", "ground_truth": {"db_id": "pets", "sql": "SELECT 1"}}
    row = {"prompt": [{"role": "user", "content": "Question: no"}], "question": "Which?", "cot": "so", "sql": ""}
    parquet.write_table(pyarrow.Table.from_pylist([row | {"reward_model": truth}]), tmp_path / "part-0.parquet")
    (one,) = example.read_examples(f"parquet:{tmp_path}", databases)
    assert (one.question, one.reasoning, one.sql) == ("Which?", "so", "SELECT 1")


def test_bad_records_are_set_aside_and_counted(
    tmp_path: Path, databases: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        record(question=" "),
        record(sql=None),
        {"question": "no database", "sql": "SELECT 1"},
        record(db_id="gone"),
        record(db_id="../pets"),
        record(id="twice"),
        record(id="twice"),
        "{broken",
        "[1]",
    ]
    with caplog.at_level(logging.WARNING):
        kept = example.read_examples(jsonl(tmp_path, record(), *bad, record()), databases)
    assert [one.id for one in kept] == ["0", "twice", "10"]
    reasons = "\n".join(caplog.messages)
    for message in (
        "1 of 11 records set aside: no question (first: record 1)",
        "no sql, SQL or query, or under reward_model (first: record 2)",
        "no db_id (first: record 3)",
        "no readable SQLite file for its db_id (first: record 4)",
        "db_id is a path (first: record 5)",
        "id seen before (first: record twice)",
        "2 of 11 records set aside: not a JSON object (first: record 8)",
    ):
        assert message in reasons
    assert "questions.jsonl" in reasons


def test_the_error_names_the_fix_if_all_databases_are_missing(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, record(), record())
    with pytest.raises(ExampleError) as error:
        example.read_examples(spec, str(tmp_path / "nowhere"))
    for part in ("questions.jsonl", "2 records", "first in record 0", "nowhere", "--config.data.databases="):
        assert part in str(error.value)


def test_a_file_that_is_no_database_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "pets.sqlite").write_bytes(b"SQLite format 3\x00" + b"and then nothing like it" * 50)
    with pytest.raises(ExampleError, match=r"its database cannot be read: .*pets\.sqlite cannot be read as a SQLite"):
        example.read_examples(jsonl(tmp_path, record()), str(tmp_path))
    (tmp_path / "pets.sqlite").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ExampleError, match="git lfs pull"):
        example.read_examples(jsonl(tmp_path, record()), str(tmp_path))


@pytest.mark.parametrize("name", ["pets/pets.db", "pets.db", "pets.sqlite3"])
def test_databases_may_have_other_suffixes(tmp_path: Path, pets: Path, name: str) -> None:
    path = tmp_path / "other" / name
    path.parent.mkdir(parents=True)
    shutil.copy(pets, path)
    (one,) = example.read_examples(jsonl(tmp_path, record()), str(tmp_path / "other"))
    assert one.database == path


SQL = "SELECT count(*) FROM dogs"
PROMPT = [{"role": "user", "content": "Question: How many dogs?"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "How many dogs?", "query": SQL, "query_toks": ["SELECT"]},  # Spider
        {"question": "How many dogs?", "query": SQL, "sql": {"from": {}}},
        {"question": "How many dogs?", "SQL": SQL, "evidence": "", "question_id": 3},  # BIRD, bird23-train-filtered
        {"question": "How many dogs?", "sql": SQL, "id": None},
        {"prompt": PROMPT, "reward_model": {"style": "rule", "ground_truth": {"db_id": "pets", "sql": SQL}}},  # SQL-R1
        {"prompt": PROMPT, "reward_model": {"style": "rule", "ground_truth": SQL}},  # verl
        {"prompt": PROMPT, "reward_model": {"ground_truth": json.dumps({"db_id": "pets", "sql": SQL})}},
        {"prompt": PROMPT, "reward_spec": {"method": "rule", "ground_truth": SQL}},  # SkyRL
        {"prompt": "Question: How many dogs?", "reward_model": {"ground_truth": SQL}},
        {"extra_info": {"question": "How many dogs?", "db_id": "pets"}, "reward_model": {"ground_truth": SQL}},
    ],
)
@pytest.mark.parametrize("prefix", ["jsonl", "parquet"])
def test_every_public_form_is_read_by_its_own_names(
    tmp_path: Path, databases: str, fields: dict[str, Any], prefix: str
) -> None:
    rows = [{"db_id": "pets"} | fields] if "extra_info" not in fields else [fields]
    if prefix == "jsonl":
        spec = jsonl(tmp_path, *rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{name: value for name, value in row.items() if value != {"from": {}}} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
        spec = f"parquet:{tmp_path}/data.parquet"
    (one,) = example.read_examples(spec, databases)
    assert (one.db_id, one.question, one.sql) == ("pets", "How many dogs?", SQL)
    assert one.id == ("3" if "question_id" in fields else "0")


@pytest.mark.parametrize("blank", [None, ""])
def test_a_blank_id_is_the_position(tmp_path: Path, databases: str, blank: Any) -> None:
    examples = example.read_examples(jsonl(tmp_path, *(record(id=blank) for _ in range(3))), databases)
    assert [one.id for one in examples] == ["0", "1", "2"]


def test_db_ids_may_end_in_a_line_end_or_be_numbers(tmp_path: Path, pets: Path) -> None:
    shutil.copy(pets, tmp_path / "7.sqlite")
    shutil.copy(pets, tmp_path / "pets.sqlite")
    examples = example.read_examples(jsonl(tmp_path, record(db_id="pets\n"), record(db_id=7)), str(tmp_path))
    assert [one.db_id for one in examples] == ["pets", "7"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_byte_order_marks_are_skipped_and_other_encodings_named(tmp_path: Path, databases: str, name: str) -> None:
    path = tmp_path / name
    records = [record(question="Où ?"), record()]
    text = json.dumps(records) if name == "data.json" else "".join(json.dumps(r) + "\n" for r in records)
    text = text.replace("\\u00f9", "ù")
    path.write_text(text, encoding="utf-8-sig")
    assert [one.question for one in example.read_examples(f"jsonl:{path}", databases)] == ["Où ?", "How many dogs?"]
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ExampleError, match=rf"{name}: in line 1, byte \d+ is not UTF-8; .*iconv"):
        example.read_examples(f"jsonl:{path}", databases)
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ExampleError, match=rf"{name} is UTF-16"):
        example.read_examples(f"jsonl:{path}", databases)


def test_excluded_records_do_not_count_toward_the_limit(tmp_path: Path, databases: str) -> None:
    spec = jsonl(tmp_path, *(record(id=i) for i in range(5)))
    (tmp_path / "exclude.jsonl").write_text('{"id": 1, "rule": "empty"}\n{"id": "3"}\n{"id": "99"}\n')
    exclude = (str(tmp_path / "exclude.jsonl"),)
    assert [one.id for one in example.read_examples(spec, databases, exclude)] == ["0", "2", "4"]
    assert [one.id for one in example.read_examples(spec, databases, exclude, limit=2)] == ["0", "2"]
    assert [one.id for one in example.read_examples(spec, databases, limit=2)] == ["0", "1"]
    assert len(example.read_examples(spec, databases, exclude, training=False)) == 5
    (tmp_path / "exclude.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in range(5)))
    with pytest.raises(ExampleError, match="all excluded"):
        example.read_examples(spec, databases, exclude)


def test_the_log_says_how_many_examples_the_lists_leave_out(
    tmp_path: Path, databases: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = jsonl(tmp_path, *(record(id=i) for i in range(5)), record(db_id="lost"))
    (tmp_path / "exclude.jsonl").write_text('{"id": 1, "rule": "empty"}\n{"id": "3"}\n')
    with caplog.at_level(logging.INFO):
        example.read_examples(spec, databases, (str(tmp_path / "exclude.jsonl"),))
    assert caplog.messages[1:] == [
        f"{tmp_path}/questions.jsonl: 2 of 5 examples left out by {tmp_path}/exclude.jsonl (empty 1, listed 1)"
    ]


def test_the_name_of_a_source_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path, record())
    monkeypatch.chdir(tmp_path)
    assert example.source_name("jsonl:questions.jsonl") == str(tmp_path / "questions.jsonl")
    assert example.source_name("synsql-200k:questions.jsonl") == str(tmp_path / "questions.jsonl")
    assert example.source_name("hub:owner/name") == "hub:owner/name"
    with pytest.raises(ExampleError, match="no such data"):
        example.source_name("jsonl:gone.jsonl")


def test_a_prefix_may_name_a_selection(tmp_path: Path, databases: str, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["Simple", "Complex", "Complex", "Highly Complex", "Moderate"]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record(sql_complexity=label) for label in labels]))
    examples = example.read_examples(f"complex-5k:{path}", databases)
    assert sorted(one.id for one in examples) == ["1", "2"]
    assert "2 examples instead of 5000" in caplog.text
    assert len(example.read_examples(f"synsql-200k:{path}", databases)) == 5


@pytest.mark.parametrize("spec", ["nothing", "spyder:/x", "synsql:", "synth:x"])
def test_a_bad_spec_is_refused(spec: str) -> None:
    with pytest.raises(ExampleError, match="PREFIX:PATH"):
        example.read_examples(spec)


def test_data_never_imports_jax() -> None:
    """Nor does it import these packages before it uses them."""
    names = ("answer", "comments", "example", "packing", "prompt", "retrieval", "schema", "select", "sources")
    code = "import sys; sys.modules.update(jax=None)\n" + "".join(f"import sqlr1_jax.data.{n}\n" for n in names)
    code += "print(*{'ml_collections', 'datasets', 'transformers', 'sqlglot', 'bm25s'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""


def test_real_spider_and_bird_are_read_whole(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    spider = example.read_examples(f"spider:{shared_data}/spider_train")
    assert len(spider) == 6918
    assert len({one.database for one in spider}) == 139
    bird = example.read_examples(f"bird:{shared_data}/bird_formula_1")
    assert len(bird) == 108
    assert bird[0].knowledge == "Shanghai is a name of location;"
    assert caplog.messages == []


def test_real_synsql_records_are_read(shared_data: Path, tmp_path: Path) -> None:
    """The sample has schemas but no databases, so this makes one database and reads the records on it."""
    (tmp_path / "databases").mkdir()
    name = json.loads((shared_data / "synsql_sample" / "data.json").read_text())[0]["db_id"]
    connection = sqlite3.connect(tmp_path / "databases" / f"{name}.sqlite")
    connection.executescript((shared_data / "synsql_sample" / "schemas" / f"{name}.sql").read_text())
    connection.close()
    examples = example.read_examples(f"synsql:{shared_data}/synsql_sample", str(tmp_path / "databases"))
    assert {one.db_id for one in examples} == {name}
    assert (examples[0].complexity, examples[0].style) == ("Complex", "Interrogative")
    assert examples[0].reasoning.startswith("To answer the question")


@pytest.fixture
def indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the indices of large files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sqlr1_jax" / "indices"


@pytest.mark.parametrize("prefix", ["jsonl", "synsql", "complex-5k", "synsql-200k"])
def test_a_large_file_gives_the_same_examples_by_its_index(
    tmp_path: Path, pets: Path, databases: str, indices: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(pets.parent, tmp_path / "databases" / "pets")
    shutil.copy(pets, tmp_path / "databases" / "cats.sqlite")
    records = [
        record(id=i, sql_complexity="Complex", db_id=("pets", "cats")[i % 3 == 0], cot="Où ?") for i in range(20)
    ]
    spec = jsonl(tmp_path, *records, record(db_id="gone"), "{broken", record(question="")).replace("jsonl", prefix, 1)
    (tmp_path / "exclude.jsonl").write_text('{"id": 3}\n')

    def read(index_from: int) -> tuple[Sequence[Example], list[str]]:
        caplog.clear()
        exclude = (str(tmp_path / "exclude.jsonl"),)
        examples = example.read_examples(spec, str(tmp_path / "databases"), exclude, seed=7, index_from=index_from)
        return examples, [message for message in caplog.messages if "indexing" not in message]

    (eager, said), (made, said_first), (kept, said_again) = read(0), read(1), read(1)
    assert isinstance(kept, IndexedExamples)
    assert not isinstance(eager, IndexedExamples)
    assert list(made) == list(kept) == list(eager)
    assert [one.id for one in kept[5:]] == [one.id for one in eager[5:]]
    assert len(kept.positions_by_database()) == 2
    assert sorted(said_first) == sorted(said_again) == sorted(said)
    assert len(list(indices.iterdir())) == 1


@pytest.mark.parametrize("change", ["data", "exclude", "databases"])
def test_an_index_is_made_again_when_what_decided_it_changes(
    tmp_path: Path, pets: Path, indices: Path, change: str
) -> None:
    shutil.copytree(pets.parent, tmp_path / "databases" / "pets")
    (tmp_path / "exclude.jsonl").write_text('{"id": 0}\n')
    spec, exclude = jsonl(tmp_path, record(), record(), record(db_id="cats")), (str(tmp_path / "exclude.jsonl"),)

    def ids() -> list[str]:
        return [one.id for one in example.read_examples(spec, str(tmp_path / "databases"), exclude, index_from=1)]

    assert ids() == ["1"]
    if change == "data":
        jsonl(tmp_path, record(), record(), record())
    elif change == "exclude":
        (tmp_path / "exclude.jsonl").write_text('{"id": 1}\n')
    else:
        shutil.copy(pets, tmp_path / "databases" / "cats.sqlite")
    assert ids() == {"data": ["1", "2"], "exclude": ["0"], "databases": ["1", "2"]}[change]
    assert len(list(indices.iterdir())) == 2


def test_a_small_or_remote_source_has_no_index(tmp_path: Path, databases: str, indices: Path) -> None:
    spec = jsonl(tmp_path, record())
    assert isinstance(example.read_examples(spec, databases, index_from=1 << 20), list)
    assert not indices.exists()
    with pytest.raises(ExampleError, match="none of its 1 records can be used"):
        example.read_examples(spec, str(tmp_path), index_from=1)


def test_odd_texts_set_their_record_aside_and_no_other(tmp_path: Path, databases: str) -> None:
    odd = [
        record(db_id="x" * 300),
        record(db_id="a\0b"),
        record(question="How\ud800?"),
        record(sql="SELECT '\udfff'"),
        record(cot="so \ud800"),
        record(id="\ud800"),
    ]
    examples, set_aside = example.read_all_records(jsonl(tmp_path, record(), *odd, record()), databases)
    assert [e.id for e in examples] == ["0", "7"]
    assert [aside.reason.partition(" (")[0] for aside in set_aside] == [
        *[example.NO_DATABASE] * 2,
        *["its text has half of a surrogate pair"] * 4,
    ]


@few_or_many
def test_a_damaged_file_is_read_or_named_by_the_error(
    tmp_path: Path, databases: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """With an index of the file and without, examples and errors are the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    num_read = 0
    for files in damaged_files(tmp_path, count):
        spec = f"{files.prefix or 'jsonl'}:{files.gold}"
        results = []
        for index_from in (0, 1):
            try:
                results.append(repr(list(example.read_examples(spec, databases, index_from=index_from))))
            except ExampleError as error:
                assert files.gold.name in str(error), files
                results.append(str(error))
        assert results[0] == results[1], files
        num_read += results[0].startswith("[")
    assert num_read > 0.4 * count
