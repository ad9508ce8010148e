from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sqlr1_jax.config import ExecuteConfig
from sqlr1_jax.sql import column_order, compare
from sqlr1_jax.sql.compare import canonical_hash, orders_at_top_level
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome

CELLS = st.sampled_from([None, 0, 1, 2, 1.0, 0.5, "1", "a", b"a"])


@st.composite
def tables(draw: Any, rows: int = 5, columns: int = 4) -> list[tuple]:
    width = draw(st.integers(1, columns))
    return draw(st.lists(st.tuples(*[CELLS] * width), max_size=rows))


@st.composite
def table_pairs(draw: Any) -> tuple[list[tuple], list[tuple]]:
    """Two tables of one shape whose columns hold nearly the same cells, so that both answers are common."""
    table = draw(tables())
    assume(table)
    columns = [draw(st.permutations(column)) for column in draw(st.permutations(list(zip(*table, strict=True))))]
    return table, list(zip(*columns, strict=True))


def naive_spider(gold: list[tuple], rows: list[tuple], ordered: bool) -> bool:
    """The definition: some permutation of the columns, tried one after another."""
    if len(gold) != len(rows):
        return False
    if not gold:
        return True
    if len(gold[0]) != len(rows[0]):
        return False
    for order in itertools.permutations(range(len(gold[0]))):
        permuted = [tuple(row[i] for i in order) for row in rows]
        if permuted == gold if ordered else Counter(permuted) == Counter(gold):
            return True
    return False


@given(table_pairs(), st.booleans())
def test_spider_is_its_definition(pair: tuple[list[tuple], list[tuple]], ordered: bool) -> None:
    assert compare.compare("spider", *pair, ordered) == naive_spider(*pair, ordered)


@given(tables(), tables(), st.booleans())
def test_spider_of_any_two_tables(gold: list[tuple], rows: list[tuple], ordered: bool) -> None:
    assert compare.compare("spider", gold, rows, ordered) == naive_spider(gold, rows, ordered)


@given(tables(), st.randoms())
def test_spider_heeds_row_order_only_when_ordered(table: list[tuple], random: Any) -> None:
    shuffled = list(table)
    random.shuffle(shuffled)
    assert compare.compare("spider", table, shuffled, ordered=False)
    if shuffled[::-1] != shuffled and len({repr(row) for row in table}) == len(table):
        one_column = [row[:1] for row in table]
        same = [row[:1] for row in shuffled] == one_column
        assert compare.compare("spider", one_column, [row[:1] for row in shuffled], ordered=True) == same


@pytest.mark.parametrize(
    ("gold", "rows", "equal"),
    [
        ([(1,)], [(1.0,)], True),
        ([(1, 1.5)], [(1.0, 1.5)], True),  # the official pre-check says no (oracles, quirk 6)
        ([(1,)], [("1",)], False),
        ([(None,)], [("None",)], False),
        ([(None,)], [(None,)], True),
        ([(None,)], [("",)], False),
        ([("a",)], [(b"a",)], False),
        ([(0.3,)], [(0.1 + 0.2,)], False),
        ([(9007199254740993,)], [(9007199254740992.0,)], False),
        ([(math.inf,)], [(math.inf,)], True),
        ([], [], True),
        ([(None,)], [], False),
        ([(1,), (1,)], [(1,)], False),
        ([(1, 2)], [(2, 1)], True),
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], False),
    ],
)
def test_spider_cells(gold: list[tuple], rows: list[tuple], equal: bool) -> None:
    assert compare.compare("spider", gold, rows, ordered=False) is equal


