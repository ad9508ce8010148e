from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlr1_jax.report import charts


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (None, False, "–"),
        (0.5, True, "50 %"),
        (0.004, True, "0.4 %"),
        (0.0, True, "0 %"),
        (1.0002, False, "1.0002"),
        (0.99219, False, "0.9922"),
        (4.8132, False, "4.81"),
        (-0.5, False, "−0.5"),
        (6e-7, False, "6.0e−7"),
        (5802.3, False, "5802"),
        (20_480.0, False, "20k"),
    ],
)
def test_numbers_are_short(value: float | None, percent: bool, text: str) -> None:
    assert charts.number(value, percent) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_span_the_values(low: float, span: float) -> None:
    marks = charts.ticks(low, low + span)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step
    assert marks[-1] >= low + span - 1e-6 * step
    assert 2 <= len(marks) <= 7


@pytest.mark.parametrize(
    ("marks", "percent", "texts"),
    [
        ([0.0, 0.0005, 0.001], True, ["0.00 %", "0.05 %", "0.10 %"]),
        ([0.4, 0.6, 0.8], True, ["40 %", "60 %", "80 %"]),
        ([-1.0, 0.0, 1.0], False, ["−1", "0", "1"]),
        ([0.0, 0.25, 0.5], False, ["0.00", "0.25", "0.50"]),
        ([0.0, 1e-7, 2e-7], False, ["0", "1.0e−7", "2.0e−7"]),
    ],
)
def test_labels_have_the_fewest_decimals_that_differ(marks: list[float], percent: bool, texts: list[str]) -> None:
    assert charts.labels(marks, percent) == texts


def test_long_runs_are_thinned_to_means_of_equal_chunks() -> None:
    points = [(step, float(step)) for step in range(1, 1001)]
    thinned = charts.thin(points, max_points=100)
    assert len(thinned) == 100
    assert thinned[0] == (10, 5.5)
    assert thinned[-1] == (1000, 995.5)
    assert charts.thin(points[:100], max_points=100) == points[:100]


def test_smoothing_keeps_straight_lines_and_skips_missing_values() -> None:
    line = [float(i) for i in range(20)]
    assert charts.smooth(line, 4) == pytest.approx(line)
    assert charts.smooth([1.0, None, 3.0], 1) == [1.0, 2.0, 3.0]
    assert charts.smooth([None, None], 1) == [None, None]


def test_a_line_is_interrupted_at_a_missing_value() -> None:
    chart = charts.line_chart("Loss", {"loss": [(1, 2.0), (2, 1.0), (3, None), (4, 0.0), (5, 1.0)]}, zero=True)
    assert chart is not None
    assert chart.series[0].path == "M0 0L25 50M75 100L100 50"
    assert chart.series[0].last == "1"
    assert len(chart.series[0].dots) == 4


def test_a_line_of_many_points_is_smoothed_over_the_raw_line() -> None:
    points = [(step, float(step % 2)) for step in range(100)]
    drawn = charts.line_chart("Noise", {"noise": points}).series[0]  # type: ignore[union-attr]
    assert drawn.dots == ()
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn.path)]
    assert max(heights[5:-5]) - min(heights[5:-5]) < 15
    assert {float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn.raw_path)} == {0.0, 100.0}


def test_smoothing_can_be_turned_off() -> None:
    points = [(step, float(min(step, 40))) for step in range(100)]
    drawn = charts.line_chart("Rate", {"lr": points}, smoothed=False).series[0]  # type: ignore[union-attr]
    assert drawn.raw_path == ""
    assert "L39.39 2.5L40.4 0L41.41 0L" in drawn.path


def test_every_series_is_drawn_in_its_own_tone_or_is_an_error() -> None:
    series = {f"part {i}": [(1, float(i))] for i in range(len(charts.LINE_TONES))}
    chart = charts.line_chart("Parts", series)
    assert chart is not None
    assert [drawn.tone for drawn in chart.series] == list(charts.LINE_TONES)
    with pytest.raises(ValueError, match="zip"):
        charts.line_chart("Parts", series | {"one too many": [(1, 0.0)]})


def test_a_limit_is_within_the_axis() -> None:
    chart = charts.line_chart("Mismatch", {"m": [(1, 1.0), (2, 1.001)]}, limits={"limit": 1.005})
    assert chart is not None
    assert [tick.label for tick in chart.limits] == ["limit"]
    assert 0 <= chart.limits[0].position < 50


def test_areas_are_stacked() -> None:
    series = {"right": [(1, 0.25), (2, 0.5)], "wrong": [(1, 0.75), (2, 0.5)], "never": [(1, 0.0), (2, 0.0)]}
    chart = charts.area_chart("Groups", series, {"right": "right", "wrong": "wrong", "never": "none"})
    assert chart is not None
    assert [(series.name, series.path) for series in chart.series] == [
        ("right", "M0 75L100 50L100 100L0 100Z"),
        ("wrong", "M0 0L100 0L100 50L0 75Z"),
    ]


def test_a_single_step_fills_the_chart() -> None:
    chart = charts.area_chart("Groups", {"right": [(1, 0.5)]}, {"right": "right"})
    assert chart is not None
    assert chart.series[0].path == "M0 50L100 50L100 100L0 100Z"


def test_hover_data_are_the_points() -> None:
    chart = charts.line_chart("Two", {"a": [(0, 1.0), (4, 2.0)], "b": [(4, None)]})
    assert chart is not None
    assert len(chart.series) == 1  # b has nothing to draw
    assert json.loads(chart.hover) == {"steps": [0, 4], "x": [0.0, 100.0], "values": [["1", "2"]]}


def test_without_values_there_is_no_chart() -> None:
    assert charts.line_chart("Loss", {"loss": []}) is None
    assert charts.line_chart("Loss", {"loss": [(1, None)]}) is None
    assert charts.area_chart("Groups", {"right": []}, {"right": "right"}) is None
