"""Copies samples from the device's output to the host as they are decoded, and finds where they end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sqlr1_jax.distributed import collectives, sharding
from sqlr1_jax.rollout.programs import DecodedTokens
from sqlr1_jax.rollout.request import Completions, FinishedSample, Request
from sqlr1_jax.rollout.scheduler import FREE


class SampleRecorder:
    """Copies this process's samples from the device's output into `completions`, and finds where they end.

    Attributes:
      completions: the tokens of the request's prompts that have been read so far.
    """

    def __init__(self, request: Request, stop_ids: tuple[int, ...]):
        prompts, G, T = len(request.prompts), request.samples, request.sampling.max_tokens
        self._request, self._stop_ids = request, stop_ids
        self.completions = Completions.empty(prompts, G, T)
        self._done_PG = np.zeros((prompts, G), bool)

    def force_done_PG(self, prompt_P: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which samples in this process's slots have ended, on the device or, unknown to it, by `stop_fn`.

        Args:
          prompt_P: the scheduler's.
        """
        local_P = self._local_prompts(prompt_P)
        return np.where((local_P != FREE)[:, None], self._done_PG[local_P], False)

    def unfinished(self, prompt_P: npt.NDArray[np.int64]) -> int:
        """How many samples in this process's slots have not ended, as far as the host knows: never too few."""
        local_P = self._local_prompts(prompt_P)
        return int((~self._done_PG[local_P[local_P != FREE]]).sum())

    def record(self, assigned_P: npt.NDArray[np.int64], decoded: DecodedTokens) -> None:
        """Copies the output of one call of `decode_steps`, and reports the samples that ended in it.

        Args:
          assigned_P: the scheduler's prompt_P at the time of the call.
          decoded: the call's output, on the device.
        """
        local = DecodedTokens(*(sharding.to_local_array(x) for x in decoded))
        local_P = self._local_prompts(assigned_P)
        finished = []
        for slot in np.flatnonzero(local_P != FREE):
            prompt = int(local_P[slot])
            for g in map(int, np.flatnonzero(~self._done_PG[prompt])):
                if self._append_tokens(prompt, g, int(slot), local):
                    finished.append(FinishedSample(prompt, g, self.completions.ids(prompt, g)))
        if finished and self._request.on_finished:
            self._request.on_finished(finished)
        if self._request.on_read:
            self._request.on_read(self.completions)

    def _local_prompts(self, prompt_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The prompts in this process's slots, as indices into the request; FREE entries stay FREE."""
        local_P = prompt_P[collectives.local_slice(len(prompt_P))]
        return np.where(local_P == FREE, FREE, local_P - collectives.process_index() * len(self._done_PG))

    def _append_tokens(self, prompt: int, g: int, slot: int, decoded: DecodedTokens) -> bool:
        """Appends a sample's new tokens; returns whether it has ended."""
        completions, stop_fn = self.completions, self._request.stop_fn
        old_length, length = completions.length_PG[prompt, g], decoded.length_PG[slot, g]
        completions.tokens_PGT[prompt, g, old_length:length] = decoded.tokens_PGC[slot, g, : length - old_length]
        completions.logprobs_PGT[prompt, g, old_length:length] = decoded.logprobs_PGC[slot, g, : length - old_length]
        completions.length_PG[prompt, g] = length
        end = stop_fn(completions.ids(prompt, g)) if stop_fn else None
        if end is not None:  # the device has sampled past the end, which only the host sees
            completions.tokens_PGT[prompt, g, end:] = 0
            completions.logprobs_PGT[prompt, g, end:] = 0
            completions.length_PG[prompt, g] = end
        done = end is not None or bool(decoded.done_PG[slot, g])
        if done:
            self._done_PG[prompt, g] = True
            ids = completions.ids(prompt, g)
            completions.stopped_PG[prompt, g] = end is not None or (len(ids) > 0 and ids[-1] in self._stop_ids)
        return done
