from __future__ import annotations

import dataclasses
import itertools

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
    cfg = config.RewardConfig(format=0.5, execution=0.0, result=2.0, length=0.1)
    assert reward.weights(cfg).tolist() == pytest.approx([0.5, 0.0, 2.0, 0.1])
    plain = reward.parts(GOOD, MATCH, config.RewardConfig())
    np.testing.assert_allclose(reward.parts(GOOD, MATCH, cfg), plain * reward.weights(cfg), rtol=1e-6)


def _by_the_table(said: Answer, kind: OutcomeKind) -> tuple[float, float, float, float]:
    """sql-r1.md §2, row by row."""
    if said.problem:
        return -1, 0, 0, 0
    if kind in ("syntax_error", "runtime_error", "timeout", "denied", "gold_error"):
        return 1, -2, 0, 0
    if kind in ("mismatch", "too_large"):
        return 1, 2, -3, 0
    length = len(said.think) + len(said.answer)
    return 1, 2, 3, 0.5 * min(length / 2048, 1) + len(said.sql or "") / len(said.answer)


@pytest.mark.parametrize("kind", RUNNABLE)
@pytest.mark.parametrize("said", [GOOD, DIRECT], ids=["reasoning", "direct"])
def test_each_outcome_is_paid_by_the_papers_table(said: Answer, kind: OutcomeKind) -> None:
    paid = reward.parts(said, Outcome(kind), PAPER)
    np.testing.assert_array_equal(paid, np.array(_by_the_table(said, kind), np.float32))


@pytest.mark.parametrize("problem", [OutcomeKind.NO_SQL, OutcomeKind.BAD_FORMAT])
def test_an_answer_without_form_costs_one_and_nothing_else(problem: OutcomeKind) -> None:
    said = Answer("thought", "words", None, problem)
    np.testing.assert_array_equal(reward.parts(said, Outcome(problem), PAPER), [-1, 0, 0, 0])


@given(st.text(max_size=3000), st.text(min_size=1, max_size=3000))
def test_rewards_of_right_answers_are_between_6_and_7_5(think: str, sql: str) -> None:
    said = Answer(think, f"```sql\n{sql}\n```", sql)
    total = float(reward.parts(said, MATCH, PAPER).sum())
    assert 6 <= total < 7.5
    assert total == pytest.approx(sum(_by_the_table(said, OutcomeKind.MATCH)), rel=1e-6)


def test_every_worse_outcome_is_paid_less() -> None:
    def total(kind: OutcomeKind, said: Answer = GOOD) -> float:
        return float(reward.parts(said, Outcome(kind), PAPER).sum())

    assert total(OutcomeKind.MATCH) > total(OutcomeKind.MISMATCH) > total(OutcomeKind.SYNTAX_ERROR)
    assert total(OutcomeKind.MISMATCH) == total(OutcomeKind.TOO_LARGE) == 0
    no_sql = Answer("", "", None, OutcomeKind.NO_SQL)
    assert total(OutcomeKind.TIMEOUT) == total(OutcomeKind.NO_SQL, no_sql) == -1


def test_an_empty_match_is_a_mismatch_unless_the_paper_is_asked_for() -> None:
    empty = Outcome(OutcomeKind.MATCH_EMPTY)
    np.testing.assert_array_equal(reward.parts(GOOD, empty, config.RewardConfig()), [1, 2, -3, 0])
    np.testing.assert_array_equal(reward.parts(GOOD, empty, PAPER), reward.parts(GOOD, MATCH, PAPER))
    assert not reward.correct(empty, config.RewardConfig())
    assert reward.correct(empty, PAPER)


@pytest.mark.parametrize("kind", OutcomeKind)
def test_correct_is_match_alone(kind: OutcomeKind) -> None:
    assert reward.correct(Outcome(kind), config.RewardConfig()) == (kind == OutcomeKind.MATCH)


