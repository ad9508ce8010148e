"""Which prompt sits in which slot of the sampler: known to every host, for all hosts, without a word between them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FREE = -1


class SlotScheduler:
    """Prompts take slots in their order, each host's its own; a slot is free again when all its samples are done.

    Who sits where follows from which slots were busy after each chunk of steps, and from nothing that a clock decides.
    """

    def __init__(self, slots: int, prompts: int, hosts: int = 1):
        """Host h owns the h-th equal part of the slots and of the prompts.

        Raises ValueError where the parts are not equal.
        """
        if slots % hosts or prompts % hosts:
            raise ValueError(f"{slots} slots and {prompts} prompts do not part evenly over {hosts} hosts.")
        self.prompt_P: npt.NDArray[np.int64] = np.full(slots, FREE)
        self._hosts = hosts
        self._waiting = [list(part) for part in np.split(np.arange(prompts), hosts)]

    @property
    def done(self) -> bool:
        """No prompt sits, and none waits."""
        return not any(self._waiting) and bool((self.prompt_P == FREE).all())

    def release(self, busy_P: npt.NDArray[np.bool_], seated_P: npt.NDArray[np.int64]) -> None:
        """Frees the slots that were not busy after a chunk for which the prompts sat as in `seated_P`."""
        self.prompt_P[~busy_P & (seated_P == self.prompt_P)] = FREE

    def admit(self, most: int) -> list[npt.NDArray[np.int64]]:
        """Seats waiting prompts in free slots, `most` a host and round: the slots of each round, [hosts, most].

        A place of a round that no prompt takes names the slot past all others.
        """
        rounds = []
        while (slots_HR := self._round(most)) is not None:
            rounds.append(slots_HR)
        return rounds

    def _round(self, most: int) -> npt.NDArray[np.int64] | None:
        size = len(self.prompt_P) // self._hosts
        slots_HR = np.full((self._hosts, most), len(self.prompt_P))
        for host, waiting in enumerate(self._waiting):
            free = host * size + np.flatnonzero(self.prompt_P[host * size : (host + 1) * size] == FREE)
            for place, slot in enumerate(free[: min(most, len(waiting))]):
                self.prompt_P[slot], slots_HR[host, place] = waiting.pop(0), slot
        return slots_HR if (slots_HR < len(self.prompt_P)).any() else None