# Incidence matrices (edges × vertices) of two graphs. In both, all rows look alike, and so do all columns.
RING = [tuple(int(vertex in (edge, (edge + 1) % 6)) for vertex in range(6)) for edge in range(6)]
TRIANGLES = [tuple(int(v // 3 == e // 3 and v % 3 != e % 3) for v in range(6)) for e in range(6)]


def test_spider_distinguishes_results_whose_rows_and_columns_all_look_alike() -> None:
    permuted = [tuple(row[i] for i in (3, 1, 5, 0, 4, 2)) for row in RING]
    assert compare.compare("spider", RING, permuted, ordered=False)
    assert not compare.compare("spider", RING, TRIANGLES, ordered=False)
    assert not naive_spider(RING, TRIANGLES, ordered=False)


def test_defect_06_order_by_in_window_or_subquery_is_no_order() -> None:
    window = "SELECT name, rank() OVER (ORDER BY age DESC) FROM dogs"
    subquery = "SELECT name FROM (SELECT name FROM dogs ORDER BY age LIMIT 3)"
    assert not orders_at_top_level(window)
    assert not orders_at_top_level(subquery)
    for gold in (window, subquery):
        assert compare.compare("spider", [("a",), ("b",)], [("b",), ("a",)], orders_at_top_level(gold))
    ordering = "SELECT name FROM dogs ORDER BY age"
    assert not compare.compare("spider", [("a",), ("b",)], [("b",), ("a",)], orders_at_top_level(ordering))


def test_defect_07_distinct_and_duplicates_count() -> None:
    """DISTINCT is stripped from neither side: a result with its duplicates is another result."""
    assert not compare.compare("spider", [("red",), ("black",)], [("red",), ("red",), ("black",)], ordered=False)
    assert not compare.compare("spider", [("red",), ("red",)], [("red",), ("black",)], ordered=False)


@pytest.mark.parametrize("columns", [9, 20, 200])
def test_defect_08_many_equal_columns_take_no_time(columns: int) -> None:
    gold = [tuple((i + j) % 3 == 0 for j in range(columns)) for i in range(30)]
    same = [tuple(row[(7 * j) % columns] for j in range(columns)) for row in gold[::-1]] if columns % 7 else gold
    other = [*same[:-1], tuple(not cell for cell in same[-1])]
    start = time.perf_counter()
    assert compare.compare("spider", gold, same, ordered=False)
    assert not compare.compare("spider", gold, other, ordered=False)
    assert compare.compare("spider", [(1,) * columns], [(1,) * columns], ordered=False)
    assert time.perf_counter() - start < 2.0


def test_defect_08_the_search_ends_where_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted = [tuple(row[i] for i in (3, 1, 5, 0, 4, 2)) for row in RING]
    monkeypatch.setattr(column_order, "SEARCH_BUDGET", 10)
    assert not compare.compare("spider", RING, permuted, ordered=False)


def test_bird_compares_sets_of_rows() -> None:
    assert compare.compare("bird", [(1, 2), (1, 2)], [(1, 2)], ordered=True)
    assert compare.compare("bird", [(1,), (2,)], [(2,), (1,)], ordered=True)
    assert not compare.compare("bird", [(1, 2)], [(2, 1)], ordered=False)
    assert compare.compare("bird", [], [], ordered=False)


@pytest.mark.parametrize(
    ("gold", "rows", "ordered", "equal"),
    [
        ([(1.0,)], [(1.0 + 5e-7,)], False, True),
        ([(1.0,)], [(1.0 + 5e-6,)], False, False),
        ([(0.1 + 0.2, "a")], [(0.3, "a")], False, True),
        ([(0.3, "a")], [(0.3, "b")], False, False),
        ([(1, 2)], [(2, 1)], False, False),
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (2.0000001,)], [(1,), (2,)], True, True),
        ([(1,), (1,)], [(1,)], False, False),
        ([(1, 2)], [(1,)], False, False),
        ([(0.3, 5), (0.1 + 0.2, 7)], [(0.1 + 0.2, 5), (0.3, 7)], False, True),  # sorting alone misses it
        ([(0.3, 5), (0.1 + 0.2, 7)], [(0.1 + 0.2, 5), (0.3, 8)], False, False),
        ([(math.inf,)], [(math.inf,)], False, True),
        ([(None, 1.0)], [(None, 1)], False, True),
        ([], [], False, True),
    ],
)
def test_strict(gold: list[tuple], rows: list[tuple], ordered: bool, equal: bool) -> None:
    assert compare.compare("strict", gold, rows, ordered) is equal


NEAR = st.sampled_from([1.0, 1.0 + 4e-7, 1.0 + 8e-7, 1.0 + 12e-7, 2.0])


@given(st.lists(st.tuples(NEAR, NEAR), min_size=1, max_size=5), st.data())
def test_strict_finds_a_pairing_if_one_exists(gold: list[tuple], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(NEAR, NEAR), min_size=len(gold), max_size=len(gold)))

    def close(row: tuple, other: tuple) -> bool:
        return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(row, other, strict=True))

    naive = any(all(map(close, gold, order)) for order in itertools.permutations(rows))
    assert compare.compare("strict", gold, rows, ordered=False) == naive


