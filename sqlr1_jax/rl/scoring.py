"""The host's part of a GRPO step: executing completions, rewards and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.data import answer
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, PackedRows, Segment
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import reward
from sqlr1_jax.rollout.request import Completions, FinishedSample
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import log_while_waiting

log = logging.getLogger(__name__)


class StepTimer:
    """Seconds of the sections of a step, by metric name (time/*); a section that comes again adds to its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a section: adds the seconds since the last lap to time/<name>."""
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = self.seconds.get(f"time/{name}", 0.0) + now - self._since
        self._since = now


class CompletionExecutor:
    """Executes a step's completions as they finish, while the sampler is still decoding others.

    Each completion is decoded to text (`texts`), parsed (`answers`), and its SQL is submitted to the pool of SQL
    workers. All three are indexed [prompt][sample].
    """

    def __init__(
        self,
        context: RunContext,
        executor: Executor,
        examples: Sequence[Example],
        samples: int,
        openings: Sequence[str] | None = None,
    ):
        """Takes G samples of each example; `openings` are the `Prompt.opening` of the prompts, None: all empty."""
        self._context, self._executor, self._examples = context, executor, examples
        self._openings = openings or [""] * len(examples)
        empty: list[Any] = [None] * samples
        self.texts: list[list[str]] = [empty.copy() for _ in examples]
        self.answers: list[list[Answer]] = [empty.copy() for _ in examples]
        self._pending: list[list[Future[Outcome]]] = [empty.copy() for _ in examples]
        self._error: Exception | None = None
        self._first_submitted = self._last_done = 0.0

    def submit(self, finished: Sequence[FinishedSample]) -> None:
        """Decodes and parses completions, and submits their SQL; the sampler's `on_finished` callback.

        An exception is stored and raised by `wait`. If it were raised here, this process's sampler would stop, and all
        other processes would block in their next collective.
        """
        try:
            texts = self._context.texts([sample.ids for sample in finished])  # one call: batched decoding is cheaper
            for (prompt, sample, ids), text in zip(finished, texts, strict=True):
                stopped = bool(len(ids)) and int(ids[-1]) in self._context.stop_ids
                parsed = self._read(self._openings[prompt] + text, stopped)
                self.texts[prompt][sample], self.answers[prompt][sample] = text, parsed
                self._pending[prompt][sample] = self._submit_answer(self._examples[prompt], parsed)
        except Exception as error:
            self._error = self._error or error

    def _read(self, text: str, stopped: bool) -> Answer:
        config = self._context.config
        return answer.read(text, config.data.form, config.grpo.reward.open_answer and stopped)

    def _submit_answer(self, example: Example, parsed: Answer) -> Future[Outcome]:
        """Submits one answer and returns the Future of its outcome.

        An answer without SQL runs nothing, so `seconds` does not count it.
        """
        if not parsed.problem:
            self._first_submitted = self._first_submitted or time.perf_counter()
        rule = self._context.config.grpo.reward.rule
        future = submit_answer(self._executor, parsed, example.database, example.sql, rule)
        if not parsed.problem:
            future.add_done_callback(self._record_done)
        return future

    def _record_done(self, _: Future[Outcome]) -> None:
        self._last_done = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds from the first submitted query to the last result."""
        return max(0.0, self._last_done - self._first_submitted)

    def wait(self) -> list[list[Outcome]]:
        """Waits for all results and returns their outcomes, [prompt][sample]; raises what failed in `submit`."""
        if self._error is not None:
            raise self._error
        with log_while_waiting("SQL results"):
            return [[future.result() for future in group] for group in self._pending]


def completion_groups(prompts: Sequence[Prompt], completions: Completions, first: int = 0) -> list[Group]:
    """One group per prompt, for packing into rows, with the sampler's log-probabilities.

    prefix     prompt[:-1]
    segment g  prompt[-1], completion g         (its targets are the tokens of completion g)

    `first` is the number of the first prompt among those of the step.
    """

    def segment(p: int, g: int) -> Segment:
        ids = completions.ids(p, g)
        tokens = np.concatenate([prompts[p].ids[-1:], ids])
        logprob = completions.logprobs_PGT[p, g, : len(ids)]
        return Segment(tokens, np.ones(len(ids), np.float32), logprob, first + p, g)

    P, G = completions.length_PG.shape
    return [Group(prompts[p].ids[:-1], [segment(p, g) for g in range(G)]) for p in range(P)]


class Rewards(NamedTuple):
    """Rewards of a step's completions, and the other numbers that advantages and metrics need.

    Every field is an array with P as its first axis, so that processes can exchange it.
    """

    rewards_PGR: npt.NDArray[np.float32]  # weighted parts, in the order of reward.part_names
    correct_PG: npt.NDArray[np.bool_]
    gold_ran_P: npt.NDArray[np.bool_]
    outcome_PG: npt.NDArray[np.int32]  # OutcomeKind.code
    length_PG: npt.NDArray[np.int32]  # tokens
    stopped_PG: npt.NDArray[np.bool_]  # False: cut off at the token limit


class Round(NamedTuple):
    """One round of a step: G completions of each of P prompts, of which each process has a share, and their rewards."""

    ids: list[str]  # of the P examples, on all processes
    examples: list[Example]  # this process's, like all below but global_rewards
    execution: CompletionExecutor
    outcomes: list[list[Outcome]]
    rewards: Rewards
    global_rewards: Rewards
    rows: PackedRows  # rows.prompt counts the groups of all rounds and processes of the step


def compute_rewards(
    context: RunContext,
    examples: Sequence[Example],
    completions: Completions,
    answers: Sequence[Sequence[Answer]],
    outcomes: Sequence[Sequence[Outcome]],
) -> Rewards:
    """Rewards of this process's completions; answers and outcomes are indexed [prompt][sample]."""
    config = context.config.grpo.reward

    def count_tokens(text: str) -> int:
        return len(context.tokenizer(text, add_special_tokens=False)["input_ids"])

    measure = count_tokens if config.length_unit == "tokens" else len
    rewards = [
        [
            reward.weighted_parts(parsed, outcome, config, measure, example.sql)
            for parsed, outcome in zip(group_answers, group_outcomes, strict=True)
        ]
        for example, group_answers, group_outcomes in zip(examples, answers, outcomes, strict=True)
    ]
    return Rewards(
        rewards_PGR=np.asarray(rewards, np.float32),
        correct_PG=np.asarray([[reward.correct(outcome, config) for outcome in group] for group in outcomes]),
        gold_ran_P=np.asarray([all(o.kind != OutcomeKind.GOLD_ERROR for o in group) for group in outcomes]),
        outcome_PG=np.asarray([[o.kind.code for o in group] for group in outcomes], np.int32),
        length_PG=completions.length_PG,
        stopped_PG=completions.stopped_PG,
    )


def step_metrics(
    rewards: Rewards, part_names: Sequence[str], timer: StepTimer, execute_seconds: float, executor: Executor
) -> dict[str, float]:
    """The host's metrics of a step, as listed in docs/api.md.

    `rewards` are those of all groups sampled, of all rounds and processes. The executors' counts are summed over the
    processes; for their milliseconds, the maximum is taken. Times are those of this process.
    """
    total_PG, length_PG = rewards.rewards_PGR.sum(axis=-1), rewards.length_PG
    outcome_fractions = np.bincount(rewards.outcome_PG.ravel(), minlength=len(OutcomeKind)) / length_PG.size
    all_right_P, all_wrong_P = rewards.correct_PG.all(axis=1), ~rewards.correct_PG.any(axis=1)
    values = {
        "reward/mean": total_PG.mean(),
        "reward/std": total_PG.std(),
        "groups/all_right": all_right_P.mean(),
        "groups/all_wrong": all_wrong_P.mean(),
        "groups/mixed": (~all_right_P & ~all_wrong_P).mean(),
        "groups/sampled": len(length_PG),
        "completion/mean_tokens": length_PG.mean(),
        "completion/max_tokens": length_PG.max(),
        "completion/truncated": (~rewards.stopped_PG).mean(),
        "tokens": length_PG.sum(),
    }
    values |= {f"reward/{name}": rewards.rewards_PGR[..., r].mean() for r, name in enumerate(part_names)}
    values |= {f"outcome/{kind}": outcome_fractions[kind.code] for kind in OutcomeKind if kind != OutcomeKind.OK}
    stats = collectives.allgather_objects(executor.stats())
    values |= {name: (max if name.endswith("_ms") else sum)(local[name] for local in stats) for name in stats[0]}
    values |= timer.seconds
    # Counted from the outcomes, so that a resumed run reports the same number: the executor's counter leaves out
    # timeouts answered from its cache, which is empty after a resume.
    values["sql/timeouts"] = (rewards.outcome_PG == OutcomeKind.TIMEOUT.code).sum()
    values["time/execute"] = execute_seconds
    return {name: float(value) for name, value in values.items()}
