"""Charts as geometry: paths in a box of 100 × 100 that the page stretches, with labels as text beside it.

Text is no part of the drawing, so it keeps its size on any screen. A template draws what is made here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Points = Sequence[tuple[int, float | None]]
LONGEST = 240  # points of a line; longer runs show means over as many steps as it takes
SMOOTHED = 40  # points past which a line is drawn smoothed, over the pale raw one


class Tick(NamedTuple):
    at: float  # percent along the axis: from the left, or from the top
    label: str


class Drawn(NamedTuple):
    """One series."""

    name: str
    tone: str  # a CSS class, which gives the colour
    path: str  # a line's, or an area's outline
    pale: str  # the raw line under a smoothed one
    dots: tuple[tuple[float, float], ...]  # where points are few enough to show
    last: str  # its last value


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    hint: str  # how to read it
    kind: str  # lines or areas
    series: tuple[Drawn, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    limits: tuple[Tick, ...]  # lines to stay below, or to start from
    hover: str  # JSON for the page's script: steps, places, values as shown, and names


class Scale(NamedTuple):
    low: float
    high: float

    def down(self, value: float) -> float:
        """Percent from the top."""
        span = (self.high - self.low) or 1.0
        return round(100 * (1 - (value - self.low) / span), 2)

    def right(self, value: float) -> float:
        """Percent from the left."""
        return round(100 - self.down(value), 2)


def number(value: float | None, percent: bool = False) -> str:
    """A figure as the page shows it."""
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


def lines(
    title: str,
    series: Mapping[str, Points],
    tones: Sequence[str],
    hint: str = "",
    percent: bool = False,
    zero: bool = False,
    limits: Mapping[str, float] | None = None,
    smoothed: bool = True,
) -> Chart | None:
    """A line chart; None where no series has a point.

    Args:
      title: of the chart.
      series: points by name.
      tones: CSS classes of the series, in order.
      hint: how to read it.
      percent: fractions, shown as percentages.
      zero: whether the axis starts at zero.
      limits: horizontal lines by label.
      smoothed: whether lines of many points are smoothed, over the raw ones.
    """
    kept = {name: thin(points) for name, points in series.items() if any(v is not None for _, v in points)}
    if not kept:
        return None
    values = [v for points in kept.values() for _, v in points if v is not None] + list((limits or {}).values())
    scale, marks = _axis(min(values + ([0.0] if zero else [])), max(values))
    steps = Scale(*_ends([step for points in kept.values() for step, _ in points]))
    drawn = [
        _line(name, tone, kept[name], steps, scale, percent, smoothed)
        for name, tone in zip(series, tones, strict=False)
        if name in kept
    ]
    return Chart(
        title, hint, "lines", tuple(drawn), _steps(steps),
        tuple(Tick(scale.down(mark), label) for mark, label in zip(marks, labels(marks, percent), strict=True)),
        tuple(Tick(scale.down(value), label) for label, value in (limits or {}).items()),
        _hover(kept, steps, percent),
    )  # fmt: skip


def areas(title: str, series: Mapping[str, Points], tones: Mapping[str, str], hint: str = "") -> Chart | None:
    """Fractions that add up to one, stacked, the first at the bottom; None where there is nothing."""
    kept = {name: thin(points) for name, points in series.items() if any(v for _, v in points)}
    if not kept:
        return None
    places = [step for step, _ in next(iter(kept.values()))]
    steps, scale = Scale(*_ends(places)), Scale(0.0, 1.0)
    floor = [0.0] * len(places)
    drawn = []
    for name, points in kept.items():
        top = [min(1.0, low + (value or 0.0)) for low, (_, value) in zip(floor, points, strict=True)]
        path = _area([steps.right(p) for p in places], [scale.down(t) for t in top], [scale.down(f) for f in floor])
        drawn.append(Drawn(name, tones[name], path, "", (), number(points[-1][1], True)))
        floor = top
    marks = tuple(Tick(scale.down(mark), number(mark, True)) for mark in (0.0, 0.5, 1.0))
    return Chart(title, hint, "areas", tuple(drawn), _steps(steps), marks, (), _hover(kept, steps, True))


def thin(points: Points, longest: int = LONGEST) -> list[tuple[int, float | None]]:
    """Means over equal runs of steps where there are more points than can be seen; each at its last step."""
    size = -(-len(points) // longest)
    if size <= 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], _mean([value for _, value in part])) for part in parts]


def smooth(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Centred means over at most 2·reach + 1 values, fewer at the ends (as many on both sides)."""
    out = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        out.append(_mean(values[i - near : i + near + 1]))
    return out


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span low to high."""
    step = _round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def labels(marks: Sequence[float], percent: bool = False) -> list[str]:
    """Evenly spaced figures written with as many decimals as tell them apart."""
    factor, unit = (100, " %") if percent else (1, "")
    step = abs(marks[-1] - marks[0]) * factor / max(1, len(marks) - 1)
    if step < 1e-4 and not percent:
        return [number(mark) if mark else "0" for mark in marks]
    decimals = next(d for d in range(8) if abs(round(step, d) - step) < 1e-6 * step)
    return [f"{mark * factor:,.{decimals}f}{unit}".replace("-", "−") for mark in marks]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if rough <= m * power * (1 + 1e-9))


def _axis(low: float, high: float) -> tuple[Scale, list[float]]:
    if low == high == 0:
        high = 1.0
    elif high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    marks = ticks(low, high)
    return Scale(marks[0], marks[-1]), marks


def _ends(steps: Sequence[int]) -> tuple[float, float]:
    return float(min(steps)), float(max(max(steps), min(steps) + 1))


def _steps(steps: Scale) -> tuple[Tick, ...]:
    marks = [m for m in ticks(steps.low, steps.high) if steps.low <= m <= steps.high and m == int(m)]
    return tuple(Tick(steps.right(mark), f"{int(mark):,}") for mark in marks)


def _line(name: str, tone: str, points: Points, steps: Scale, scale: Scale, percent: bool, smoothed: bool) -> Drawn:
    across = [steps.right(step) for step, _ in points]
    raw = [value for _, value in points]
    few = len(points) <= SMOOTHED
    shown = raw if few or not smoothed else smooth(raw, len(points) // 25)
    dots = tuple((x, scale.down(v)) for x, v in zip(across, raw, strict=True) if v is not None) if few else ()
    last = next((value for value in reversed(shown) if value is not None), None)
    pale = "" if shown is raw else _path(across, raw, scale)
    return Drawn(name, tone, _path(across, shown, scale), pale, dots, number(last, percent))


def _path(across: Sequence[float], values: Sequence[float | None], scale: Scale) -> str:
    """A polyline, broken where a value is missing."""
    parts, pen = [], "M"
    for x, value in zip(across, values, strict=True):
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:g} {scale.down(value):g}")
        pen = "L"
    return "".join(parts)


def _area(across: Sequence[float], top: Sequence[float], floor: Sequence[float]) -> str:
    if len(across) == 1:  # one step is shown as wide as the chart
        across, top, floor = (0.0, 100.0), (top[0],) * 2, (floor[0],) * 2
    there = [f"{x:g} {y:g}" for x, y in zip(across, top, strict=True)]
    back = [f"{x:g} {y:g}" for x, y in zip(reversed(across), reversed(floor), strict=True)]
    return "M" + "L".join(there + back) + "Z"


def _hover(series: Mapping[str, Points], steps: Scale, percent: bool) -> str:
    places = sorted({step for points in series.values() for step, _ in points})
    known = [dict(points) for points in series.values()]
    values = [[number(one[place], percent) if place in one else "" for place in places] for one in known]
    return json.dumps({"steps": places, "x": [steps.right(place) for place in places], "values": values})
