"""Reading safetensors files: own code, as numpy has no bfloat16 and a hostile header deserves a clear error.

The format: 8 bytes (little-endian u64) header length, the header as JSON, then the tensors' bytes. The header
maps each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the header's end;
`__metadata__` is a map of strings. (https://huggingface.co/docs/safetensors, "Format".)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import CheckpointError
from octavo.ops.layouts import Dense
from octavo.weights.mapped import Described, MappedFile

_HEADER_LIMIT_BYTES = 100_000_000
"""The limit that the safetensors library itself sets."""
_MAX_RANK = 16
_MAX_ELEMENTS = 1 << 56
"""Far above any tensor, far below where numpy's own size arithmetic would overflow."""

DTYPES: dict[str, tuple[str, str]] = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U64": ("uint64", "<u8"),
    "U32": ("uint32", "<u4"),
    "U16": ("uint16", "<u2"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "u1"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "F8_E8M0": ("float8_e8m0fnu", "u1"),
}
"""The format's dtype names: ours, and numpy's view (kinds that numpy lacks stand as their bits)."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `begin` counts from the start of the file."""

    dtype: str
    numpy: np.dtype[np.generic]
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class SafetensorsFile:
    """One mapped file and its checked header. Raises CheckpointError for anything that does not add up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header_bytes = _header_length(self._file)
        header = _parse_header(path, self._file.read(8, header_bytes))
        self.entries = {name: _entry(path, name, spec, 8 + header_bytes) for name, spec in header.items()}
        _check_ranges(path, self.entries, self._file.nbytes)
        self.nbytes = sum(entry.nbytes for entry in self.entries.values())

    def get(self, name: str) -> Dense:
        """The tensor as a read-only view of the file."""
        entry = self.entries[name]
        self._file.prefetch(entry.begin, entry.nbytes)
        data = self._file.array(entry.begin, entry.nbytes, entry.numpy)
        return Dense(data.reshape(entry.shape), entry.dtype)

    def described(self, name: str) -> Described:
        """The tensor's dtype and shape."""
        entry = self.entries[name]
        return entry.dtype, entry.shape

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        entry = self.entries[name]
        self._file.release(entry.begin, entry.nbytes)


def _header_length(file: MappedFile) -> int:
    if file.nbytes < 8:
        raise CheckpointError(
            f"{file.path} is truncated: expected at least 8 bytes of header length, found {file.nbytes}.",
            hint="Download it again.",
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > _HEADER_LIMIT_BYTES:
        raise CheckpointError(
            f"{file.path} is not a safetensors file: its first 8 bytes claim a header of {length} bytes, "
            f"the limit is {_HEADER_LIMIT_BYTES}."
        )
    if 8 + length > file.nbytes:
        raise CheckpointError(
            f"{file.path} is truncated inside its header: expected {8 + length} bytes, found {file.nbytes}.",
            hint="Download it again.",
        )
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{_short(key)} appears twice")
        found[key] = value
    return found


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{path} has a safetensors header that is not valid JSON: {reason}.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a safetensors header that is not a JSON object.")
    header.pop("__metadata__", None)
    return header


def _entry(path: Path, name: str, spec: object, base: int) -> TensorEntry:
    where = f"{path}: tensor {_short(name)}"
    if not isinstance(spec, dict):
        raise CheckpointError(f"{where} is described by {type(spec).__name__}, not by a JSON object.")
    kind = spec.get("dtype")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{where} has the dtype {_short(kind)}, which is not known.", hint=f"Known: {', '.join(DTYPES)}."
        )
    shape = _counts(where, "shape", spec.get("shape"))
    offsets = _counts(where, "data_offsets", spec.get("data_offsets"))
    if len(shape) > _MAX_RANK or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise CheckpointError(f"{where} has an impossible shape {_short(list(shape))}.")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has data_offsets {_short(list(offsets))}, expected [begin, end] with begin <= end."
        )
    name_of_dtype, code = DTYPES[kind]
    numpy_dtype: np.dtype[np.generic] = np.dtype(code)
    expected, found = math.prod(shape) * numpy_dtype.itemsize, offsets[1] - offsets[0]
    if expected != found:
        raise CheckpointError(
            f"{where} has shape {list(shape)} of {kind}: {expected} bytes, but its data_offsets span {found}."
        )
    return TensorEntry(name_of_dtype, numpy_dtype, shape, base + offsets[0], found)


def _counts(where: str, field: str, value: object) -> tuple[int, ...]:
    """A JSON list of non-negative integers."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise CheckpointError(
            f"{where} has {field} {_short(value)}, expected a list of non-negative integers."
        )
    return tuple(value)


def _short(value: object) -> str:
    """A hostile header may hold megabytes in one string or list: an error shows its start.

    A list is cut before it is printed, and a huge integer never is (printing one takes quadratic time).
    """
    if isinstance(value, list):
        text = f"[{', '.join(_short(item) for item in value[:8])}{', ...' if len(value) > 8 else ''}]"
    elif isinstance(value, dict):
        return "an object"
    elif isinstance(value, int) and abs(value) >= 1 << 64:
        return "an integer beyond 64 bits"
    else:
        text = repr(value[:120] if isinstance(value, str) else value)
    return text if len(text) <= 160 else text[:160] + "..."


def _check_ranges(path: Path, entries: dict[str, TensorEntry], file_bytes: int) -> None:
    """Every tensor inside the file, no two on the same bytes."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if entry.begin + entry.nbytes > file_bytes:
            raise CheckpointError(
                f"{path} is truncated: for tensor {_short(name)} it should have at least "
                f"{entry.begin + entry.nbytes} bytes, found {file_bytes}.",
                hint="Download it again.",
            )
        if entry.nbytes and entry.begin < end:
            raise CheckpointError(f"{path}: tensors {_short(before)} and {_short(name)} overlap.")
        if entry.nbytes:
            end, before = entry.begin + entry.nbytes, name
