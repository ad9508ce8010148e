"""The base of this package's errors, and how a command ends on one. Imports nothing of the package."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import ClassVar


class Sqlr1Error(Exception):
    """An error whose message is written for the user: it names what is wrong (file, record, setting) and the fix."""

    prefix: ClassVar[str] = "error: "  # start of the line that a command prints


class ConfigError(Sqlr1Error, ValueError):
    """A setting that cannot work; the message names the key and the fix.

    It is a ValueError because absl reports the ValueErrors that a config file raises while flags are parsed.
    """


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Ends the process with status 1 and one line on standard error if the block raises a `Sqlr1Error`.

    Decorates each command's `main`. Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except Sqlr1Error as error:
        sys.exit(f"{error.prefix}{error}")
