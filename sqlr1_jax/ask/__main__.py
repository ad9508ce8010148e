"""Asks a model about a database: python -m sqlr1_jax.ask --model=runs/first/export --database=FILE.sqlite "question".

Prints the answer while it is sampled, and the rows of its SQL. Without a question it starts a session: one question per
line of standard input, all answered by the model that is in memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax import compile_cache, config
from sqlr1_jax.ask import session
from sqlr1_jax.ask.asker import Asker
from sqlr1_jax.data import templates
from sqlr1_jax.data.answer import FORMATS
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.sql import database as sqlite
from sqlr1_jax.sql.executor import Executor


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` excludes the program's name. Exits with 1 if the SQL of a single question did not run."""
    args = _parser().parse_args(argv)
    if args.votes < 1:
        raise ConfigError(f"--votes is {args.votes}; it must be at least 1.")
    sqlite.open_readonly(args.database).close()  # an unreadable file is an error before the model is loaded
    compile_cache.enable()
    with Executor(config.ExecuteConfig(workers=min(args.votes, os.cpu_count() or 1))) as executor:
        asker = Asker(args.model, args.votes, prompt=args.prompt, form=args.form, adapter=args.adapter)
        if args.question:
            sys.exit(not session.answer_question(asker, executor, args.question, args))
        session.hold_session(asker, executor, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.ask", description="Asks a model about a database.")
    parser.add_argument("--model", type=Path, required=True, help="exported folder, as runs/first/export")
    parser.add_argument("--adapter", default="", help="PEFT folder of a LoRA adapter for the model, or its repository")
    parser.add_argument("--database", type=Path, required=True, help="SQLite file; it is only read")
    parser.add_argument("--votes", type=int, default=1, help="candidates; the most frequent result wins")
    parser.add_argument("--knowledge", default="", help="knowledge that the schema does not hold")
    parser.add_argument("--prompt", default="", choices=("", *templates.NAMES), help="empty: as the model was trained")
    parser.add_argument(
        "--form", default="", choices=("", *FORMATS), help="answer form; empty: as the model was trained"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per question")
    parser.add_argument("question", nargs="?", default="", help=r"without it: a session, ended by \q or end of file")
    return parser


if __name__ == "__main__":
    main()
