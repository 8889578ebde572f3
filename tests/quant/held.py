"""A quantized module in memory as a checkpoint gives it, and files of tensors that NumPy has no type for."""

from __future__ import annotations

import json
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


_CODES = {
    "float16": "F16",
    "float32": "F32",
    "bfloat16": "BF16",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
}


def save(tensors: dict[str, Any], path: Path) -> None:
    """A safetensors file of values as Held takes them."""
    header, data = {}, b""
    for name, value in tensors.items():
        tensor = _dense(value)
        raw = np.ascontiguousarray(tensor.data).tobytes()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def _dense(value: Any) -> Dense:
    if isinstance(value, tuple):
        return Dense(np.asarray(value[0]), value[1])
    return Dense(value, NAMES[value.dtype.name])
