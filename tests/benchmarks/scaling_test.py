from __future__ import annotations

import itertools

import scaling
import shapes


def test_cells_are_the_corners_and_the_middle_with_the_least_arithmetic_first() -> None:
    cells = scaling.cells()
    sizes = {(work.prompt, work.longest, work.samples) for work in cells}
    assert sizes == {*itertools.product((256, 4096), (64, 2048), (1, 64)), (1024, 512, 8)}
    floors = [shapes.update_floor(work) for work in cells]
    assert floors == sorted(floors)


def test_a_slow_cell_is_not_repeated() -> None:
    runs: list[int] = []
    assert len(scaling.time_repeats(lambda: runs.append(1), 3, limit_seconds=60.0)) == 3 and len(runs) == 4
    assert len(scaling.time_repeats(lambda: None, 3, limit_seconds=0.0)) == 1


def test_table_has_the_fastest_repeat_of_each_cell() -> None:
    figures = {"seconds": [0.5, 0.25], "floor_fraction": 0.125}
    row = {"prompt": 256, "completion": 64, "samples": 8, "rollout": figures, "update": figures}
    assert scaling.table([row]).splitlines()[-1] == "| 256 | 64 | 8 | 0.25 | 0.12 | 0.25 | 0.12 |"
