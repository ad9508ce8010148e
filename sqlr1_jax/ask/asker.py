"""A model in memory that answers questions about databases, for the terminal and the browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

from sqlr1_jax import config, prompt_metadata
from sqlr1_jax.ask import output
from sqlr1_jax.data import templates
from sqlr1_jax.data.answer import Answer, block_is_closed, read_lenient
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import Prompt, PromptRenderer
from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model.tokenizer import StopMatcher
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.vote import vote

DECODE_STEPS_PER_SYNC = 4  # tokens between two pieces of streamed text
# Prefilling a schema of 2048 tokens then takes 150 MB of temporaries instead of 530, for the 0.5B in float32.
QUERY_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one question."""

    text: str  # the whole answer, with what the prompt began it with
    answer: Answer
    outcome: Outcome
    agreed: int  # candidates with this result, itself included
    candidates: int


class Asker:
    """A model in memory, with the prompts, sampler and SQL sandbox of training.

    Everything that questions share is kept from one to the next: weights, compiled programs, the schema's text, and the
    keys and values of the prompt's prefix. The database must not change while it is asked about.
    """

    def __init__(
        self,
        model: Path,
        votes: int = 1,
        temperature: float = 0.8,
        seed: int = 0,
        prompt: str = "",
        form: str = "",
        adapter: str = "",
    ):
        """Loads a Hugging Face folder; the weights are read in a thread, for which the first question waits.

        One vote is decoded greedily; several are sampled at `temperature`. `prompt` and `form` replace those of the
        sqlr1.json of the adapter or the model; empty: they stay. `adapter` is config.model.adapter.

        Raises:
          ConfigError: the folder holds no model of ours, or its files are broken.
        """
        if not (model / "config.json").exists():
            raise ConfigError(f"{model} holds no model: no config.json. --model= names an exported folder.")
        import jax

        from sqlr1_jax.model import peft_folder
        from sqlr1_jax.rollout.prefixes import PrefixStore
        from sqlr1_jax.train.context import create_context

        folders = [peft_folder.resolve_folder(adapter), model] if adapter else [model]
        data, max_tokens = prompt_metadata.read(*folders)
        data = dataclasses.replace(data, prompt=prompt or data.prompt, form=form or data.form)
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        settings = config.ModelConfig(
            path=str(model), adapter=adapter, param_dtype=dtype, dtype=dtype, query_chunk=QUERY_CHUNK
        )
        rollout = config.RolloutConfig(prefill_batch=1, decode_steps_per_sync=DECODE_STEPS_PER_SYNC)
        self.votes, self.config = votes, config.Config(seed=seed, model=settings, data=data, rollout=rollout)
        self._one_block = templates.asks_for_one_block(data.prompt, data.form)
        max_tokens = min(max_tokens, templates.ONE_BLOCK_TOKENS) if self._one_block else max_tokens
        self.sampling = config.SamplingConfig(temperature=temperature if votes > 1 else 0.0, max_tokens=max_tokens)
        self._context = create_context(self.config, model)
        self._renderer = PromptRenderer(self._context.tokenizer, data)
        self._prefixes, self._engine = PrefixStore(), self._context.engine([])
        self._weights = _in_thread(self._load_weights)

    def ask(
        self,
        executor: Executor,
        database: Path,
        question: str,
        knowledge: str = "",
        on_text: Callable[[str], object] | None = None,
        on_finished: Callable[[int], object] | None = None,
    ) -> Reply:
        """Samples candidates, runs their SQL, and returns the vote's winner; arguments as in `sample`.

        Raises:
          ConfigError: schema and question are longer than the model's prompts may be.
        """
        texts = self.sample(database, question, knowledge, on_text, on_finished)
        return reply_of(texts, self.config.data.form, executor, database)

    def sample(
        self,
        database: Path,
        question: str,
        knowledge: str = "",
        on_text: Callable[[str], object] | None = None,
        on_finished: Callable[[int], object] | None = None,
    ) -> list[str]:
        """One answer for each vote.

        Args:
          database: the SQLite file.
          question: the question.
          knowledge: what the schema does not say; "" for nothing.
          on_text: called with each new piece of the first candidate's text.
          on_finished: called with the number of candidates that have finished, whenever some do.

        Raises:
          ConfigError: schema and question are longer than the model's prompts may be.
        """
        prompt = self._prompt(database, question, knowledge)
        weights, finished = self._weights.result(), 0
        stream = output.TextStream(self._decode, on_text or (lambda text: None), prompt.opening)

        def count_finished(samples: Sequence[Any]) -> None:
            nonlocal finished
            finished += len(samples)
            if on_finished:
                on_finished(finished)

        request = dataclasses.replace(
            self._context.request([prompt], self.votes, self.sampling, 0),
            on_read=(lambda completions: stream.update(completions.ids(0, 0))) if on_text else None,
            on_finished=count_finished,
            stop_fn=StopMatcher(self._context.tokenizer, block_is_closed) if self._one_block else None,
        )
        completions = self._engine_for(prompt).rollout(weights, request, self._prefixes)
        stream.finish(completions.ids(0, 0))
        return [prompt.opening + self._decode(completions.ids(0, vote)) for vote in range(self.votes)]

    def _load_weights(self) -> Any:
        import jax

        from sqlr1_jax.train.context import init_params

        with jax.set_mesh(self._context.mesh):
            return self._engine.prepare_weights(init_params(self._context))

    def _prompt(self, database: Path, question: str, knowledge: str) -> Prompt:
        example = Example("question", database.stem, database.absolute(), question, "", knowledge)
        prompt = self._renderer.render(example)
        if prompt.over_budget:
            raise ConfigError(
                f"{database}: schema and question take {len(prompt.ids)} tokens, and the "
                f"model takes {self.config.data.max_prompt_tokens}. Ask about a database with fewer tables."
            )
        return prompt

    def _engine_for(self, prompt: Prompt) -> Any:
        """The engine; its prompt length only grows, in steps, because each one is compiled."""
        from sqlr1_jax.rollout.prefixes import padded_size

        tokens = max(self._engine.prompt_tokens, padded_size(len(prompt.ids)))
        self._engine = dataclasses.replace(self._engine, prompt_tokens=tokens)
        return self._engine

    def _decode(self, ids: Any) -> str:
        return self._context.texts([list(map(int, ids))])[0]


def _in_thread(function: Callable[[], Any]) -> Future[Any]:
    """The result of a function that runs in a daemon thread: a failing command does not wait for it to end."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def reply_of(texts: Sequence[str], form: str, executor: Executor, database: Path) -> Reply:
    """Runs the SQL that each answer holds and returns the vote's winner; `form` is config.data.form."""
    answers = [read_lenient(text, form) for text in texts]
    pending = [submit_answer(executor, answer, database) for answer in answers]
    outcomes = [future.result() for future in pending]
    winner = vote(outcomes) or 0
    ran = [outcome for outcome in outcomes if outcome.kind == OutcomeKind.OK]
    agreed = sum(outcome.result_hash == outcomes[winner].result_hash for outcome in ran)
    return Reply(texts[winner], answers[winner], outcomes[winner], agreed, len(texts))
