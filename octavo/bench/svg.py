"""Line charts as SVG text, so that a plot needs no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 60
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axis:
    """Values to pixels."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, log_x: bool = False) -> str:
    """An SVG document. Points that are no numbers (or not above 0 on a logarithmic axis) are left out."""
    kept = [Line(line.name, [p for p in line.points if _drawable(p, log_x)]) for line in lines]
    points = [point for line in kept for point in line.points] or [(1.0, 0.0)]
    x_ticks = _log_ticks(points) if log_x else _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(0.0, max(y for _, y in points))
    x = _Axis(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT, log_x)
    y = _Axis(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_WIDTH / 2, 20, title, "middle"),
        _text(_WIDTH / 2, _HEIGHT - 14, x_name, "middle"),
        _text(8, _TOP - 12, y_name, "start"),
        *(_rule(x.at(tick), _TOP, x.at(tick), _HEIGHT - _BOTTOM) for tick in x_ticks),
        *(_text(x.at(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", "middle") for tick in x_ticks),
        *(_rule(_LEFT, y.at(tick), _WIDTH - _RIGHT, y.at(tick)) for tick in y_ticks),
        *(_text(_LEFT - 8, y.at(tick) + 4, f"{tick:g}", "end") for tick in y_ticks),
    ]
    for at, line in enumerate(kept):
        parts += _curve(line, x, y, _COLOURS[at % len(_COLOURS)], at)
    return "\n".join([*parts, "</svg>\n"])


def _drawable(point: tuple[float, float], log_x: bool) -> bool:
    return all(map(math.isfinite, point)) and (point[0] > 0 or not log_x)


def _ticks(low: float, high: float) -> list[float]:
    """About five round values around low .. high."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(at * step, 12) for at in range(first, max(last, first + 1) + 1)]


def _log_ticks(points: Sequence[tuple[float, float]]) -> list[float]:
    low = math.floor(math.log10(min(x for x, _ in points)))
    high = math.ceil(math.log10(max(x for x, _ in points)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _curve(line: Line, x: _Axis, y: _Axis, colour: str, at: int) -> list[str]:
    path = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in line.points)
    top = _TOP + 10 + 18 * at
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<rect x="{_LEFT + 10}" y="{top}" width="12" height="4" fill="{colour}"/>',
        _text(_LEFT + 28, top + 7, line.name, "start"),
    ]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
