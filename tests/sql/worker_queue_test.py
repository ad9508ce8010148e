from __future__ import annotations

import pytest

from sqlr1_jax.sql.worker_queue import batch_size


@pytest.mark.parametrize(
    ("waiting", "in_flight", "size"),
    [(0, 0, 0), (1, 0, 1), (6, 0, 3), (16, 0, 8), (99, 8, 8), (9, 8, 1), (8, 8, 0), (3, 8, 0)],
)
def test_half_of_all_jobs_are_left_for_idle_workers(waiting: int, in_flight: int, size: int) -> None:
    assert batch_size(waiting, in_flight) == size
