"""Weight layouts: what kernels know, never what a checkpoint calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
"""Numpy's view of each stored float; bfloat16 stands as its 16 bits."""


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True)
class Dense:
    """A plain tensor. `data` is float32, float16, or bfloat16 as uint16; `dtype` says which."""

    data: NDArray[np.generic]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32 (no copy when they are)."""
        if self.dtype == "bfloat16":
            return bf16_to_f32(self.data.view(np.uint16))
        return self.data.astype(np.float32, copy=False)


Layout = Dense
"""Every layout has `shape`, `nbytes` and `dequantize()`; more join as formats do (docs/design.md)."""
