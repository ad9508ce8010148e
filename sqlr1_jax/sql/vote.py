"""Self-consistency: the choice of one candidate by a majority vote over results (docs/method.md, section 9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlr1_jax.sql.outcome import Outcome


def vote(outcomes: Sequence[Outcome]) -> int | None:
    """The index of the winning candidate, or None if no candidate has a result.

    Candidates with equal results form a group. The first candidate of the largest group wins; among groups of equal
    size, the group that appears first. Candidates that failed do not vote; a result without rows does.
    """
    hashes = [outcome.result_hash for outcome in outcomes]
    counts = Counter(result_hash for result_hash in hashes if result_hash)
    if not counts:
        return None
    return hashes.index(counts.most_common(1)[0][0])
