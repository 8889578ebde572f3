"""`--load-format dummy`: deterministic random weights of a trained model's scale, made one Param at a time.

They measure speed and memory without a download; the text they make is noise.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from octavo.ops.contract import Param
from octavo.ops.layouts import FLOATS, Dense, Experts, f32_to_bf16

_BLOCK = 1_048_573
"""Random values made once and repeated: a prime, so that no two rows of a matrix start at the same place."""


class DummyWeights:
    """Random weights in `dtype` (float32, float16, bfloat16); the same for the same seed, name and shape."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self._block = np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32)

    def make(self, param: Param) -> Dense:
        """A matrix is normal with deviation 1/sqrt(inputs) (it keeps the size of what it reads), a table with
        0.02, a norm 1 +- 0.02, a bias 0 +- 0.02. Vectors are float32."""
        count = math.prod(param.shape)
        start = zlib.crc32(param.name.encode()) % _BLOCK
        if param.kind == "vector":
            centre = 0.0 if param.name.endswith("bias") else 1.0
            return Dense(
                np.resize(np.roll(self._block, -start) * 0.02 + centre, count).reshape(param.shape), "float32"
            )
        deviation = 0.02 if param.kind == "table" else 1.0 / math.sqrt(param.shape[-1])
        return Dense(self._repeated(start, count, deviation).reshape(param.shape), self.dtype)

    def experts(self, param: Param) -> Experts:
        """The matrices of a mixture's experts, each beginning one number after the last."""
        experts, rows, cols = param.shape
        start = zlib.crc32(param.name.encode()) % _BLOCK
        numbers = self._repeated(start, rows * cols + experts, 1.0 / math.sqrt(cols))
        return Experts(
            (experts, rows, cols),
            lambda e: Dense(numbers[e : e + rows * cols].reshape(rows, cols), self.dtype),
        )

    def _repeated(self, start: int, count: int, deviation: float) -> NDArray[np.generic]:
        return np.resize(self._stored(np.roll(self._block, -start) * np.float32(deviation)), count)

    def _stored(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        if self.dtype == "bfloat16":
            return f32_to_bf16(values)
        return values.astype(FLOATS[self.dtype], copy=False)
