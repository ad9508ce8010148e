"""Questions in the terminal: one question with its printed reply, or a session of many."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from sqlr1_jax.ask import output
from sqlr1_jax.ask.asker import Asker
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.terminal import printable

_QUIT = r"\q"


def answer_question(asker: Asker, executor: Executor, question: str, args: argparse.Namespace) -> bool:
    """Prints the reply to one question; whether its SQL ran.

    The text is streamed in a session and to a terminal, unless there are several candidates or the output is JSON.
    """
    streams = args.votes == 1 and not args.json and (not args.question or sys.stdout.isatty())
    reply = asker.ask(
        executor,
        args.database,
        question,
        args.knowledge,
        on_text=_write if streams else None,
        on_finished=(lambda count: _write_progress(count, args.votes)) if args.votes > 1 else None,
    )
    if streams:
        print("\n")
    print(output.as_json(reply) if args.json else output.show(reply, streams), flush=True)
    return reply.outcome.kind == OutcomeKind.OK


def hold_session(asker: Asker, executor: Executor, args: argparse.Namespace) -> None:
    """Answers questions until the input ends; neither an error about one nor Ctrl-C during one ends the session."""
    for question in _questions(prompt="" if args.json else "> "):
        try:
            answer_question(asker, executor, question, args)
        except Sqlr1Error as error:
            if args.json:
                print(json.dumps({"error": str(error)}), flush=True)
            else:
                print(printable(f"{error.prefix}{error}"), file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(json.dumps({"error": "interrupted"}) if args.json else "", flush=True)
        if not args.json:
            print()


def _questions(prompt: str) -> Iterator[str]:
    r"""The lines of standard input up to its end or to `\q`; empty lines are left out."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # input() then edits lines and keeps a history
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line == _QUIT:
            break
        if line:
            yield line


def _write(piece: str) -> None:
    print(printable(piece), end="", flush=True)


def _write_progress(count: int, votes: int) -> None:
    """One line on standard error, which a terminal overwrites."""
    end = "\r" if sys.stderr.isatty() and count < votes else "\n"
    print(f"{count} of {votes} candidates", end=end, file=sys.stderr, flush=True)
