from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from sqlr1_jax import config
from sqlr1_jax.sql.database import DatabaseError
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome
from sqlr1_jax.sql.result_cache import ResultCache, default_folder

CFG = config.ExecuteConfig(workers=1)
LONG = "SELECT hex(zeroblob(200000))"  # longer than a result that is cached


def _cache(folder: Path, **changed: object) -> ResultCache:
    return ResultCache(str(folder), dataclasses.replace(CFG, **changed))  # type: ignore[arg-type]


def _result(number: int) -> str:
    return json.dumps(["ok", [[number]], ["n"], 0, 1.0, ""])


def _lines(folder: Path) -> list[str]:
    """The SQL of each line of a folder's one file."""
    [path] = folder.iterdir()
    return [json.loads(line)[0] for line in path.read_text().splitlines()]


def _compared(folder: Path, database: Path, questions: list[tuple[str, str, str]]) -> list[Outcome]:
    with Executor(dataclasses.replace(CFG, gold_cache_dir=str(folder))) as executor:
        outcomes = [executor.submit(database, *question).result() for question in questions]
    return [dataclasses.replace(outcome, milliseconds=0.0) for outcome in outcomes]


def test_a_result_comes_back_in_the_next_process(tmp_path: Path, pets: Path) -> None:
    first = _cache(tmp_path / "golds")
    assert first.get(str(pets), "SELECT 1") is None
    first.put(str(pets), "SELECT 1", _result(1))
    second = _cache(tmp_path / "golds")
    assert first.get(str(pets), "SELECT 1") == second.get(str(pets), "SELECT 1") == _result(1)
    assert second.get(str(pets), "SELECT 2") is None


def test_the_key_is_content_and_limits_not_the_path(tmp_path: Path, pets: Path) -> None:
    original = _cache(tmp_path).path(str(pets))
    copy = tmp_path / "copy.sqlite"
    shutil.copy(pets, copy)
    assert _cache(tmp_path).path(str(copy)) == original
    assert _cache(tmp_path, max_steps=5000).path(str(pets)) != original
    assert _cache(tmp_path, workers=7, wall_seconds=9.0, gold_factor=3.0).path(str(pets)) == original
    assert _cache(tmp_path, backend="apsw").path(str(pets)) != original
    with copy.open("ab") as file:
        file.write(b"\0" * 4096)
    assert _cache(tmp_path).path(str(copy)) != original


