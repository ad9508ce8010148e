"""Batches whose items are made on a thread when a step needs them, or a step ahead, instead of all at the start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from sqlr1_jax.data import order
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_DRAWS = 100  # items to try in place of one that cannot be used

Item = TypeVar("Item")
Result = TypeVar("Result")


class LazyBatches(Generic[Item]):
    """Batches in the order of `data/order.py`.

    That an item cannot be used is known only once it is made. Another then takes its turn, drawn by seed and turn
    alone, so that a batch depends on no other.
    """

    def __init__(self, count: int, make: Callable[[list[int]], list[Item | None]], fault: str) -> None:
        """Starts the thread.

        Args:
          count: of the items.
          make: makes the items of these numbers, None for one that cannot be used. Only the thread calls it.
          fault: what is wrong with those, and what to do about it, for messages.
        """
        self._count, self._make, self._fault = count, make, fault
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._batches: dict[int, Future[list[Item]]] = {}  # by number
        self._warned = False

    def batch(self, size: int, seed: int, number: int) -> list[Item]:
        """This process's items of a batch of `size` items on all processes. Collective.

        Raises:
          ConfigError: no item can be used.
        """
        self.start(size, seed, number)
        with collectives.sync_errors():
            items = self._batches[number].result()
        self._batches = {later: future for later, future in self._batches.items() if later > number}
        return items

    def start(self, size: int, seed: int, number: int) -> None:
        """Starts to make a batch that will soon be asked for, unless that has begun."""
        if number not in self._batches:
            self._batches[number] = self._thread.submit(self._make_batch, size, seed, number)

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Calls a function on the thread, because it uses what `make` uses."""
        return self._thread.submit(function, *arguments).result()

    def _make_batch(self, size: int, seed: int, number: int) -> list[Item]:
        numbers = order.batch_indices(self._count, size, seed, number)
        turns = range(size)[collectives.local_slice(size)]
        items = self._make([numbers[turn] for turn in turns])
        return [
            self._substitute(numbers[turn], seed, number * size + turn) if item is None else item
            for turn, item in zip(turns, items, strict=True)
        ]

    def _substitute(self, item_number: int, seed: int, turn: int) -> Item:
        """Another item for a turn; a function of seed and turn."""
        if not self._warned:
            log.warning("item %d cannot be used, and others take the turns of all such: %s", item_number, self._fault)
            self._warned = True
        random = np.random.default_rng([seed, turn])
        for _ in range(_MAX_DRAWS):
            [item] = self._make([int(random.integers(self._count))])
            if item is not None:
                return item
        raise ConfigError(f"{_MAX_DRAWS} items in a row cannot be used: {self._fault}")