@pytest.mark.parametrize(
    ("gold", "rows", "score"),
    [
        ([], [], 1.0),
        ([(1,)], [], 0.0),
        ([], [(1,)], 0.0),
        ([(1, 2)], [(2, 1)], 1.0),
        ([(1, 2)], [(1, 3)], 0.5),
        ([(1,), (1,), (2,)], [(1,), (2,)], 1.0),
        ([(1,), (2,)], [(1,)], 2 / 3),
        ([(1,)], [(1, 5)], 2 / 3),
    ],
)
def test_soft_f1(gold: list[tuple], rows: list[tuple], score: float) -> None:
    assert compare.compare("soft_f1", gold, rows, ordered=False) == pytest.approx(score, abs=1e-12)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="spidre"):
        compare.compare("spidre", [], [], ordered=False)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t order\n  by a LIMIT 1", True),
        ("SELECT a FROM t ORDER /* x */ BY a", True),
        ("SELECT 1 UNION SELECT 2 ORDER BY 1", True),
        ("WITH x AS (SELECT 1 a) SELECT a FROM x ORDER BY a;", True),
        ("SELECT (SELECT a FROM t ORDER BY a LIMIT 1)", False),
        ("SELECT sum(a) OVER (PARTITION BY b ORDER BY c) FROM t", False),
        ("SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY c)", False),
        ("SELECT a FROM t WHERE b = 'order by'", False),
        ("SELECT a FROM t WHERE b = 'it''s (' ORDER BY a", True),
        ('SELECT a AS "order by" FROM t', False),
        ("SELECT [order by], `order by` FROM t", False),
        ("SELECT a FROM t -- order by a", False),
        ("SELECT a FROM t /* ORDER BY a */", False),
        ("SELECT a FROM t -- )\nORDER BY a", True),
        ("SELECT border, bystander FROM t", False),
        ("", False),
    ],
)
def test_orders_at_top_level(sql: str, ordered: bool) -> None:
    assert orders_at_top_level(sql) is ordered


def test_orders_at_top_level_as_a_parser_sees_it(shared_data: Path) -> None:
    """Against sqlglot's tree, on every SynSQL gold of the sample and some of Spider's."""
    sqlglot = pytest.importorskip("sqlglot")
    golds = [record["sql"] for record in json.loads((shared_data / "synsql_sample/data.json").read_text())][::4]
    golds += [record["query"] for record in json.loads((shared_data / "spider_train/train_spider.json").read_text())][
        ::20
    ]
    checked = 0
    for gold in golds:
        try:
            tree = sqlglot.parse_one(gold, read="sqlite")
        except sqlglot.errors.SqlglotError:
            continue
        assert orders_at_top_level(gold) == bool(tree.args.get("order")), gold
        checked += 1
    assert checked > 450


@given(tables(), st.randoms())
def test_hashes_agree_for_equal_multisets(table: list[tuple], random: Any) -> None:
    shuffled = [tuple(float(cell) if cell in (1, 2) else cell for cell in row) for row in table]
    random.shuffle(shuffled)
    assert canonical_hash(shuffled) == canonical_hash(table)
    assert len(canonical_hash(table)) == 32


@given(tables(), tables())
def test_hashes_differ_for_other_multisets(table: list[tuple], other: list[tuple]) -> None:
    assert (canonical_hash(table) == canonical_hash(other)) == (Counter(table) == Counter(other))


def test_hash_keeps_bytes_that_are_no_text_apart() -> None:
    assert canonical_hash([("\udcff",)]) != canonical_hash([("\udcfe",)])


