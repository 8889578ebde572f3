"""Files for the weight readers, written by hand so that a test can break them anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "int64": "I64",
    "uint8": "U8",
    "float64": "F64",
}


def pack(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of this header (an object, or its raw bytes) and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def encode(tensors: dict[str, np.ndarray]) -> bytes:
    """A valid safetensors file; uint16 arrays are bfloat16 bits."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    raw_header = json.dumps(header).encode()
    return pack(raw_header + b" " * (-len(raw_header) % 8), data)


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """`encode` to a file."""
    path.write_bytes(encode(tensors))
    return path
