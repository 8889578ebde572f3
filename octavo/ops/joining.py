"""Layouts put one below the other: as one layout where their numbers allow it, else as a Stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.ops.layouts import Layout, Stack


def join(layouts: Sequence[Layout]) -> Layout:
    """The matrices one below the other, all of one width.

    Neighbours of one class, whose table, group, column order and kind of offset are the same, become one.
    """
    joined: list[Layout] = []
    for layout in layouts:
        both = _one(joined[-1], layout) if joined else None
        if both is None:
            joined.append(layout)
        else:
            joined[-1] = both
    return joined[0] if len(joined) == 1 else Stack(tuple(joined))


def pieces(layout: Layout) -> tuple[Layout, ...]:
    """What a backend multiplies by one after another: a Stack's parts, or the layout itself."""
    return layout.parts if isinstance(layout, Stack) else (layout,)


def _one(above: Any, below: Any) -> Layout | None:
    """Two layouts as one, or None. An array with a row for every row of the matrix is stood below the other;
    everything else must be equal.
    """
    if type(above) is not type(below) or above.shape[1:] != below.shape[1:]:
        return None
    values = {}
    for field in dataclasses.fields(above):
        a, b = getattr(above, field.name), getattr(below, field.name)
        if _by_row(a, above) and _by_row(b, below) and a.shape[1:] == b.shape[1:] and a.dtype == b.dtype:
            values[field.name] = (a, b)
        elif _equal(a, b):
            values[field.name] = a
        else:
            return None
    stood = {name: np.concatenate(v) if isinstance(v, tuple) else v for name, v in values.items()}
    one: Layout = type(above)(**stood)
    return one


def _by_row(value: object, layout: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[0] == layout.shape[0]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    return a == b
