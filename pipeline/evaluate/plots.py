"""Small inline SVG plots without scripts, fonts or requests, coloured by the page's CSS.

Markup.format escapes every text. Sizes are in px of a WIDTH x HEIGHT view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 24


def nice_step(span: float, wanted: int) -> float:
    """The round step (1, 2, 2.5 or 5 times a power of ten) that cuts `span` in <= `wanted`."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * wanted >= span * 0.9999)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that enclose [low, high] and 0, or [0, 1] if both are 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    high = high if high > low else low + 1.0
    step = nice_step(high - low, wanted)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text: 120k, 12,000, 0.25."""
    if abs(value) >= 100_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(points: Sequence[tuple[float, float]], label: str, percent: bool = False) -> Markup:
    """A curve over steps: the trailing mean, and behind it the logged values of a long curve."""
    steps = [x for x, _ in points]
    first, last = min(steps), max(steps)
    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    across, up = _scale(first, last, LEFT, WIDTH - RIGHT), _y_scale(marks)
    parts = [_grid(marks, up, percent), _x_labels(_step_labels(first, last), across)]
    smooth = trailing_mean([y for _, y in points], max(1, len(points) // 15))
    if len(points) > 30:
        parts.append(_path(((across(x), up(y)) for x, y in points), "raw"))
    parts.append(_path(((across(x), up(y)) for x, y in zip(steps, smooth, strict=True)), "curve"))
    parts.append(Markup('<circle class="end" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
        across(last), up(smooth[-1])))
    return _svg(parts, f"{label}, from {points[0][1]:.3g} at step {first:g} to "
                        f"{points[-1][1]:.3g} at step {last:g}")


def intervals(curves: Mapping[str, Sequence[Sequence[float]]], label: str) -> Markup:
    """A curve for each class of `curves` through (x, y, low, high), with a bar for the interval."""
    points = [point for curve in curves.values() for point in curve]
    marks = ticks(0.0, max(high for *_, high in points))
    steps = ticks(0.0, max(x for x, *_ in points))
    across, up = _scale(0.0, steps[-1], LEFT, WIDTH - RIGHT), _y_scale(marks)
    parts = [_grid(marks, up, True), _x_labels(steps[:-1], across)]
    for name, curve in curves.items():
        lines = Markup("").join(Markup(
            '<path d="M{0:.1f},{1:.1f}L{0:.1f},{2:.1f}"/><circle cx="{0:.1f}" cy="{3:.1f}" r="3">'
            '<title>{4}: {5:,.0f} tokens, {6:.1f} %</title></circle>').format(
            across(x), up(low), up(high), up(y), name, x, 100 * y) for x, y, low, high in curve)
        parts.append(Markup('<g class="{}">{}{}</g>').format(
            name, _path(((across(x), up(y)) for x, y, *_ in curve), "through"), lines))
    return _svg(parts, label)


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    windows = [values[max(0, i + 1 - window):i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in windows]


def mirrored(above: Sequence[int], below: Sequence[int], width: float, label: str) -> Markup:
    """Two histograms over one axis with bins of `width`, the second upside down."""
    high, low = max([*above, 1]), -max([*below, 1])
    across = _scale(0, width * max(len(above), len(below)), LEFT, WIDTH - RIGHT)
    up = _y_scale([low * 1.05, high * 1.05])
    bars = [_bar(across(width * i), across(width * (i + 1)), up(0), up(sign * count), name,
                 f"{width * i:,.0f} to {width * (i + 1):,.0f} tokens: {count:,} {name}")
            for counts, sign, name in ((above, 1, "kept"), (below, -1, "rejected"))
            for i, count in enumerate(counts) if count]
    sides = [y for y in ticks(low, high, 5) if low <= y <= high]
    labels = ticks(0, width * max(len(above), len(below)), 5)[:-1]
    names = [Markup('<text class="name {0}" x="{1}" y="{2}" text-anchor="end">{0}</text>').format(
        name, WIDTH - RIGHT, y) for name, y in (("kept", TOP + 12),
                                                ("rejected", HEIGHT - BOTTOM - 6))]
    return _svg([_grid(sides, up, False), *bars, *names, _x_labels(labels, across)], label)


def _bar(left: float, right: float, base: float, end: float, name: str, title: str) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                  '<title>{}</title></rect>').format(
        name, left + 0.5, min(base, end), max(right - left - 1, 0.5), abs(base - end), title)


def _scale(low: float, high: float, start: float, stop: float):
    """The linear map from [low, high] onto [start, stop], or its middle if low == high."""
    if high <= low:
        return lambda value: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _y_scale(marks: Sequence[float]):
    return _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)


def _step_labels(first: float, last: float) -> list[float]:
    """First and last step, and the round ones between that are not too near to either."""
    gap = (last - first) / 10
    inner = [t for t in ticks(0, last, 5) if first + gap < t < last - gap and t == int(t)]
    return sorted({first, *inner, last})


def _grid(marks: Iterable[float], up, percent: bool) -> Markup:
    return Markup("").join(
        Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
               '<text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>').format(
            LEFT, WIDTH - RIGHT, up(y), LEFT - 6, up(y) + 4,
            f"{100 * y:.4g} %" if percent else number(abs(y) if y else 0)) for y in marks)


def _x_labels(values: Iterable[float], across) -> Markup:
    return Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            min(across(x), WIDTH - RIGHT - 3 * len(number(x))), HEIGHT - 6, number(x))
        for x in values)


def _path(points: Iterable[tuple[float, float]], name: str) -> Markup:
    return Markup('<path class="{}" d="M{}"/>').format(
        name, "L".join(f"{x:.1f},{y:.1f}" for x, y in points))


def _svg(parts: Iterable[Markup], label: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts))
