from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config, config_tree
from sqlr1_jax.data import answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.evaluate.accuracy import Candidate
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind


def _example(pets: Path, sql: str, number: int = 0) -> Example:
    return Example(f"item-{number}", "pets", pets, "How many dogs are red?", sql)


def _execute(executor: Executor, example: Example, *sqls: str) -> list[Candidate]:
    texts = [answer.write("thought", sql, "reasoning") for sql in sqls]
    return accuracy.execute_candidates(executor, [example], [texts], "reasoning", "spider")[0]


def test_correctness_agrees_with_sqlite(executor: Executor, pets: Path) -> None:
    example = _example(pets, "SELECT count(*) FROM dogs WHERE color = 'red'")
    queries = {
        "SELECT 2": True,
        "SELECT sum(color = 'red') FROM dogs": True,
        "SELECT count(*) FROM dogs": False,
        "SELECT code FROM dogs WHERE color = 'red'": False,
        "SELECT count(*) FROM cats": False,
    }
    with closing(sqlite3.connect(pets)) as connection:
        gold = connection.execute(example.sql).fetchall()
        for sql, right in queries.items():
            if "cats" not in sql:
                assert (connection.execute(sql).fetchall() == gold) == right
    candidates = _execute(executor, example, *queries)
    assert [candidate.correct for candidate in candidates] == list(queries.values())
    assert [candidate.sql for candidate in candidates] == list(queries)
    assert candidates[-1].outcome.kind == "syntax_error"


def test_defect_12_predictions_run_with_their_own_values_not_golds(executor: Executor, pets: Path) -> None:
    """The question's value is 'red'. Predictions with another value, or none, must run unchanged."""
    example = _example(pets, "SELECT name FROM (SELECT code AS name FROM dogs WHERE color = 'red' AND age > 3)")
    wrong = (
        "SELECT code FROM dogs WHERE color = 'value' AND age > 3",
        "SELECT code FROM dogs WHERE color = 'terminal' AND age > 1",
        "SELECT code FROM dogs WHERE color = 'black' AND age > 3",
        "SELECT code FROM dogs WHERE color = 'red' AND age > 30",
    )
    candidates = _execute(executor, example, *wrong, "SELECT code FROM dogs WHERE color = 'red' AND age > 3")
    assert [candidate.correct for candidate in candidates] == [False, False, False, False, True]
    assert [candidate.sql for candidate in candidates[:4]] == list(wrong)
    with closing(sqlite3.connect(pets)) as connection:
        for candidate in candidates:
            assert candidate.sql is not None
            assert [list(row) for row in candidate.outcome.rows] == [list(r) for r in connection.execute(candidate.sql)]


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "True"])
def test_defect_12_no_setting_replaces_values_in_predictions(value: str) -> None:
    """No such setting exists, and text is no bool: the released code read `--plug_value false` as true."""
    names = {name for name, _ in config_tree.leaves(config.as_dict(config.Config()))}
    assert not [name for name in names if "plug" in name or "value" in name.rpartition(".")[2]]
    with pytest.raises(ConfigError, match="does not exist"):
        config.freeze({"evaluate": {"plug_value": value}})
    with pytest.raises(ConfigError, match="it takes a bool"):
        config.freeze({"grpo": {"advantage": {"shuffled": value}}})


def test_two_empty_results_are_equal_in_evaluation(executor: Executor, pets: Path) -> None:
    [candidate] = _execute(executor, _example(pets, "SELECT code FROM dogs WHERE age > 90"), "SELECT 1 WHERE 0")
    assert candidate.outcome.kind == "match_empty"
    assert candidate.correct


def test_a_failing_gold_query_counts_as_wrong_with_its_own_outcome(executor: Executor, pets: Path) -> None:
    [candidate] = _execute(executor, _example(pets, "SELECT nothing FROM nowhere"), "SELECT 1")
    assert (candidate.outcome.kind, candidate.correct) == ("gold_error", False)
    assert accuracy.count_outcomes([candidate.outcome.kind]) == {"gold_error": 1}