@given(*[st.floats(0, 3, width=32)] * 4, st.sampled_from(RUNNABLE))
def test_a_weight_scales_its_part_alone(a: float, b: float, c: float, d: float, kind: OutcomeKind) -> None:
    weighted = reward.parts(GOOD, Outcome(kind), config.RewardConfig(a, b, c, d))
    np.testing.assert_allclose(
        weighted, reward.parts(GOOD, Outcome(kind), config.RewardConfig()) * [a, b, c, d], rtol=1e-6
    )


@pytest.mark.parametrize(("name", "place"), zip(reward.PAPER, itertools.count()))
def test_a_part_of_weight_zero_is_always_zero(name: str, place: int) -> None:
    cfg = dataclasses.replace(config.RewardConfig(), **{name: 0.0})  # type: ignore[arg-type]
    paid = np.array([reward.parts(GOOD, Outcome(kind), cfg) for kind in RUNNABLE])
    full = np.array([reward.parts(GOOD, Outcome(kind), config.RewardConfig()) for kind in RUNNABLE])
    assert not paid[:, place].any()
    np.testing.assert_array_equal(np.delete(paid, place, 1), np.delete(full, place, 1))


def test_length_is_counted_in_the_chosen_unit() -> None:
    said = Answer("a b c", "d e\nf", "e")  # words: 3 + 3, sql 1
    paid = reward.parts(said, MATCH, PAPER, length=lambda text: len(text.split()))
    assert paid[3] == pytest.approx(1 / 3 + 0.5 * 6 / 2048)
    assert reward.parts(said, MATCH, PAPER)[3] == pytest.approx(1 / 5 + 0.5 * 10 / 2048)


def test_length_is_capped_at_2048() -> None:
    said = Answer("x" * 5000, "SELECT 1", "SELECT 1")
    assert reward.parts(said, MATCH, PAPER)[3] == 1.5


def test_stack_keeps_prompts_samples_and_parts_apart() -> None:
    paid = [[np.full(4, 10 * p + g, np.float32) for g in range(3)] for p in range(2)]
    stacked = reward.stack(paid)
    assert stacked.shape == (2, 3, 4)
    assert stacked.dtype == np.float32
    np.testing.assert_array_equal(stacked[..., 2], [[0, 1, 2], [10, 11, 12]])


def test_arctic_gives_a_tenth_to_queries_that_run() -> None:
    cfg = config.RewardConfig(format=0, execution=0, result=0, length=0, arctic=1.0)
    assert reward.names(cfg) == (*reward.PAPER, "arctic")
    paid = {kind: float(reward.parts(GOOD, Outcome(kind), cfg).sum()) for kind in RUNNABLE}
    assert {kind for kind, value in paid.items() if value == 1} == {"match"}
    tenth = {kind for kind, value in paid.items() if value == pytest.approx(0.1)}
    assert tenth == {"match_empty", "mismatch", "too_large"}
    assert {value for kind, value in paid.items() if kind not in tenth | {"match"}} == {0}
    assert float(reward.parts(Answer("", "", None, OutcomeKind.NO_SQL), Outcome(OutcomeKind.NO_SQL), cfg).sum()) == 0


def test_overlap_rewards_shared_cells_of_queries_that_run() -> None:
    cfg = config.RewardConfig(overlap=2.0)
    assert reward.parts(GOOD, Outcome(OutcomeKind.MISMATCH, overlap=0.4), cfg)[4] == pytest.approx(0.8)
    assert reward.parts(GOOD, Outcome(OutcomeKind.TIMEOUT, overlap=0.0), cfg)[4] == 0
    assert reward.parts(GOOD, Outcome(OutcomeKind.MATCH_EMPTY, overlap=1.0), cfg)[4] == 0
    paper = config.RewardConfig(overlap=2.0, empty_match="match")
    assert reward.parts(GOOD, Outcome(OutcomeKind.MATCH_EMPTY, overlap=1.0), paper)[4] == 2


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
    said = Answer("t", f"```sql\n{sql}\n```", sql)
    paid = reward.parts(said, Outcome(OutcomeKind.MISMATCH), config.RewardConfig(schema_recall=3.0), gold=gold)
    assert paid.tolist() == pytest.approx([1, 2, -3, 0, 3 * recall])
