"""Damaged and odd data and prediction files, each pair a function of a seed, on the database of `make_pets`."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_QUERIES = (
    "SELECT color FROM dogs WHERE age > 4 ORDER BY code",
    "SELECT count(*) FROM dogs",
    "SELECT city, count(*) FROM owners JOIN dogs ON keeper = tag GROUP BY city",
    "SELECT color FROM dogs ORDER BY age DESC LIMIT 1",
    "SELECT `full name` FROM owners WHERE city = 'rome'",
    "SELECT avg(age) FROM dogs WHERE color = 'größe'",
)
_DEEP = json.dumps("x").join(("[" * 2000, "]" * 2000))
# Values that a field should not have.
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "\ud800", "a\ud800b", "a\0b", "\x1b[2J\u202ex",
    "pets", "../pets", "a/b", ".", "x" * 300, "x" * 70_000, "SELECT 1; SELECT 2", ";", "-- only a comment",
    "SELECT " + "(" * 600 + "1" + ")" * 600, "SELECT 'never closed", "DROP TABLE dogs", "WITH", "{}", "[1, 2]",
    [], ["SELECT 1"], [[["SELECT 1"]]], [None], {}, {"sql": "SELECT 1"}, {"content": None}, [{"content": "Question:"}],
)  # fmt: skip
_FIELDS = ("id", "question_id", "db_id", "sql", "SQL", "query", "question", "evidence", "difficulty", "prompt",
           "reward_model", "reward_spec", "extra_info", "ground_truth", "spoiled", "complexity", "cot")  # fmt: skip


class Files(NamedTuple):
    """What was written."""

    prefix: str  # as in PREFIX:PATH, for the gold file; "" if `check` does not read its form
    gold: Path
    predictions: Path
    kinds: str  # forms and changes


def damaged_files(folder: Path, count: int) -> Iterator[Files]:
    """Yields pairs of files at <folder>/<seed>/; each pair is deleted after its turn."""
    for seed in range(count):
        own = folder / str(seed)
        own.mkdir()
        yield write_files(own, seed)
        shutil.rmtree(own)


def write_files(folder: Path, seed: int) -> Files:
    """Writes a gold and a prediction file into a folder; one of them is changed, or both."""
    rng = random.Random(seed)
    prefix, gold_name = rng.choice(list(GOLD_FORMS))
    prediction_name = rng.choice(list(PREDICTION_FORMS))
    golds = GOLD_FORMS[prefix, gold_name]()
    ids = [gold.get("id", i) if isinstance(gold, dict) else i for i, gold in enumerate(golds)]
    changed = rng.choice((("gold",), ("predictions",), ("gold", "predictions")))
    gold_bytes, gold_kind = _mutate(rng, golds, gold_name, "gold" in changed)
    predicted = PREDICTION_FORMS[prediction_name](ids)
    predicted_bytes, prediction_kind = _mutate(rng, predicted, prediction_name, "predictions" in changed)
    if rng.random() < 0.2:  # a file that has the name of another form
        prediction_name = rng.choice(list(PREDICTION_FORMS))
    gold_path, prediction_path = folder / f"gold_{gold_name}", folder / f"predicted_{prediction_name}"
    gold_path.write_bytes(gold_bytes)
    prediction_path.write_bytes(predicted_bytes)
    return Files(prefix, gold_path, prediction_path, f"{prefix} {gold_kind}, {prediction_name} {prediction_kind}")


def _spider() -> list[dict[str, Any]]:
    return [
        {"db_id": "pets", "question": f"How many {i}?", "query": sql, "query_toks": sql.split(), "sql": {"select": []}}
        for i, sql in enumerate(_QUERIES)
    ]


def _bird() -> list[dict[str, Any]]:
    return [
        {"question_id": i, "db_id": "pets", "question": "Which?", "evidence": "", "SQL": sql, "difficulty": "simple"}
        for i, sql in enumerate(_QUERIES)
    ]


def _jsonl() -> list[dict[str, Any]]:
    plain = [{"id": f"q{i}", "db_id": "pets", "question": "Wer?", "sql": sql} for i, sql in enumerate(_QUERIES[:3])]
    verl = [
        {
            "prompt": [{"role": "user", "content": "Database: pets\nQuestion: Who?\n\nAnswer:\n"}],
            "reward_model": {"ground_truth": {"db_id": "pets", "sql": sql}},
            "extra_info": {"index": i},
        }
        for i, sql in enumerate(_QUERIES[3:])
    ]
    return [*plain, *verl]


GOLD_FORMS: dict[tuple[str, str], Callable[[], Any]] = {
    ("spider", "dev.json"): _spider,
    ("bird", "dev.json"): _bird,
    ("synsql", "data.json"): _jsonl,
    ("jsonl", "data.jsonl"): _jsonl,
    ("", "gold.sql"): lambda: [f"{sql}\tpets" for sql in _QUERIES],
}
PREDICTION_FORMS: dict[str, Callable[[Sequence[int | str]], Any]] = {  # called with the ids of the gold queries
    "records.jsonl": lambda ids: [{"id": i, "db_id": "pets", "sql": sql} for i, sql in zip(ids, _QUERIES, strict=True)],
    "records.json": lambda ids: [{"id": str(i), "sql": sql} for i, sql in zip(ids, _QUERIES, strict=True)],
    "list.json": lambda ids: list(_QUERIES),
    "object.json": lambda ids: {str(i): f"{_QUERIES[i]}\t----- bird -----\tpets" for i in range(len(ids))},
    "lines.sql": lambda ids: list(_QUERIES),
}


def _mutate(rng: random.Random, content: Any, name: str, change: bool) -> tuple[bytes, str]:
    """The bytes of a file with this content, and what was changed: values, text, bytes, or all of them."""
    kinds = []
    if change and rng.random() < 0.6:
        kinds.append("values")
        content = _change_values(rng, copy.deepcopy(content))
    lines = content if isinstance(content, list) else [content]
    if name.endswith(".json"):
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    else:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    if change and rng.random() < 0.4:
        kinds.append("text")
        text = _change_text(rng, text)
    data = text.encode(errors="surrogatepass")
    if change and (rng.random() < 0.4 or not kinds):
        kinds.append("bytes")
        data = _change_bytes(rng, data)
    return data, "+".join(kinds) or "sound"


def _change_values(rng: random.Random, content: Any) -> Any:
    for _ in range(rng.choice((1, 1, 3))):
        content = _change_value(rng, content)
    return content


def _change_value(rng: random.Random, content: Any) -> Any:
    value = rng.choice(_VALUES)
    if rng.random() < 0.05:
        return value if rng.random() < 0.5 else [content]
    if isinstance(content, dict):
        key = rng.choice([*content, "6", "-1", "x", ""])
        content[key] = value
    elif isinstance(content, list) and content:
        i = rng.randrange(len(content))
        if isinstance(content[i], dict) and rng.random() < 0.7:
            record = content[i]
            if rng.random() < 0.3:
                record.pop(rng.choice([*record, "id"]), None)
            else:
                record[rng.choice([*record, *_FIELDS])] = value
        else:
            change = rng.randrange(4)
            content[i : i + 1] = ([value], [content[i], content[i]], [], [content[i], value])[change]
    return content


def _change_text(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice((0, 0, 1, 10, 100)))
    parts = ("\0", "\n", "\r\n", "\r", "\u2028", "[", "]", "{", "}", ",", '"', "'", "\\", "\t", "é", "NaN", "null",
             _DEEP, "9" * 5000, "\ufeff", "\\ud800", "<html>", "//")  # fmt: skip
    whole = ("", " \n", "null", "[]", "{}", "[[]]", "17", '"text"', _DEEP, text * 2, "[" * 100_000, '{"a":' * 100_000,
             text.replace("\n", "\r\n"), text.replace(" ", "\u00a0"), text.replace("\n", "\n\n"))  # fmt: skip
    return rng.choice(whole) if rng.random() < 0.25 else text[:start] + rng.choice(parts) + text[end:]


def _change_bytes(rng: random.Random, data: bytes) -> bytes:
    what = rng.randrange(6)
    if what == 0:
        return b"\xef\xbb\xbf" + data
    if what == 1:
        text = data.decode(errors="replace")
        return text.encode(
            rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")), errors="replace"
        )
    if what == 2:
        return data[: rng.randrange(len(data) + 1)]
    if what == 3:
        lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
        return rng.choice((lfs, b"<!DOCTYPE html>", b"PK\3\4", b"SQLite format 3\0")) + data[: rng.choice((0, 50))]
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)
