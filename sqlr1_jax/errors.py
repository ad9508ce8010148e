"""The base of this package's errors, and how a command ends on one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import ClassVar

from sqlr1_jax.terminal import printable

# Exit statuses of sysexits.h that launchers act on (launch/).
AGAIN = 75  # EX_TEMPFAIL: the same command, given again, goes on with the work
MEND = 78  # EX_CONFIG: something has to be mended before the same command can succeed


class Sqlr1Error(Exception):
    """An error whose message is written for the user: it names what is wrong (file, record, setting) and the fix."""

    prefix: ClassVar[str] = "error: "  # start of the line that a command prints
    exit_status: ClassVar[int] = MEND  # of the command


class ConfigError(Sqlr1Error, ValueError):
    """A setting that cannot work; the message names the key and the fix.

    It is a ValueError because absl reports the ValueErrors that a config file raises while flags are parsed.
    """


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Ends the process with one line on standard error if the block raises a `Sqlr1Error`.

    The status is the error's: 75 if the same command, given again, goes on with the work, 78 if something has to be
    mended first. The line has no control characters: messages quote names, records and SQL of files.
    Decorates each command's `main`. Any other exception is a bug and keeps its traceback; Python's status is then 1.
    """
    try:
        yield
    except Sqlr1Error as error:
        line = printable(f"{error.prefix}{error}")
        print(line, file=sys.stderr)
        end = SystemExit(line)  # for callers in Python, who see the line
        end.code = error.exit_status
        raise end from None
