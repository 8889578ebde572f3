"""The matrices of a mixture's experts, made one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32

if TYPE_CHECKING:
    from octavo.ops.layouts import Layout


def _nothing(expert: int) -> None:
    """Nothing to give back."""


@dataclass(frozen=True)
class Experts:
    """[experts, out, in]: `make(e)` gives the matrix of expert e, each in a layout of its own.

    Iterating makes them one after another, and calls `done(e)` when the next one is asked for, so that one
    at a time is in memory.
    """

    shape: tuple[int, int, int]
    make: Callable[[int], Layout]
    done: Callable[[int], None] = _nothing

    @classmethod
    def of(cls, layouts: list[Layout]) -> Experts:
        """Experts that are there."""
        rows, cols = layouts[0].shape
        return cls((len(layouts), rows, cols), layouts.__getitem__)

    def __iter__(self) -> Iterator[Layout]:
        for expert in range(self.shape[0]):
            yield self.make(expert)
            self.done(expert)

    @property
    def nbytes(self) -> int:
        """Of all; makes each of them."""
        return sum(layout.nbytes for layout in self)

    def dequantize(self) -> F32:
        """The numbers, float32 [experts, out, in]."""
        return np.stack([layout.dequantize() for layout in self])

    def take(self, rows: NDArray[np.integer[Any]]) -> Experts:
        """Some experts, in any order."""
        return Experts((len(rows), *self.shape[1:]), lambda e: self.make(int(rows[e])))

    def slice(self, axis: int, start: int, stop: int) -> Experts:
        """Experts, or (axis 1, 2) rows or columns of each."""
        if axis == 0:
            return self.take(np.arange(start, stop))
        shape = list(self.shape)
        shape[axis] = stop - start
        return Experts((shape[0], shape[1], shape[2]), partial(self._cut, axis - 1, start, stop), self.done)

    def _cut(self, axis: int, start: int, stop: int, expert: int) -> Layout:
        return self.make(expert).slice(axis, start, stop)
