"""Self-consistency: which of several candidates answers (sql-r1.md §1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlr1_jax.sql.outcome import Outcome


def vote(outcomes: Sequence[Outcome]) -> int | None:
    """Index of the candidate that answers, or None when none of them ran.

    Candidates are grouped by result; the largest group wins, among equals the one seen first, and its first
    candidate answers. Those that failed do not vote; an empty result is a result.
    """
    ballots = [outcome.result_hash for outcome in outcomes]
    count = Counter(ballot for ballot in ballots if ballot)
    if not count:
        return None
    return ballots.index(count.most_common(1)[0][0])
