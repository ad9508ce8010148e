from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax import config
from sqlr1_jax.data import answer
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.rl import reward
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

PAPER = config.RewardConfig(empty_match="match")
GOOD = answer.read(answer.write("tables dogs", "SELECT 1", "reasoning"), "reasoning")
DIRECT = answer.read(answer.write("", "SELECT 1", "direct"), "direct")
RUNNABLE = [kind for kind in OutcomeKind if kind.well_formed and kind != OutcomeKind.OK]
MATCH = Outcome(OutcomeKind.MATCH)


def test_each_part_is_multiplied_by_its_weight() -> None:
    settings = config.RewardConfig(format=0.5, execution=0.0, result=2.0, length=0.1)
    assert reward.part_weights(settings).tolist() == pytest.approx([0.5, 0.0, 2.0, 0.1])
    plain = reward.weighted_parts(GOOD, MATCH, config.RewardConfig())
    np.testing.assert_allclose(
        reward.weighted_parts(GOOD, MATCH, settings), plain * reward.part_weights(settings), rtol=1e-6
    )


def _by_the_table(parsed: Answer, kind: OutcomeKind) -> tuple[float, float, float, float]:
    """The table of docs/method.md, section 3, row by row."""
    if parsed.problem:
        return -1, 0, 0, 0
    if kind in ("syntax_error", "runtime_error", "timeout", "denied", "gold_error"):
        return 1, -2, 0, 0
    if kind in ("mismatch", "too_large"):
        return 1, 2, -3, 0
    length = len(parsed.think) + len(parsed.answer)
    return 1, 2, 3, 0.5 * min(length / 2048, 1) + len(parsed.sql or "") / len(parsed.answer)


@pytest.mark.parametrize("kind", RUNNABLE)
@pytest.mark.parametrize("parsed", [GOOD, DIRECT], ids=["reasoning", "direct"])
def test_each_outcome_gets_the_reward_of_the_papers_table(parsed: Answer, kind: OutcomeKind) -> None:
    values = reward.weighted_parts(parsed, Outcome(kind), PAPER)
    np.testing.assert_array_equal(values, np.array(_by_the_table(parsed, kind), np.float32))


@pytest.mark.parametrize("problem", [OutcomeKind.NO_SQL, OutcomeKind.BAD_FORMAT])
def test_a_badly_formed_answer_gets_minus_one_in_total(problem: OutcomeKind) -> None:
    parsed = Answer("thought", "words", None, problem)
    np.testing.assert_array_equal(reward.weighted_parts(parsed, Outcome(problem), PAPER), [-1, 0, 0, 0])


@given(st.text(max_size=3000), st.text(min_size=1, max_size=3000))
def test_right_answers_get_between_6_and_7_5(think: str, sql: str) -> None:
    parsed = Answer(think, f"```sql\n{sql}\n```", sql)
    total = float(reward.weighted_parts(parsed, MATCH, PAPER).sum())
    assert 6 <= total < 7.5
    assert total == pytest.approx(sum(_by_the_table(parsed, OutcomeKind.MATCH)), rel=1e-6)


def test_a_worse_outcome_never_gets_more() -> None:
    def total(kind: OutcomeKind, parsed: Answer = GOOD) -> float:
        return float(reward.weighted_parts(parsed, Outcome(kind), PAPER).sum())

    assert total(OutcomeKind.MATCH) > total(OutcomeKind.MISMATCH) > total(OutcomeKind.SYNTAX_ERROR)
    assert total(OutcomeKind.MISMATCH) == total(OutcomeKind.TOO_LARGE) == 0
    no_sql = Answer("", "", None, OutcomeKind.NO_SQL)
    assert total(OutcomeKind.TIMEOUT) == total(OutcomeKind.NO_SQL, no_sql) == -1


def test_an_empty_match_is_a_mismatch_unless_empty_match_is_match() -> None:
    empty = Outcome(OutcomeKind.MATCH_EMPTY)
    np.testing.assert_array_equal(reward.weighted_parts(GOOD, empty, config.RewardConfig()), [1, 2, -3, 0])
    np.testing.assert_array_equal(reward.weighted_parts(GOOD, empty, PAPER), reward.weighted_parts(GOOD, MATCH, PAPER))
    assert not reward.correct(empty, config.RewardConfig())
    assert reward.correct(empty, PAPER)


@pytest.mark.parametrize("kind", OutcomeKind)
def test_by_default_only_match_is_correct(kind: OutcomeKind) -> None:
    assert reward.correct(Outcome(kind), config.RewardConfig()) == (kind == OutcomeKind.MATCH)


@given(*[st.floats(0, 3, width=32)] * 4, st.sampled_from(RUNNABLE))
def test_a_weight_scales_only_its_part(a: float, b: float, c: float, d: float, kind: OutcomeKind) -> None:
    weighted = reward.weighted_parts(GOOD, Outcome(kind), config.RewardConfig(a, b, c, d))
    np.testing.assert_allclose(
        weighted, reward.weighted_parts(GOOD, Outcome(kind), config.RewardConfig()) * [a, b, c, d], rtol=1e-6
    )


@pytest.mark.parametrize(("name", "position"), zip(reward.PAPER_PARTS, itertools.count()))
def test_a_part_with_weight_zero_is_zero_for_every_outcome(name: str, position: int) -> None:
    weights: dict[str, Any] = {name: 0.0}
    settings = config.RewardConfig(**weights)
    values = np.array([reward.weighted_parts(GOOD, Outcome(kind), settings) for kind in RUNNABLE])
    full = np.array([reward.weighted_parts(GOOD, Outcome(kind), config.RewardConfig()) for kind in RUNNABLE])
    assert not values[:, position].any()
    np.testing.assert_array_equal(np.delete(values, position, 1), np.delete(full, position, 1))


