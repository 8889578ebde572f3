"""Plain floats, and the helpers that the other layouts share."""

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

F32 = NDArray[np.float32]


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

    @classmethod
    def of(cls, values: NDArray[np.float32], dtype: str) -> Dense:
        """float32 values rounded to `dtype`."""
        return cls(f32_to_bf16(values) if dtype == "bfloat16" else values.astype(FLOATS[dtype]), dtype)

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

    def take(self, rows: NDArray[np.integer[Any]]) -> Dense:
        """Some rows, in any order."""
        return Dense(self.data[rows], self.dtype)

    def slice(self, axis: int, start: int, stop: int) -> Dense:
        """Rows (axis 0) or columns (1) start .. stop-1."""
        return Dense(self.data[start:stop] if axis == 0 else self.data[:, start:stop], self.dtype)


def unpack4(codes: NDArray[np.uint8], cols: int) -> NDArray[np.uint8]:
    """[rows, (cols + 1) / 2] bytes -> [rows, cols] codes: the even column is the low half."""
    pairs = np.stack([codes & 15, codes >> 4], axis=-1)
    return pairs.reshape(*codes.shape[:-1], -1)[..., :cols]


def pack4(codes: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """The other way round; the half that an odd last column leaves is 0."""
    even = np.pad(codes.astype(np.uint8), [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return np.asarray(even[..., 0::2] | (even[..., 1::2] << 4), np.uint8)


def smallest_float(*arrays: F32) -> str:
    """The smallest of bfloat16, float16 and float32 that holds every number exactly."""
    with np.errstate(over="ignore"):
        for dtype in ("bfloat16", "float16"):
            if all(np.array_equal(Dense.of(a, dtype).dequantize(), a) for a in arrays):
                return dtype
    return "float32"
