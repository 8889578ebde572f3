"""Matrices that no one layout holds, one below the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32, Dense

if TYPE_CHECKING:
    from octavo.ops.layouts import Layout


@dataclass(frozen=True)
class Stack:
    """Matrices of the same width, one below the other, that no one layout holds: each keeps its own.

    The kernels take them one by one; see :func:`octavo.ops.joining.join`, which makes them.
    """

    parts: tuple[Layout, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self) -> F32:
        """The numbers, float32 [rows, cols]."""
        return np.concatenate([part.dequantize() for part in self.parts])

    def take(self, rows: NDArray[np.integer[Any]]) -> Dense:
        """Some rows, in any order, as numbers."""
        out = np.empty((len(rows), self.shape[1]), np.float32)
        start = 0
        for part in self.parts:
            here = (rows >= start) & (rows < start + part.shape[0])
            out[here] = part.take(rows[here] - start).dequantize()
            start += part.shape[0]
        return Dense(out, "float32")

    def slice(self, axis: int, start: int, stop: int) -> Stack:
        """Rows, or columns that every part can be cut at."""
        if axis == 1:
            return Stack(tuple(part.slice(1, start, stop) for part in self.parts))
        cut, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                cut.append(part.slice(0, low, high))
            first += part.shape[0]
        return Stack(tuple(cut))
