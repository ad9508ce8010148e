"""From prompts and completions to rewards: the host's half of a GRPO step."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sqlr1_jax.data import answer, order
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.packing import Group, Segment
from sqlr1_jax.data.prompt import Prompt
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.rl import reward
from sqlr1_jax.rollout.engine import Completions, FinishedSample
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.train.context import RunContext
from sqlr1_jax.train.interrupt import log_while_waiting

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """GRPO's questions; their reasoning is never shown to the model."""

    examples: list[Example]
    prompts: list[Prompt]

    def batch(self, size: int, seed: int, step: int) -> tuple[list[Example], list[Prompt], list[str]]:
        """This process's examples and prompts of a step, and the example ids of the step on all processes.

        Args:
          size: P, the prompts of a step on all processes.
          seed: of the order of the data.
          step: counted from 0; the order is a function of seed and step alone.
        """
        indices = order.batch_indices(len(self.examples), size, seed, step)
        local = indices[collectives.local_slice(size)]
        ids = [self.examples[i].id for i in indices]
        return [self.examples[i] for i in local], [self.prompts[i] for i in local], ids


class StepTimer:
    """Seconds since the last lap, under names of time/*."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{name}"] = now - self._since
        self._since = now


def load_prompts(context: RunContext) -> PromptSet:
    """GRPO's examples with prompts within the budget; the others are counted and left out.

    Raises:
      ConfigError: none is left.
    """
    examples = context.examples(context.cfg.data.train, "grpo")
    pairs = [(e, p) for e, p in zip(examples, context.prompts(examples), strict=True) if not p.over_budget]
    if len(pairs) < len(examples):
        log.warning("%d of %d prompts are over the budget and left out", len(examples) - len(pairs), len(examples))
    if not pairs:
        raise ConfigError(f"config.data.train={context.cfg.data.train} gives no prompt within the budget.")
    log.info("GRPO: %d questions on %d databases", len(pairs), len({e.db_id for e, _ in pairs}))
    return PromptSet([e for e, _ in pairs], [p for _, p in pairs])


class CompletionScorer:
    """Reads completions and runs their SQL as they end, while the sampler is at work on the others."""

    def __init__(self, context: RunContext, executor: Executor, examples: Sequence[Example], samples: int):
        self._context, self._executor, self._examples = context, executor, examples
        empty: list[Any] = [None] * samples
        self.texts: list[list[str]] = [empty.copy() for _ in examples]
        self.answers: list[list[Answer]] = [empty.copy() for _ in examples]
        self._pending: list[list[Future[Outcome]]] = [empty.copy() for _ in examples]
        self._error: Exception | None = None
        self._first = self._last = 0.0

    def finished(self, ended: Sequence[FinishedSample]) -> None:
        """Takes completions; what goes wrong is raised by `outcomes`, since the sampler waits for no one."""
        try:
            texts = self._context.texts([one.ids for one in ended])  # a call each would cost more than decoding all
            for (prompt, sample, _), text in zip(ended, texts, strict=True):
                said = answer.read(text, self._context.cfg.data.form)
                self.texts[prompt][sample], self.answers[prompt][sample] = text, said
                self._pending[prompt][sample] = self._submit(self._examples[prompt], said)
        except Exception as error:
            self._error = self._error or error

    def _submit(self, example: Example, said: Answer) -> Future[Outcome]:
        """Submits an answer; `seconds` counts those that hold SQL to run."""
        if not said.problem:
            self._first = self._first or time.perf_counter()
        rule = self._context.cfg.grpo.reward.rule
        future = submit_answer(self._executor, said, example.database, example.sql, rule)
        if not said.problem:
            future.add_done_callback(self._note)
        return future

    def _note(self, _: Future[Outcome]) -> None:
        self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """From the first query handed over to the last result."""
        return max(0.0, self._last - self._first)

    def outcomes(self) -> list[list[Outcome]]:
        """Waits for all of them."""
        if self._error is not None:
            raise self._error
        with log_while_waiting("SQL results"):
            return [[future.result() for future in group] for group in self._pending]


def completion_groups(prompts: Sequence[Prompt], completions: Completions) -> list[Group]:
    """A group a prompt: [prompt[:-1] | last + c1 | … | last + cG], with the sampler's log-probabilities."""

    def segment(p: int, g: int) -> Segment:
        ids = completions.ids(p, g)
        tokens = np.concatenate([prompts[p].ids[-1:], ids])
        logprob = completions.logprobs_PGT[p, g, : len(ids)]
        return Segment(tokens, np.ones(len(ids), np.float32), logprob, p, g)

    P, G = completions.length_PG.shape
    return [Group(prompts[p].ids[:-1], [segment(p, g) for g in range(G)]) for p in range(P)]


