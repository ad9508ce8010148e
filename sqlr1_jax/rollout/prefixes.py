"""The prefixes that prompts of a rollout share, and their keys and values on the device.

A prefix is identified by its tokens. Only one process shares prefixes: with several, each would have prefixes of its
own, while prefill is one program of all of them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

import numpy as np

from sqlr1_jax.distributed import collectives
from sqlr1_jax.model.kv_cache import SharedPrefix
from sqlr1_jax.rollout.request import Ids, Request

NO_PREFIX = b""
MIN_TOKENS = 128  # shorter prefixes are not shared: prompts of several prefixes cannot be in one prefill batch
CAPACITY = 4  # prefixes on the device; prompts on one database follow each other, so few are in use at a time


class PrefixStore:
    """Keys and values of the prefixes used last. Valid for one set of weights; `ask` keeps one between questions."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._by_key: collections.OrderedDict[bytes, SharedPrefix] = collections.OrderedDict()

    def get(self, key: bytes, compute: Callable[[], SharedPrefix]) -> SharedPrefix:
        """The prefix with this key; `compute` is called if it is not stored."""
        if key not in self._by_key:
            self._by_key[key] = compute()
            if len(self._by_key) > self._capacity:
                self._by_key.popitem(last=False)
        self._by_key.move_to_end(key)
        return self._by_key[key]


class RequestPrefixes:
    """Which prefix each prompt of a rollout begins with, over all processes (N prompts).

    Attributes:
      number_N: prompts with equal numbers have the same prefix; 0: none.
      length_N: tokens of each prompt's prefix.
      own_length_N: tokens of each prompt to prefill after its prefix, so without its last one.
    """

    def __init__(self, request: Request, store: PrefixStore | None) -> None:
        """Takes prefixes of MIN_TOKENS or more: those of several prompts, or all if a `store` keeps them for later."""
        self._request, self._store = request, store or PrefixStore()
        lengths = self._usable_lengths()
        keys = [ids[:n].tobytes() for ids, n in zip(request.prompts, lengths, strict=True)]
        uses = collections.Counter(keys)
        shared = [key if store or uses[key] > 1 else NO_PREFIX for key in keys]
        numbers = {key: i for i, key in enumerate(dict.fromkeys([NO_PREFIX, *shared]))}
        number_P = np.asarray([numbers[key] for key in shared], np.int32)
        length_P = np.asarray([n if key else 0 for n, key in zip(lengths, shared, strict=True)], np.int32)
        own_length_P = np.asarray([len(ids) - 1 for ids in request.prompts], np.int32) - length_P
        # Every process must choose the same padded length for a prefill.
        self.number_N, self.length_N, self.own_length_N = collectives.allgather_arrays(
            np.stack([number_P, length_P, own_length_P], axis=1)
        ).T

    def get(self, prompt: int, compute: Callable[[Ids], SharedPrefix]) -> SharedPrefix:
        """The prompt's prefix; `compute` is called with its tokens if the store does not have it."""
        ids = self._request.prompts[prompt][: self.length_N[prompt]]
        return self._store.get(ids.tobytes(), lambda: compute(ids))

    def _usable_lengths(self) -> list[int]:
        request = self._request
        if request.prefix_length_P is None or collectives.process_count() > 1:
            return [0] * len(request.prompts)
        # At least one token follows a prefix, and a prompt's last token is decoded instead of prefilled.
        lengths = [min(n, len(ids) - 2) for n, ids in zip(request.prefix_length_P, request.prompts, strict=True)]
        return [n if n >= MIN_TOKENS else 0 for n in lengths]


def padded_size(tokens: int, smallest: int = 32) -> int:
    """The smallest of 32, 48, 64, 96, 128, 192, … that holds `tokens`: few sizes, each of which is compiled."""
    size = smallest
    while size < tokens:
        # 2^n is followed by 3 · 2^(n-1), and that by 2^(n+1).
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size
