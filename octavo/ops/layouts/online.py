"""What is rounded while it is packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ops.layouts.dense import F32, Dense
from octavo.ops.layouts.integers import Int4Group, Int8


@dataclass(frozen=True)
class Online:
    """A dense matrix to be rounded to `bits` (8 or 4) while it is packed, one scale for `group` columns.

    Quantized codes with bfloat16 scales, chosen for the least squared error; see :mod:`octavo.ops.rounding`.
    """

    dense: Dense
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense.shape

    @property
    def nbytes(self) -> int:
        """Of what it becomes."""
        rows, cols = self.shape
        return rows * (-(-cols * self.bits // 8) + 2 * -(-cols // self.group))

    def rounded(self) -> Int8 | Int4Group:
        """What it becomes."""
        from octavo.ops.rounding import round_matrix

        return round_matrix(self.dense.dequantize(), self.bits, self.group)

    def dequantize(self) -> F32:
        """The numbers after rounding; slow: call rounded() once instead."""
        return self.rounded().dequantize()

    def take(self, rows: NDArray[np.integer[Any]]) -> Online:
        """Some rows, in any order."""
        return Online(self.dense.take(rows), self.bits, self.group)

    def slice(self, axis: int, start: int, stop: int) -> Online:
        """Rows, or columns from the start of a group to the end of one."""
        if axis == 1 and start % self.group:
            raise ValueError(f"column {start} does not begin a group of {self.group}")
        return Online(self.dense.slice(axis, start, stop), self.bits, self.group)