@pytest.mark.parametrize("form", answer.FORMATS)
def test_accuracy_is_of_the_sql_that_an_answer_holds_in_any_form(executor: Executor, pets: Path, form: str) -> None:
    example = _example(pets, "SELECT 1")
    block, whole = answer.write("", "SELECT 1", "direct"), answer.write("why", "SELECT 1", "reasoning")
    texts = [whole, block, whole.removesuffix("\n</answer>"), "SELECT 1", "I do not know.", ""]
    [candidates] = accuracy.execute_candidates(executor, [example], [texts], form, "spider")
    kinds = ["match"] * 4 + ["no_sql"] * 2
    assert [(c.outcome.kind, c.sql) for c in candidates] == [(k, "SELECT 1" if k == "match" else None) for k in kinds]
    assert [c.text for c in candidates] == texts
    assert [c.well_formed for c in candidates] == [text == (whole if form == "reasoning" else block) for text in texts]


def test_an_opened_reply_is_read_with_what_the_prompt_began(executor: Executor, pets: Path) -> None:
    whole = answer.write("why", "SELECT 1", "reasoning")
    texts = [[whole.removeprefix("<think>\n")], [whole]]
    examples = [_example(pets, "SELECT 1", number) for number in range(2)]
    opened = accuracy.execute_candidates(executor, examples, texts, "reasoning", "spider", ["<think>\n", ""])
    assert [(c.text, c.sql, c.well_formed) for [c] in opened] == [(text, "SELECT 1", True) for [text] in texts]


def test_candidates_are_in_the_order_of_their_texts(executor: Executor, pets: Path) -> None:
    """Many futures, which complete in any order."""
    examples = [_example(pets, f"SELECT {p}", p) for p in range(6)]
    texts = [[answer.write("", f"SELECT {p + g}", "direct") for g in range(4)] for p in range(6)]
    candidates = accuracy.execute_candidates(executor, examples, texts, "direct", "spider")
    assert [[candidate.correct for candidate in group] for group in candidates] == [[True, False, False, False]] * 6
    assert [[candidate.outcome.rows[0][0] for candidate in group] for group in candidates] == [
        [p + g for g in range(4)] for p in range(6)
    ]


def _candidate(kind: str, result: str = "") -> Candidate:
    return Candidate(f"{kind} {result}", "SELECT 1", Outcome(OutcomeKind(kind), result_hash=result), kind == "match")


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=9))
def test_the_vote_winner_is_the_first_of_the_largest_group(results: list[str]) -> None:
    candidates = [_candidate("mismatch" if result else "syntax_error", result) for result in results]
    voters = [result for result in results if result]
    chosen = accuracy.vote_winner(candidates)
    if not voters:
        assert chosen is candidates[0]
        return
    most = max(voters.count(result) for result in voters)
    first = next(result for result in voters if voters.count(result) == most)
    assert chosen is candidates[results.index(first)]


def test_accuracy_by_label_covers_every_label() -> None:
    examples = [
        Example("0", "a", Path(), "", "", family="count", habit="", complexity="Simple", style="Vague"),
        Example("1", "a", Path(), "", "", family="top_k", habit="extra_column", complexity="Complex", style="Vague"),
        Example("2", "b", Path(), "", "", family="top_k", habit="", complexity="Complex", style="Concise"),
    ]
    summary = accuracy.accuracy_by_label(examples, [True, False, True])
    low, high = summary["all"].pop("interval")
    assert low <= 2 / 3 <= high
    assert summary == {
        "all": {"n": 3, "ex": 2 / 3},
        "by_family": {"count": {"n": 1, "ex": 1.0}, "top_k": {"n": 2, "ex": 0.5}},
        "by_habit": {"": {"n": 2, "ex": 1.0}, "extra_column": {"n": 1, "ex": 0.0}},
        "by_complexity": {"Complex": {"n": 2, "ex": 0.5}, "Simple": {"n": 1, "ex": 1.0}},
        "by_style": {"Concise": {"n": 1, "ex": 1.0}, "Vague": {"n": 2, "ex": 0.5}},
    }


def test_the_fraction_of_no_flags_is_nan() -> None:
    assert accuracy.fraction_correct([True, False, False, True]) == 0.5
    assert np.isnan(accuracy.fraction_correct([]))


