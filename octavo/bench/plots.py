"""Line charts, drawn once as shapes and then written as SVG (needs no library) or as PNG (needs Pillow)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from octavo.errors import ConfigError

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 60
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
_GREY = "#dddddd"
_FONT = 12
_SHARPER = 2
"""Pixels of a PNG for one of the drawing's units."""


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Stroke:
    """A line through points, in the drawing's units."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float
    curve: bool = False
    """False: from the first point to the last."""


@dataclass(frozen=True)
class Words:
    """Text on a base line. `anchor`: which end of it stands at x (start, middle, end)."""

    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True)
class _Axis:
    """Values to places in the drawing."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)


Drawing = list[Stroke | Words]


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line], *, log_x: bool = False) -> Drawing:
    """A drawing. Points that are no numbers (or not above 0 on a logarithmic axis) are left out."""
    kept = [Line(line.name, [p for p in line.points if _drawable(p, log_x)]) for line in lines]
    points = [point for line in kept for point in line.points] or [(1.0, 0.0)]
    x_ticks = _log_ticks(points) if log_x else _ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = _ticks(0.0, max(y for _, y in points))
    x = _Axis(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT, log_x)
    y = _Axis(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    low, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    drawing: Drawing = [
        Words(_WIDTH / 2, 20, title, "middle"),
        Words(_WIDTH / 2, _HEIGHT - 14, x_name, "middle"),
        Words(8, _TOP - 12, y_name, "start"),
        *(Stroke([(x.at(tick), _TOP), (x.at(tick), low)], _GREY, 1) for tick in x_ticks),
        *(Words(x.at(tick), low + 18, f"{tick:g}", "middle") for tick in x_ticks),
        *(Stroke([(_LEFT, y.at(tick)), (right, y.at(tick))], _GREY, 1) for tick in y_ticks),
        *(Words(_LEFT - 8, y.at(tick) + 4, f"{tick:g}", "end") for tick in y_ticks),
    ]
    for at, line in enumerate(kept):
        drawing += _curve(line, x, y, _COLOURS[at % len(_COLOURS)], at)
    return drawing


def save(path: str, drawing: Drawing) -> None:
    """Write a drawing as SVG, or as PNG when the file's name ends so (check_name)."""
    target = Path(path).expanduser()
    if target.suffix.lower() == ".png":
        _write_png(target, drawing)
    else:
        target.write_text(svg(drawing), encoding="utf-8")


def check_name(path: str) -> None:
    """Raise ConfigError for a file that could not be drawn, before anything is measured."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ConfigError(
            f"--plot {path}: plots are SVG or PNG.", hint="Name a file that ends in .svg or .png."
        )
    if suffix == ".png":
        try:
            import PIL.ImageFont  # noqa: F401
        except ImportError:
            raise ConfigError(
                "--plot: a PNG needs Pillow.",
                hint='pip install "octavo[plot]", or name a file that ends in .svg.',
            ) from None


def svg(drawing: Drawing) -> str:
    """An SVG document."""
    shapes = [_svg_of(shape) for shape in drawing]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="{_FONT}"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    )
    return "\n".join([head, *shapes, "</svg>\n"])


def _svg_of(shape: Stroke | Words) -> str:
    if isinstance(shape, Words):
        place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}"'
        return f"<text {place}>{escape(shape.text)}</text>"
    if not shape.curve:
        (x1, y1), (x2, y2) = shape.points
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        return f'<line {ends} stroke="{shape.colour}" stroke-width="{shape.width:g}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
    return f'<polyline points="{path}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width:g}"/>'


def _write_png(path: Path, drawing: Drawing) -> None:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH * _SHARPER, _HEIGHT * _SHARPER), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT * _SHARPER)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for shape in drawing:
        if isinstance(shape, Words):
            place = (shape.x * _SHARPER, shape.y * _SHARPER)
            draw.text(place, shape.text, fill="black", font=font, anchor=anchors[shape.anchor])
        elif shape.points:
            points = [(x * _SHARPER, y * _SHARPER) for x, y in shape.points]
            draw.line(points, fill=shape.colour, width=round(shape.width * _SHARPER), joint="curve")
    image.save(path, "PNG")


def _curve(line: Line, x: _Axis, y: _Axis, colour: str, at: int) -> Iterator[Stroke | Words]:
    """The curve, and its name beside a bit of it."""
    top = _TOP + 10 + 18 * at
    yield Stroke([(x.at(px), y.at(py)) for px, py in line.points], colour, 2, True)
    yield Stroke([(_LEFT + 10, top + 2), (_LEFT + 22, top + 2)], colour, 4)
    yield Words(_LEFT + 28, top + 7, line.name, "start")


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
