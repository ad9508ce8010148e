from __future__ import annotations

import itertools

import scaling
import shapes


def test_cells_are_the_corners_and_the_middle_smallest_first() -> None:
    cells = scaling.cells()
    sizes = {(work.prompt, work.longest, work.samples) for work in cells}
    assert sizes == {*itertools.product((256, 4096), (64, 2048), (1, 64)), (1024, 512, 8)}
    floors = [shapes.update_floor(work) for work in cells]
    assert floors == sorted(floors)


def test_a_slow_cell_is_not_repeated() -> None:
    runs: list[int] = []
    assert len(scaling.timed(lambda: runs.append(1), 3, patience=60.0)) == 3 and len(runs) == 4
    assert len(scaling.timed(lambda: None, 3, patience=0.0)) == 1


def test_the_table_gives_the_best_of_each_cell() -> None:
    part = {"seconds": [0.5, 0.25], "floor_fraction": 0.125}
    row = {"prompt": 256, "completion": 64, "samples": 8, "rollout": part, "update": part}
    assert scaling.table([row]).splitlines()[-1] == "| 256 | 64 | 8 | 0.25 | 0.12 | 0.25 | 0.12 |"