def test_length_is_measured_by_the_given_function() -> None:
    parsed = Answer("a b c", "d e\nf", "e")  # words: 3 + 3, sql 1
    values = reward.weighted_parts(parsed, MATCH, PAPER, measure=lambda text: len(text.split()))
    assert values[3] == pytest.approx(1 / 3 + 0.5 * 6 / 2048)
    assert reward.weighted_parts(parsed, MATCH, PAPER)[3] == pytest.approx(1 / 5 + 0.5 * 10 / 2048)


def test_length_is_capped_at_2048() -> None:
    parsed = Answer("x" * 5000, "SELECT 1", "SELECT 1")
    assert reward.weighted_parts(parsed, MATCH, PAPER)[3] == 1.5


def test_arctic_gives_a_tenth_to_wrong_sql_that_runs() -> None:
    settings = config.RewardConfig(format=0, execution=0, result=0, length=0, arctic=1.0)
    assert reward.part_names(settings) == (*reward.PAPER_PARTS, "arctic")
    values = {kind: float(reward.weighted_parts(GOOD, Outcome(kind), settings).sum()) for kind in RUNNABLE}
    assert {kind for kind, value in values.items() if value == 1} == {"match"}
    tenth = {kind for kind, value in values.items() if value == pytest.approx(0.1)}
    assert tenth == {"match_empty", "mismatch", "too_large"}
    assert {value for kind, value in values.items() if kind not in tenth | {"match"}} == {0}
    assert (
        float(
            reward.weighted_parts(Answer("", "", None, OutcomeKind.NO_SQL), Outcome(OutcomeKind.NO_SQL), settings).sum()
        )
        == 0
    )


def test_overlap_is_the_shared_cells_of_sql_that_ran() -> None:
    settings = config.RewardConfig(overlap=2.0)
    assert reward.weighted_parts(GOOD, Outcome(OutcomeKind.MISMATCH, overlap=0.4), settings)[4] == pytest.approx(0.8)
    assert reward.weighted_parts(GOOD, Outcome(OutcomeKind.TIMEOUT, overlap=0.0), settings)[4] == 0
    assert reward.weighted_parts(GOOD, Outcome(OutcomeKind.MATCH_EMPTY, overlap=1.0), settings)[4] == 0
    paper = config.RewardConfig(overlap=2.0, empty_match="match")
    assert reward.weighted_parts(GOOD, Outcome(OutcomeKind.MATCH_EMPTY, overlap=1.0), paper)[4] == 2


@pytest.mark.parametrize(
    ("sql", "recall"),
    [
        ("SELECT color FROM dogs WHERE age > 3", 3 / 3),
        ("select COLOR from DOGS", 2 / 3),
        ("SELECT d.age FROM dogs AS d", 2 / 3),
        ("SELECT name FROM cats", 0),
        ("WITH dogs2 AS (SELECT age FROM dogs) SELECT age FROM dogs2", 2 / 3),
        ("SELECT FROM WHERE", 0),
        ("", 0),
    ],
)
def test_schema_recall_is_the_share_of_golds_tables_and_columns(sql: str, recall: float) -> None:
    gold = "SELECT T1.color AS shown FROM dogs AS T1 WHERE T1.age > 3 ORDER BY shown"
    assert reward.schema_items(gold) == {("table", "dogs"), ("column", "color"), ("column", "age")}
    assert reward.schema_recall(sql, gold) == pytest.approx(recall)
    parsed = Answer("t", f"```sql\n{sql}\n```", sql)
    values = reward.weighted_parts(
        parsed, Outcome(OutcomeKind.MISMATCH), config.RewardConfig(schema_recall=3.0), gold_sql=gold
    )
    assert values.tolist() == pytest.approx([1, 2, -3, 0, 3 * recall])


@pytest.mark.parametrize(
    ("sql", "agreement"),
    [
        ("SELECT color FROM dogs WHERE age > 3", 1),
        ("SELECT color FROM dogs", 2 / 3),
        ("SELECT color FROM dogs WHERE age > 3 AND age < 9", (1 + 1 + 2 / 3) / 3),
        ("SELECT FROM WHERE", 0),
    ],
)
def test_clauses_is_the_agreement_with_the_gold_query(sql: str, agreement: float) -> None:
    gold = "SELECT T1.color FROM dogs AS T1 WHERE T1.age > 3"
    settings = config.RewardConfig(clauses=2.0)
    assert reward.part_names(settings) == (*reward.PAPER_PARTS, "clauses")
    parsed = Answer("t", f"```sql\n{sql}\n```", sql)
    for kind, paper in ((OutcomeKind.MISMATCH, [1, 2, -3, 0]), (OutcomeKind.RUNTIME_ERROR, [1, -2, 0, 0])):
        values = reward.weighted_parts(parsed, Outcome(kind), settings, gold_sql=gold)
        assert values.tolist() == pytest.approx([*paper, 2 * agreement])
    unreadable = Answer("t", sql, sql, OutcomeKind.BAD_FORMAT)
    values = reward.weighted_parts(unreadable, Outcome(OutcomeKind.BAD_FORMAT), settings, gold_sql=gold)
    assert values.tolist() == [-1, 0, 0, 0, 0]
    assert reward.weighted_parts(parsed, MATCH, settings, gold_sql="SELEC color").tolist()[4] == 0