def _pair(seed: int, databases: int, gain: float) -> tuple[dict[str, bool], dict[str, bool], dict[str, str]]:
    rng = np.random.default_rng(seed)
    names = [f"{d}-{i}" for d in range(databases) for i in range(5)]
    shift = {d: gain + rng.normal(scale=0.1) for d in range(databases)}
    before = {name: bool(rng.random() < 0.5) for name in names}
    after = {name: bool(rng.random() < 0.5 + shift[int(name.split("-")[0])]) for name in names}
    return before, after, {name: name.split("-")[0] for name in names}


def test_the_clustered_mean_weights_items_and_resamples_databases() -> None:
    values = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.0}
    mean, low, high = accuracy.clustered_mean(values, {"a": "x", "b": "x", "c": "y", "d": "y"})
    assert (mean, low, high) == (0.375, 0.0, 0.75)
    assert accuracy.clustered_mean(values, dict.fromkeys(values, "x")) == (0.375, 0.375, 0.375)


def test_the_paired_gain_equals_the_difference_of_accuracies() -> None:
    before, after, cluster = _pair(0, 20, 0.2)
    gain, low, high = accuracy.paired_gain(before, after, cluster)
    assert gain == pytest.approx(np.mean(list(after.values())) - np.mean(list(before.values())))
    assert low < gain < high
    assert accuracy.paired_gain(before, after, cluster) == (gain, low, high)
    assert accuracy.paired_gain(before, before, cluster) == (0, 0, 0)


def test_the_interval_equals_a_plain_bootstrap_over_databases() -> None:
    """Compared with a plain loop that draws whole databases, and with the textbook standard error."""
    before, after, cluster = _pair(1, 40, 0.2)
    gain, low, high = accuracy.paired_gain(before, after, cluster, draws=5000)
    gains = {c: [int(after[i]) - int(before[i]) for i in before if cluster[i] == c] for c in set(cluster.values())}
    rng, drawn = np.random.default_rng(5), []
    for _ in range(5000):
        picked = [gains[c] for c in rng.choice(sorted(gains), len(gains))]
        drawn.append(np.mean([gain_of_item for group in picked for gain_of_item in group]))
    np.testing.assert_allclose([low, high], np.percentile(drawn, [2.5, 97.5]), atol=0.015)
    error = np.std([np.mean(group) for group in gains.values()], ddof=1) / np.sqrt(len(gains))
    np.testing.assert_allclose([low, high], [gain - 1.96 * error, gain + 1.96 * error], atol=0.02)


def test_the_interval_widens_if_items_of_a_database_agree() -> None:
    """All 9 items of a database have the same gain: the interval is about sqrt(9) times as wide."""
    names = [f"{d}-{i}" for d in range(40) for i in range(9)]
    before = dict.fromkeys(names, False)
    after = {name: int(name.split("-")[0]) % 2 == 0 for name in names}
    clustered = accuracy.paired_gain(before, after, {name: name.split("-")[0] for name in names})
    independent = accuracy.paired_gain(before, after, {name: name for name in names})
    assert (clustered[2] - clustered[1]) / (independent[2] - independent[1]) == pytest.approx(3, rel=0.2)


def test_evaluations_of_different_items_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="differ in 2 items"):
        accuracy.paired_gain({"a": True}, {"b": True}, {"a": "x", "b": "x"})


def test_an_evaluation_line_has_the_documented_fields_and_survives_json() -> None:
    example = Example("7", "pets", Path(), "q", "SELECT 1", family="count", habit="extra_column", style="Vague")
    chosen, other = _candidate("match", "a"), _candidate("timeout")
    line = accuracy.evaluation_line(example, "heldout", chosen, [chosen, other])
    assert set(line) == {
        "id", "set", "db_id", "question", "gold", "family", "habit", "style", "complexity", "text", "sql", "outcome",
        "well_formed", "candidates",
    }  # fmt: skip
    assert line["well_formed"] is True
    assert line["candidates"] == [
        {"text": c.text, "sql": c.sql, "outcome": c.outcome.kind, "well_formed": c is chosen} for c in (chosen, other)
    ]
    assert "candidates" not in accuracy.evaluation_line(example, "heldout", chosen)
    assert json.loads(json.dumps(line)) == line
