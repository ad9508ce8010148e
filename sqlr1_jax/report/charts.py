"""Charts as SVG paths, which report.html's template draws.

All paths are in a box of 100 × 100 that the page stretches to its width. Labels are HTML text outside the SVG, so they
keep their size on any screen. Positions are percentages from the left or from the top.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Points = Sequence[tuple[int, float | None]]  # (step, value); None where a step has no finite value

MAX_POINTS = 240  # per line; a longer run is shown as means over equal numbers of steps
MAX_DOTS = 40  # lines with more points are smoothed, over the raw line in a pale tone
# CSS classes of style.css, by the position of a line in its chart.
LINE_TONES = ("one", "two", "three", "four", "five", "six", "seven", "eight")


class Tick(NamedTuple):
    """A labeled position on an axis."""

    position: float
    label: str


class Series(NamedTuple):
    """One line or area of a chart."""

    name: str
    tone: str  # CSS class of its color
    path: str  # a line, or the outline of an area
    raw_path: str  # the raw line under a smoothed one, else ""
    dots: tuple[tuple[float, float], ...]  # positions of the points, if they are few enough to show
    last: str  # its last value, as text


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as the template draws it."""

    title: str
    hint: str  # one sentence on how to read it
    kind: str  # lines or areas
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limits: tuple[Tick, ...]  # horizontal reference lines
    hover: str  # JSON for script.js: steps, x positions, and values as text [series][step]


class Scale(NamedTuple):
    """Maps values between `low` and `high` to percentages."""

    low: float
    high: float

    def from_top(self, value: float) -> float:
        """The vertical position of a value, in percent of the height from the top."""
        span = (self.high - self.low) or 1.0
        return round(100 * (1 - (value - self.low) / span), 2)

    def from_left(self, value: float) -> float:
        """The horizontal position of a step, in percent of the width from the left."""
        return round(100 - self.from_top(value), 2)


def number(value: float | None, percent: bool = False) -> str:
    """A number as the page shows it: about three digits, or more close to 1, where ratios are compared with 1."""
    if value is None:
        return "–"
    if percent:
        return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.1f} %"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:,.0f}k"
    if size >= 100:
        return f"{value:.0f}"
    if size and size < 1e-4:
        return f"{value:.1e}".replace("e-0", "e−").replace("e-", "e−")
    text = f"{value:.4f}".rstrip("0").rstrip(".") if 0.98 < size < 1.02 else f"{value:.3g}"
    return text.replace("-", "−")


def line_chart(
    title: str,
    series: Mapping[str, Points],
    hint: str = "",
    percent: bool = False,
    zero: bool = False,
    limits: Mapping[str, float] | None = None,
    smoothed: bool = True,
) -> Chart | None:
    """A chart of lines; None if no series has a value.

    Args:
      title: of the chart.
      series: points by name.
      hint: one sentence on how to read it.
      percent: whether values are fractions, shown as percentages.
      zero: whether the axis starts at zero.
      limits: horizontal reference lines by label.
      smoothed: whether lines of many points are smoothed.

    Raises:
      ValueError: there are more series than LINE_TONES.
    """
    tones = dict(zip(series, LINE_TONES[: len(series)], strict=True))
    shown = {name: thin(points) for name, points in series.items() if any(v is not None for _, v in points)}
    if not shown:
        return None
    values = [v for points in shown.values() for _, v in points if v is not None] + list((limits or {}).values())
    y_scale, y_values = _y_axis(min(values + ([0.0] if zero else [])), max(values))
    x_scale, x_ticks = _x_axis([step for points in shown.values() for step, _ in points])
    y_labels = labels(y_values, percent)
    return Chart(
        title,
        hint,
        "lines",
        tuple(_line(name, tones[name], points, x_scale, y_scale, percent, smoothed) for name, points in shown.items()),
        x_ticks,
        tuple(Tick(y_scale.from_top(value), label) for value, label in zip(y_values, y_labels, strict=True)),
        tuple(Tick(y_scale.from_top(value), label) for label, value in (limits or {}).items()),
        _hover(shown, x_scale, percent),
    )