@pytest.mark.parametrize(
    ("gold", "rows", "share"),
    [
        ([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], 1.0),
        ([(1,), (1,), (2,)], [(1,), (2,)], 0.8),
        ([(1,)], [(1, 2, 3)], 0.5),
        ([(1,)], [("1",)], 0.0),
        ([], [], 1.0),
        ([], [(1,)], 0.0),
    ],
)
def test_cell_overlap_is_the_f1_of_cells(gold: list[tuple], rows: list[tuple], share: float) -> None:
    assert compare.cell_overlap(gold, rows) == compare.cell_overlap(rows, gold) == pytest.approx(share)


@given(tables(), tables(), st.integers(1, 6))
def test_cell_overlap_of_large_results_is_counted_in_parts(gold: list[tuple], rows: list[tuple], cells: int) -> None:
    whole = compare.cell_overlap(gold, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "CELLS_PER_PART", cells)
        assert compare.cell_overlap(gold, rows) == whole


@given(tables(rows=3), tables(rows=3))
def test_soft_f1_of_wide_rows_is_that_of_narrow_ones(gold: list[tuple], rows: list[tuple]) -> None:
    narrow = compare.compare("soft_f1", gold, rows, ordered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "WIDE_ROW", 0)
        assert compare.compare("soft_f1", gold, rows, ordered=False) == narrow


VERDICTS = {"spider": "spider_ts_keep_distinct", "bird": "bird_ex", "soft_f1": "bird_soft_f1"}


def intended(rule: str, pair: dict[str, Any], outcome: Outcome) -> str:
    """The reason why we differ from the official code on purpose, or "". Numbers are quirks in the oracles' README."""
    if rule == "spider" and ("order by" in pair["gold"].lower()) != orders_at_top_level(pair["gold"]):
        return "1: ORDER BY is looked for in the text"
    if rule == "spider" and re.search(r"[<>!] =|CURDATE", pair["gold"] + pair["pred"]):
        return "7: texts are repaired"
    if rule == "spider" and outcome.kind == "match" and not pair[VERDICTS[rule]]:
        return "6: 1 and 1.0 differ in wide rows"
    if "cast(x'ff" in (pair["gold"] + pair["pred"]).lower():
        return "8, 16: bytes that are not text"
    if outcome.kind == "denied":
        return "12, 14, 15: writes and pragmas run"
    if "there is no statement" in outcome.message:
        return "4, 15: no statement passes for an empty result"
    return ""


def disagreements(folder: Path, every: int) -> dict[str, Counter[str]]:
    """Pairs on which a rule differs from the official verdict, counted by reason."""
    lines = (folder / "oracles/evaluator_oracle.jsonl").read_text().splitlines()
    pairs = [pair for pair in map(json.loads, lines[::every]) if pair["spider_ts_keep_distinct"] is not None]
    found: dict[str, Counter[str]] = {rule: Counter() for rule in VERDICTS}
    with Executor(ExecuteConfig(max_steps=200_000_000)) as executor:
        futures = [
            (rule, pair, executor.submit(folder / pair["db_path"], pair["pred"], pair["gold"], rule))
            for pair in pairs
            for rule in VERDICTS
        ]
        for rule, pair, future in futures:
            outcome = future.result()
            right = outcome.score if rule == "soft_f1" else float(outcome.kind.correct)
            if abs(right - float(pair[VERDICTS[rule]])) > 1e-9:
                found[rule][intended(rule, pair, outcome) or f"{pair['id']}: {outcome.kind}"] += 1
    return found


def check(found: dict[str, Counter[str]]) -> None:
    unexplained = [reason for reasons in found.values() for reason in reasons if not reason[0].isdigit()]
    assert unexplained == []


def test_agrees_with_the_official_evaluators_except_for_their_quirks(shared_data: Path) -> None:
    check(disagreements(shared_data, every=7))


@pytest.mark.nightly
def test_agrees_with_the_official_evaluators_on_every_pair(shared_data: Path) -> None:
    found = disagreements(shared_data, every=1)
    check(found)
    assert found["spider"]["6: 1 and 1.0 differ in wide rows"] < 20
    assert sum(found["bird"].values()) < 50
    assert sum(found["soft_f1"].values()) < 50