def test_another_version_of_sqlite_has_other_cache(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _cache(tmp_path).path(str(pets))
    monkeypatch.setattr("sqlr1_jax.sql.backends.version", lambda name: "9.9.9")
    assert _cache(tmp_path).path(str(pets)) != original


def test_without_a_home_folder_nothing_is_cached_and_no_folder_named_tilde_is_made(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without HOME and without an entry in passwd
    cache = _cache(Path(default_folder()))
    cache.put(str(pets), "SELECT 1", _result(1))
    assert cache.get(str(pets), "SELECT 1") is None
    assert list(tmp_path.iterdir()) == []
    assert "there is no home folder" in caplog.text


def test_truncated_line_loses_only_its_own_entry(tmp_path: Path, pets: Path) -> None:
    file = _cache(tmp_path)
    for number in range(3):
        file.put(str(pets), f"SELECT {number}", _result(number))
    path = file.path(str(pets))
    path.write_bytes(path.read_bytes()[:-4])
    again = _cache(tmp_path)
    assert [again.get(str(pets), f"SELECT {number}") for number in range(3)] == [_result(0), _result(1), None]
    again.put(str(pets), "SELECT 2", _result(2))
    assert [_cache(tmp_path).get(str(pets), f"SELECT {n}") for n in range(3)] == [_result(n) for n in range(3)]


LINES = [
    b"", b"[]", b'["SELECT 0"]', b'["SELECT 0", 1]', b'{"a": 1, "b": 2}', b"\x00\xff", b'["SELECT 0", "[]"]',
    b'["SELECT 0", "{}"]',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_result_is_as_if_absent(tmp_path: Path, pets: Path, line: bytes) -> None:
    path = _cache(tmp_path).path(str(pets))
    path.write_bytes(line + b"\n" + json.dumps(["SELECT 1", _result(1)]).encode() + b"\n")
    file = _cache(tmp_path)
    assert [file.get(str(pets), sql) for sql in ("SELECT 0", "SELECT 1")] == [None, _result(1)]
    file.put(str(pets), "SELECT 0", _result(0))
    assert [_cache(tmp_path).get(str(pets), f"SELECT {n}") for n in (0, 1)] == [_result(0), _result(1)]


def test_two_that_write_in_turn_keep_each_others_results(tmp_path: Path, pets: Path) -> None:
    first, second = _cache(tmp_path), _cache(tmp_path)
    first.put(str(pets), "SELECT 1", _result(1))
    second.put(str(pets), "SELECT 2", _result(2))
    first.put(str(pets), "SELECT 3", _result(3))
    assert [_cache(tmp_path).get(str(pets), f"SELECT {number}") for number in (1, 2, 3)] == [
        _result(number) for number in (1, 2, 3)
    ]


def test_a_database_that_is_missing_has_no_results(tmp_path: Path) -> None:
    lost = str(tmp_path / "lost.sqlite")
    _cache(tmp_path / "golds").put(lost, "SELECT 1", _result(1))
    assert _cache(tmp_path / "golds").get(lost, "SELECT 1") is None
    with pytest.raises(DatabaseError, match=r"lost\.sqlite does not exist"):
        _cache(tmp_path).path(lost)


def test_gold_results_from_disk_give_the_same_outcomes_as_gold_queries_that_run(tmp_path: Path, pets: Path) -> None:
    questions = [
        ("SELECT color FROM dogs", "SELECT color FROM dogs WHERE age > 1", "spider"),
        ("SELECT x'00ff', 1e999, 2.5, NULL, 'é'", "SELECT x'00ff', 1e999, 2.5, NULL, 'é'", "strict"),
        ("SELECT 1", "SELECT fur FROM dogs", "bird"),
        ("SELECT 1", LONG, "spider"),
    ]
    ran = _compared(tmp_path, pets, questions)
    assert [outcome.kind for outcome in ran] == ["match", "match", "gold_error", "mismatch"]
    assert _lines(tmp_path) == [gold for _, gold, _ in questions[:3]]
    assert _compared(tmp_path, pets, questions) == ran
    assert _lines(tmp_path) == [gold for _, gold, _ in questions[:3]]


def test_a_gold_query_whose_result_is_on_disk_does_not_run(tmp_path: Path, pets: Path) -> None:
    gold, wrong = "SELECT count(*) FROM dogs", _result(77)
    _cache(tmp_path).put(str(pets), gold, wrong)
    [outcome] = _compared(tmp_path, pets, [("SELECT 77", gold, "spider")])
    assert (outcome.kind, outcome.gold_rows) == ("match", ((77,),))


def test_an_official_rule_runs_the_gold_query_itself(tmp_path: Path, pets: Path) -> None:
    gold = "SELECT count(*) FROM dogs"
    _cache(tmp_path).put(str(pets), gold, _result(77))
    [outcome] = _compared(tmp_path, pets, [("SELECT 4", gold, "official_bird")])
    assert outcome.kind == "match"
    assert _lines(tmp_path) == [gold]


def test_a_query_without_a_gold_query_is_answered_from_disk(tmp_path: Path, pets: Path) -> None:
    seen = []
    for _ in range(2):
        with Executor(dataclasses.replace(CFG, gold_cache_dir=str(tmp_path))) as executor:
            outcomes = [executor.run(pets, sql).result() for sql in ("SELECT * FROM dogs", "SELECT fur FROM dogs")]
            seen.append((outcomes, executor.from_disk))
    assert seen[0] == (seen[1][0], 0)
    assert seen[1][1] == 2
    assert [outcome.kind for outcome in seen[1][0]] == ["ok", "syntax_error"]


def test_what_the_wall_clock_decided_is_not_cached(tmp_path: Path, pets: Path) -> None:
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"
    cfg = dataclasses.replace(CFG, gold_cache_dir=str(tmp_path), wall_seconds=0.2, max_steps=10**12)
    with Executor(cfg) as executor:
        assert executor.run(pets, slow).result().kind == "timeout"
        assert executor.run(pets, "DROP TABLE dogs").result().kind == "denied"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_no_answer(
    tmp_path: Path, pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "golds").write_text("a file where a folder should be")
    questions = [
        ("SELECT 4", "SELECT count(*) FROM dogs", "spider"),
        ("SELECT 5", "SELECT count(*) FROM dogs", "spider"),
    ]
    assert [outcome.kind for outcome in _compared(tmp_path / "golds", pets, questions)] == ["match", "mismatch"]
    assert caplog.text.count("no query results are cached for") == 1


def test_each_worker_is_sent_a_gold_result_once(tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = "SELECT count(*) FROM dogs"
    _cache(tmp_path).put(str(pets), gold, _result(4))
    read: list[tuple[str, str]] = []
    get = ResultCache.get
    monkeypatch.setattr(ResultCache, "get", lambda self, *key: (read.append(key), get(self, *key))[1])  # type: ignore[func-returns-value]
    outcomes = _compared(tmp_path, pets, [(f"SELECT {n}", gold, "spider") for n in (3, 4, 5)])
    assert [outcome.kind for outcome in outcomes] == ["mismatch", "match", "mismatch"]
    assert read == [(str(pets), gold)]