def area_chart(title: str, series: Mapping[str, Points], tones: Mapping[str, str], hint: str = "") -> Chart | None:
    """A chart of stacked areas, for fractions that sum to 1; None if all are zero.

    The first series is at the bottom. `tones` are CSS classes by series name.
    """
    shown = {name: thin(points) for name, points in series.items() if any(v for _, v in points)}
    if not shown:
        return None
    steps = [step for step, _ in next(iter(shown.values()))]
    (x_scale, x_ticks), y_scale = _x_axis(steps), Scale(0.0, 1.0)
    x = [x_scale.from_left(step) for step in steps]
    bottom = [0.0] * len(steps)
    drawn = []
    for name, points in shown.items():
        top = [min(1.0, low + (value or 0.0)) for low, (_, value) in zip(bottom, points, strict=True)]
        path = _area_path(x, [y_scale.from_top(t) for t in top], [y_scale.from_top(b) for b in bottom])
        drawn.append(Series(name, tones[name], path, "", (), number(points[-1][1], True)))
        bottom = top
    y_ticks = tuple(Tick(y_scale.from_top(value), number(value, True)) for value in (0.0, 0.5, 1.0))
    return Chart(title, hint, "areas", tuple(drawn), x_ticks, y_ticks, (), _hover(shown, x_scale, True))


def thin(points: Points, max_points: int = MAX_POINTS) -> list[tuple[int, float | None]]:
    """At most `max_points` points: means over equal numbers of steps, each at its last step."""
    size = -(-len(points) // max_points)
    if size <= 1:
        return list(points)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], _mean([value for _, value in chunk])) for chunk in chunks]


def smooth(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Centered means over 2 · reach + 1 values; near the ends over fewer, as many on each side."""
    smoothed = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        smoothed.append(_mean(values[i - near : i + near + 1]))
    return smoothed


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Evenly spaced round numbers that span low to high, in about `about` intervals."""
    wanted = (high - low) / about
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if wanted <= m * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def labels(values: Sequence[float], percent: bool = False) -> list[str]:
    """Evenly spaced values as text, with the fewest decimals that show their differences."""
    factor, unit = (100, " %") if percent else (1, "")
    step = abs(values[-1] - values[0]) * factor / max(1, len(values) - 1)
    if step < 1e-4 and not percent:
        return [number(value) if value else "0" for value in values]
    decimals = next(d for d in range(8) if abs(round(step, d) - step) < 1e-6 * step)
    return [f"{value * factor:,.{decimals}f}{unit}".replace("-", "−") for value in values]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _y_axis(low: float, high: float) -> tuple[Scale, list[float]]:
    """The scale and tick values of an axis; a constant value gets room above and below."""
    if low == high == 0:
        high = 1.0
    elif high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    values = ticks(low, high)
    return Scale(values[0], values[-1]), values


def _x_axis(steps: Sequence[int]) -> tuple[Scale, tuple[Tick, ...]]:
    scale = Scale(float(min(steps)), float(max(max(steps), min(steps) + 1)))
    values = [step for step in ticks(scale.low, scale.high) if scale.low <= step <= scale.high and step == int(step)]
    return scale, tuple(Tick(scale.from_left(step), f"{int(step):,}") for step in values)


def _line(
    name: str, tone: str, points: Points, x_scale: Scale, y_scale: Scale, percent: bool, smoothed: bool
) -> Series:
    x = [x_scale.from_left(step) for step, _ in points]
    raw = [value for _, value in points]
    few = len(points) <= MAX_DOTS
    shown = raw if few or not smoothed else smooth(raw, len(points) // 25)
    dots = tuple((left, y_scale.from_top(v)) for left, v in zip(x, raw, strict=True) if v is not None) if few else ()
    last = next((value for value in reversed(shown) if value is not None), None)
    raw_path = "" if shown is raw else _line_path(x, raw, y_scale)
    return Series(name, tone, _line_path(x, shown, y_scale), raw_path, dots, number(last, percent))


def _line_path(x: Sequence[float], values: Sequence[float | None], y_scale: Scale) -> str:
    """A polyline that is interrupted where a value is missing."""
    commands, command = [], "M"
    for left, value in zip(x, values, strict=True):
        if value is None:
            command = "M"
            continue
        commands.append(f"{command}{left:g} {y_scale.from_top(value):g}")
        command = "L"
    return "".join(commands)


def _area_path(x: Sequence[float], top: Sequence[float], bottom: Sequence[float]) -> str:
    if len(x) == 1:  # a single step fills the width of the chart
        x, top, bottom = (0.0, 100.0), (top[0],) * 2, (bottom[0],) * 2
    upper = [f"{left:g} {y:g}" for left, y in zip(x, top, strict=True)]
    lower = [f"{left:g} {y:g}" for left, y in zip(reversed(x), reversed(bottom), strict=True)]
    return "M" + "L".join(upper + lower) + "Z"


def _hover(series: Mapping[str, Points], x_scale: Scale, percent: bool) -> str:
    steps = sorted({step for points in series.values() for step, _ in points})
    by_step = [dict(points) for points in series.values()]
    values = [[number(line[step], percent) if step in line else "" for step in steps] for line in by_step]
    return json.dumps({"steps": steps, "x": [x_scale.from_left(step) for step in steps], "values": values})
