"""Writing a GGUF file, version 3: header, metadata, tensor table, then the tensors one at a time.

The format (https://github.com/ggml-org/ggml, docs/gguf.md), all numbers little-endian: the magic "GGUF", the
version (u32), the number of tensors and of metadata pairs (u64 each); a pair is a key (string), a type (u32)
and the value; a tensor's entry is its name, the number of axes (u32), the sizes with the row first (u64), its
type (u32) and its offset (u64) in the data, which begins at the next multiple of 32 bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.weights.ggml import GgmlType

ALIGNMENT = 32
_VERSION = 3
_SCALARS = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
"""Our word for a value's type -> its number and how struct packs it."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Value:
    """A metadata value: `kind` is u32, f32, bool, string ... or, with `[]` behind it, a list of these."""

    kind: str
    value: Any


Metadata = dict[str, Value]
"""In the order of the file."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `chunks` makes its bytes, row by row, when they are wanted."""

    name: str
    shape: tuple[int, ...]
    """The row last, as NumPy has it."""
    type: GgmlType
    chunks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return self.type.tensor_bytes(self.shape)


def write_gguf(
    path: Path,
    metadata: Metadata,
    tensors: list[Tensor],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a file and return its size in bytes; it takes its name only when it is whole.

    Nothing but one chunk is in memory at a time. `on_bytes` gets the size of each chunk. Raises ConfigError
    when there is not enough room or `path` cannot be written.
    """
    head = _head(metadata, tensors)
    room = len(head) + sum(_padded(tensor.nbytes) for tensor in tensors)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        stats = os.statvfs(path.parent)
        free = stats.f_bavail * stats.f_frsize
        if free < room:
            raise ConfigError(f"{path} would take {room} bytes, but {free} are free there.")
        with part.open("wb") as file:
            file.write(head)
            for tensor in tensors:
                _write_tensor(file, tensor, on_bytes)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
    return room


def _head(metadata: Metadata, tensors: list[Tensor]) -> bytes:
    out = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(value)
    offset = 0
    for tensor in tensors:
        out += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.type.number, offset)
        offset += _padded(tensor.nbytes)
    return bytes(out) + bytes(_padded(len(out)) - len(out))


def _write_tensor(file: BinaryIO, tensor: Tensor, on_bytes: Callable[[int], None]) -> None:
    written = 0
    for chunk in tensor.chunks():
        file.write(np.ascontiguousarray(chunk).view(np.uint8).data)
        written += chunk.nbytes
        on_bytes(chunk.nbytes)
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name}: {written} bytes made, {tensor.nbytes} announced")
    file.write(bytes(_padded(written) - written))


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _string(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if value.kind.endswith("[]"):
        return struct.pack("<I", _ARRAY) + _array(value.kind.removesuffix("[]"), value.value)
    if value.kind == "string":
        return struct.pack("<I", _STRING) + _string(value.value)
    number, code = _SCALARS[value.kind]
    return struct.pack("<I", number) + struct.pack(code, value.value)


def _array(kind: str, items: Iterable[Any]) -> bytes:
    if kind == "string":
        texts = [_string(item) for item in items]
        return struct.pack("<IQ", _STRING, len(texts)) + b"".join(texts)
    number, code = _SCALARS[kind]
    values = list(items)
    return struct.pack("<IQ", number, len(values)) + struct.pack(f"<{len(values)}{code[1]}", *values)
