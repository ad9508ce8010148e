"""Inspection of what JAX traces and compiles."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def largest_mask(function: Callable[..., Any], *args: jax.Array) -> int:
    """The number of elements of the largest bool array in a function's jaxpr, loop bodies included."""
    shapes = re.findall(r"bool\[([\d,]+)\]", str(jax.make_jaxpr(function)(*args)))
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Names such as "jit(update)" of the programs compiled in the block, read from JAX's log; the list grows."""
    names: list[str] = []

    class Names(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Compiling "):
                names.append(record.getMessage().split()[1])

    handler, logger = Names(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
