"""Layouts put one below the other: as one layout where their numbers allow it, else as a Stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.ops.layouts import Layout, Stack


class _Apart(Exception):
    """Two layouts that cannot be one."""


def join(layouts: Sequence[Layout]) -> Layout:
    """The matrices one below the other, all of one width.

    Neighbours of one class, whose table, group, column order and kind of offset are the same, become one.
    """
    joined: list[Layout] = []
    for layout in layouts:
        for part in pieces(layout):
            try:
                joined.append(_merged(joined.pop(), part) if joined else part)
            except _Apart as apart:
                joined += apart.args
    return joined[0] if len(joined) == 1 else Stack(tuple(joined))


def pieces(layout: Layout) -> tuple[Layout, ...]:
    """What a backend multiplies by one after another: a Stack's parts, or the layout itself."""
    return layout.parts if isinstance(layout, Stack) else (layout,)


def _merged(above: Any, below: Any) -> Any:
    """Two layouts as one. An array with a row for every row of the matrix is stood above the other's;
    everything else must be equal. Raises _Apart with both.
    """
    try:
        return _stood(above, below, (above.shape[0], below.shape[0]))
    except _Apart:
        raise _Apart(above, below) from None


def _stood(a: Any, b: Any, rows: tuple[int, int]) -> Any:
    if type(a) is not type(b):
        raise _Apart
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        names = [field.name for field in dataclasses.fields(a)]
        return dataclasses.replace(a, **{n: _stood(getattr(a, n), getattr(b, n), rows) for n in names})
    if isinstance(a, np.ndarray):
        if (
            a.ndim == b.ndim == 2
            and (len(a), len(b)) == rows
            and (a.shape[1], a.dtype) == (b.shape[1], b.dtype)
        ):
            return np.concatenate([a, b])
        if np.array_equal(a, b):
            return a
    elif a == b:
        return a
    raise _Apart
