"""A quantized module in memory, as a checkpoint gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.ops.layouts import Dense

NAMES = {
    "float16": "float16",
    "float32": "float32",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "bfloat16",
}
"""NumPy's dtypes as those of tensors."""


class Held:
    """Tensors `m.SUFFIX`. A value is an array, or (array, dtype) where NumPy has no name for it."""

    def __init__(self, **tensors: Any) -> None:
        self.tensors = {f"m.{suffix}": _dense(value) for suffix, value in tensors.items()}

    def get(self, name: str) -> Dense:
        return self.tensors[name]

    def file_of(self, name: str) -> Path:
        return Path("folder/model.safetensors")


def _dense(value: Any) -> Dense:
    if isinstance(value, tuple):
        return Dense(np.asarray(value[0]), value[1])
    return Dense(value, NAMES[value.dtype.name])
