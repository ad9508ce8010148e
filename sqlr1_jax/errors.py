"""The base of this package's errors, and how a command ends on one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import ClassVar

from sqlr1_jax.terminal import printable


class Sqlr1Error(Exception):
    """An error whose message is written for the user: it names what is wrong (file, record, setting) and the fix."""

    prefix: ClassVar[str] = "error: "  # start of the line that a command prints
    exit_status: ClassVar[int] = 1  # of the command


class ConfigError(Sqlr1Error, ValueError):
    """A setting that cannot work; the message names the key and the fix.

    It is a ValueError because absl reports the ValueErrors that a config file raises while flags are parsed.
    """


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Ends the process with one line on standard error if the block raises a `Sqlr1Error`.

    The status is the error's: 75 if the same command, given again, goes on with the work, else 1. The line has no
    control characters: messages quote names, records and SQL of files.
    Decorates each command's `main`. Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except Sqlr1Error as error:
        line = printable(f"{error.prefix}{error}")
        if error.exit_status == 1:
            sys.exit(line)
        print(line, file=sys.stderr)
        sys.exit(error.exit_status)