class Rewards(NamedTuple):
    """What a step's completions came to, as numbers."""

    rewards_PGR: npt.NDArray[np.float32]
    correct_PG: npt.NDArray[np.bool_]
    sound_P: npt.NDArray[np.bool_]  # the gold runs
    outcome_PG: npt.NDArray[np.int32]  # OutcomeKind.code
    length_PG: npt.NDArray[np.int32]
    stopped_PG: npt.NDArray[np.bool_]


def compute_rewards(
    context: RunContext,
    examples: Sequence[Example],
    completions: Completions,
    answers: Sequence[Sequence[Answer]],
    outcomes: Sequence[Sequence[Outcome]],
) -> Rewards:
    """What each completion is paid, and all else that is counted of it."""
    cfg = context.cfg.grpo.reward

    def tokens(text: str) -> int:
        return len(context.tokenizer(text, add_special_tokens=False)["input_ids"])

    length = tokens if cfg.length_unit == "tokens" else len
    paid = [
        [reward.parts(said, outcome, cfg, length, example.sql) for said, outcome in zip(group, results, strict=True)]
        for example, group, results in zip(examples, answers, outcomes, strict=True)
    ]
    return Rewards(
        rewards_PGR=reward.stack(paid),
        correct_PG=np.asarray([[reward.correct(outcome, cfg) for outcome in results] for results in outcomes]),
        sound_P=np.asarray([all(o.kind != OutcomeKind.GOLD_ERROR for o in results) for results in outcomes]),
        outcome_PG=np.asarray([[o.kind.code for o in results] for results in outcomes], np.int32),
        length_PG=completions.length_PG,
        stopped_PG=completions.stopped_PG,
    )


def step_metrics(
    judged: Rewards, parts: Sequence[str], clock: StepTimer, scoring: CompletionScorer, executor: Executor
) -> dict[str, float]:
    """The step's numbers that the hosts know (docs/design.md, "Numbers on every step"); times are this host's.

    Of the executors' numbers counts add up over the hosts, and milliseconds are the slowest host's.
    """
    total_PG, lengths = judged.rewards_PGR.sum(axis=-1), judged.length_PG
    share = np.bincount(judged.outcome_PG.ravel(), minlength=len(OutcomeKind)) / lengths.size
    right, wrong = judged.correct_PG.all(axis=1), ~judged.correct_PG.any(axis=1)
    values = {
        "reward/mean": total_PG.mean(),
        "reward/std": total_PG.std(),
        "groups/all_right": right.mean(),
        "groups/all_wrong": wrong.mean(),
        "groups/mixed": (~right & ~wrong).mean(),
        "completion/mean_tokens": lengths.mean(),
        "completion/max_tokens": lengths.max(),
        "completion/truncated": (~judged.stopped_PG).mean(),
        "tokens": lengths.sum(),
    }
    values |= {f"reward/{name}": judged.rewards_PGR[..., r].mean() for r, name in enumerate(parts)}
    values |= {f"outcome/{kind}": share[kind.code] for kind in OutcomeKind if kind != OutcomeKind.OK}
    told = collectives.allgather_objects(executor.stats())
    values |= {name: (max if name.endswith("_ms") else sum)(one[name] for one in told) for name in told[0]}
    values |= clock.seconds
    # As a resumed run counts them, whose executor remembers no answers.
    values["sql/timeouts"] = (judged.outcome_PG == OutcomeKind.TIMEOUT.code).sum()
    values["time/execute"] = scoring.seconds
    return {name: float(value) for name, value in values.items()}
