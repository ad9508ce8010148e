"""Asks a model about a database: python -m sqlr1_jax.ask --model=runs/first/export --database=FILE.sqlite "question".

Prints the reasoning, the SQL and the rows of its result.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax import config, prompt_metadata
from sqlr1_jax.data.answer import Answer
from sqlr1_jax.data.answer import read as read_answer
from sqlr1_jax.data.example import Example
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.sql import database as sqlite
from sqlr1_jax.sql.answers import submit_answer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import Outcome, OutcomeKind
from sqlr1_jax.sql.vote import vote


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one question."""

    text: str  # the whole completion
    answer: Answer
    outcome: Outcome
    agreed: int  # candidates with this result, itself included
    candidates: int


class Asker:
    """A model in memory, with the prompts, sampler and SQL sandbox of training."""

    def __init__(self, model: Path, votes: int = 1, temperature: float = 0.8, seed: int = 0):
        """Loads a Hugging Face folder. One vote is decoded greedily; several are sampled at `temperature`.

        Raises:
          ConfigError: the folder holds no model of ours, or its files are broken.
        """
        if not (model / "config.json").exists():
            raise ConfigError(f"{model} holds no model: no config.json. --model= names an exported folder.")
        data, max_tokens = prompt_metadata.read(model)
        import jax

        from sqlr1_jax.train.context import create_context, init_params

        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        settings = config.ModelConfig(path=str(model), param_dtype=dtype, dtype=dtype)
        self.votes, self.config = votes, config.Config(seed=seed, model=settings, data=data)
        self.sampling = config.SamplingConfig(temperature=temperature if votes > 1 else 0.0, max_tokens=max_tokens)
        self._context = create_context(self.config, model)
        with jax.set_mesh(self._context.mesh):
            self._params = init_params(self._context)

    def ask(self, executor: Executor, database: Path, question: str, knowledge: str = "") -> Reply:
        """Samples candidates, runs their SQL, and returns the vote's winner.

        Raises:
          ConfigError: schema and question are longer than the model's prompts may be.
        """
        return reply_of(self.sample(database, question, knowledge), self.config.data.form, executor, database)

    def sample(self, database: Path, question: str, knowledge: str = "") -> list[str]:
        """One completion for each vote."""
        example = Example("question", database.stem, database.absolute(), question, "", knowledge)
        prompt = self._context.prompts([example])[0]
        if prompt.over_budget:
            raise ConfigError(
                f"{database}: schema and question take {len(prompt.ids)} tokens, and the "
                f"model takes {self.config.data.max_prompt_tokens}. Ask about a database with fewer tables."
            )
        engine = self._context.engine([prompt])
        request = self._context.request([prompt], self.votes, self.sampling, 0)
        completions = engine.rollout(engine.prepare_weights(self._params), request)
        return self._context.texts([completions.ids(0, g).tolist() for g in range(self.votes)])


def reply_of(texts: Sequence[str], form: str, executor: Executor, database: Path) -> Reply:
    """Runs the SQL of each completion and returns the vote's winner; `form` is config.data.form."""
    answers = [read_answer(text, form) for text in texts]
    pending = [submit_answer(executor, answer, database) for answer in answers]
    outcomes = [future.result() for future in pending]
    winner = vote(outcomes) or 0
    agreed = sum(outcome.result_hash == outcomes[winner].result_hash for outcome in outcomes)
    return Reply(texts[winner], answers[winner], outcomes[winner], agreed, len(texts))


def show(reply: Reply) -> str:
    """The reply as text for a terminal."""
    answer, outcome = reply.answer, reply.outcome
    if answer.sql is None:
        return f"The model's answer holds no SQL ({outcome.kind}):\n\n{reply.text.strip()}"
    if outcome.kind == OutcomeKind.OK:
        result = table(outcome)
    else:
        result = f"{outcome.kind.replace('_', ' ')}: {outcome.message}"
    votes = f"{reply.agreed} of {reply.candidates} candidates gave this result." if reply.candidates > 1 else ""
    return "\n\n".join(part for part in (answer.think.strip(), answer.sql.strip(), result, votes) if part)


def table(outcome: Outcome) -> str:
    """A result as aligned columns, numbers to the right, with the number of rows below."""
    cells = [["NULL" if value is None else str(value) for value in row] for row in outcome.rows]
    widths = [max(map(len, column)) for column in zip(outcome.columns, *cells, strict=True)]
    right = [all(isinstance(value, int | float) for value in column) for column in zip(*outcome.rows, strict=True)]
    aligns = [str.rjust if is_number else str.ljust for is_number in right] or [str.ljust] * len(widths)
    lines = [
        " | ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)).rstrip()
        for row in [list(outcome.columns), *cells]
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    more = f", the first {len(cells)} shown" if outcome.row_count > len(cells) else ""
    return "\n".join([*lines, f"({outcome.row_count} row{'s' * (outcome.row_count != 1)}{more})"])


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` excludes the program's name. Exits with 1 if the answer's SQL did not run."""
    args = _parser().parse_args(argv)
    sqlite.open_readonly(args.database).close()  # an unreadable file is an error before the model is loaded
    with Executor(config.ExecuteConfig(workers=min(args.votes, os.cpu_count() or 1))) as executor:
        reply = Asker(args.model, args.votes).ask(executor, args.database, args.question, args.knowledge)
    print(show(reply))
    sys.exit(reply.outcome.kind != OutcomeKind.OK)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.ask", description="Asks a model about a database.")
    parser.add_argument("--model", type=Path, required=True, help="exported folder, as runs/first/export")
    parser.add_argument("--database", type=Path, required=True, help="SQLite file; it is only read")
    parser.add_argument("--votes", type=int, default=1, help="candidates; the most frequent result wins")
    parser.add_argument("--knowledge", default="", help="knowledge that the schema does not hold")
    parser.add_argument("question")
    return parser


if __name__ == "__main__":
    main()
