# SPDX-License-Identifier: MIT
"""Charts as inline SVG: text and shapes whose colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 640
_ROW = 22
#: Beside a plot's axes, for numbers that a style sheet may draw large.
_LEFT, _BELOW = 74, 62
_MARGIN = 16
#: At the right of bars, for the value of the longest.
_VALUE = 110


@dataclass(frozen=True, slots=True)
class Bar:
    """One value with its interval, of the n-th series."""

    value: float
    low: float
    high: float
    series: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """One point of a plot, perhaps with its interval, and what a pointer over it tells."""

    x: float
    y: float
    title: str
    series: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A polyline, drawn as the style sheet says of its class, with a label at its end."""

    points: Sequence[tuple[float, float]]
    style: str = "limit"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels, logarithmically where told."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.logarithmic else value

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            powers = [10.0**n for n in range(first, last + 1)]
            within = [tick for tick in powers if self.low <= tick <= self.high]
            if len(within) > 3:
                return within[:: 1 + len(within) // 8]
            for digits in ((1, 2, 5), range(1, 10)):
                finer = [digit * power for power in powers for digit in digits]
                within = [tick for tick in finer if self.low <= tick <= self.high]
                if len(within) > 1:
                    break
            return within
        step = _round_step((self.high - self.low) / 5)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + n * step for n in range(count + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-30)))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)


def bars(rows: Sequence[tuple[str, Sequence[Bar]]], unit: str, *, reference: float | None) -> str:
    """Horizontal bars with error bars and values, one group a row: from 0, or on a logarithmic axis
    from `reference` to either side."""
    axis = _axis_of([bar for _, group in rows for bar in group], reference)
    parts: list[str] = []
    y = float(_MARGIN)
    for label, group in rows:
        parts.append(_text(_MARGIN, y + 15, label, anchor="start", limit=56))
        y += _ROW
        for bar in group:
            parts.append(_bar(bar, axis, axis.at(reference or 0.0), y))
            y += _ROW
        y += 6
    height = y + 26
    behind = [_tick(axis, tick, y, height) for tick in axis.ticks()]
    if reference is not None:
        x = axis.at(reference)
        behind.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{y:.1f}"/>')
    parts.append(_text(_WIDTH - _MARGIN, height + 12, unit, anchor="end"))
    return _picture(height + 20, [*behind, *parts])


def _axis_of(every: Sequence[Bar], reference: float | None) -> Axis:
    start, end = _MARGIN, _WIDTH - _MARGIN - _VALUE
    largest = max((bar.high for bar in every), default=1.0)
    if reference is None:
        return Axis(0, largest or 1.0, start, end)
    least = min((bar.low for bar in every), default=1.0)
    low, high = min(least, reference / 1.1), max(largest, reference * 1.1)
    return Axis(low, high, start, end, logarithmic=True)


def _bar(bar: Bar, axis: Axis, origin: float, y: float) -> str:
    value, low, high = axis.at(bar.value), axis.at(bar.low), axis.at(bar.high)
    start, width = min(origin, value), max(abs(value - origin), 1.0)
    middle = y + _ROW / 2
    title = f"{_number(bar.value)} [{_number(bar.low)}, {_number(bar.high)}]"
    return (
        f'<g><title>{title}</title><rect class="s{bar.series}" x="{start:.1f}" y="{y + 3:.1f}" '
        f'width="{width:.1f}" height="{_ROW - 6}"/>'
        f'<line class="error" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        f"{_text(max(high, origin) + 6, middle + 5, bar.label, anchor='start')}</g>"
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _tick(axis: Axis, value: float, y: float, height: float) -> str:
    x = axis.at(value)
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{y:.1f}"/>'
    return line + _text(x, height - 8, _number(value), anchor="middle")


def plot(
    marks: Iterable[Mark], lines: Iterable[Line], titles: tuple[str, str], *, height: int = 360
) -> str:
    """Points and polylines on two logarithmic axes with these titles."""
    points, curves = list(marks), list(lines)
    places = [(mark.x, mark.y) for mark in points] + [p for line in curves for p in line.points]
    xs, ys = ([place[n] for place in places] for n in range(2))
    bottom = height - _BELOW
    across = Axis(min(xs) / 1.5, max(xs) * 1.5, _LEFT, _WIDTH - _MARGIN, logarithmic=True)
    up = Axis(min(ys) / 1.5, max(ys) * 1.5, bottom, _MARGIN + 8, logarithmic=True)
    parts = [*_grid(across, up, bottom)]
    for line in curves:
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
        if line.label:
            x, y = line.points[-1]
            parts.append(_text(across.at(x), up.at(y) - 6, line.label, anchor="end"))
    parts += [_mark(mark, across, up) for mark in points]
    parts.append(_text(_WIDTH / 2, height - 8, titles[0], anchor="middle"))
    parts.append(_text(4, 16, titles[1], anchor="start"))
    return _picture(height, parts)


def _grid(across: Axis, up: Axis, bottom: float) -> Iterable[str]:
    for tick in across.ticks():
        x = across.at(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_MARGIN + 8}" y2="{bottom}"/>'
        yield _text(x, bottom + 22, f"{tick:g}", anchor="middle")
    for tick in up.ticks():
        y = up.at(tick)
        yield (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        yield _text(_LEFT - 6, y + 5, f"{tick:g}", anchor="end")


def _mark(mark: Mark, across: Axis, up: Axis) -> str:
    x, y = across.at(mark.x), up.at(mark.y)
    circle = f'<circle class="s{mark.series}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
    error = ""
    if mark.low is not None and mark.high is not None:
        low, high = up.at(mark.low), up.at(mark.high)
        error = f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    return f"{error}{circle}<title>{escape(mark.title)}</title></circle>"


def _text(x: float, y: float, content: str, *, anchor: str, limit: int = 80) -> str:
    shown = content if len(content) <= limit else content[: limit - 1] + "…"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"<title>{escape(content)}</title>{escape(shown)}</text>"
    )


def _picture(height: float, parts: list[str]) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img">{body}</svg>'
