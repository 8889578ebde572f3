"""PyTorch's `.bin` and `.pt` files, read weights-only and without PyTorch.

Since PyTorch 1.6 such a file is an uncompressed zip: `<name>/data.pkl` describes the tensors (see
:mod:`octavo.weights.opcodes`), `<name>/data/<key>` holds each storage's bytes. The older form is a row of
opcode streams (magic number, protocol, system facts, the object, the storage keys), then for each key its
element count (i64) and bytes. Both are mapped: a tensor is a view of the file.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError
from octavo.ops.layouts import Dense
from octavo.weights import opcodes
from octavo.weights.mapped import Described, MappedFile

_MAGIC_LEGACY = 0x1950A86A20F9469CFC6C
_STREAM_LIMIT_BYTES = 64 << 20
_CONVERT = (
    "Convert it to safetensors: load it with PyTorch (weights_only=True) and save with safetensors.torch."
)
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OSError,
    EOFError,
    struct.error,
    RuntimeError,
    KeyError,
)

_NUMPY: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("u1"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "float8_e8m0fnu": np.dtype("u1"),
}


@dataclass(frozen=True)
class _Span:
    """A storage's bytes in the file."""

    begin: int
    nbytes: int


class PickledFile:
    """One mapped file, its description read and checked. Raises CheckpointError for anything else in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            if self._file.read(0, 4) == b"PK\x03\x04":
                value, self._spans = self._open_zip()
            else:
                value, self._spans = self._open_legacy()
            self.entries = dict(opcodes.tensors(value))
            for view in self.entries.values():
                if isinstance(view, opcodes.TensorView):
                    self._check_storage(view.storage)
        except opcodes.Refused as refusal:
            raise CheckpointError(f"{path} is not read: {refusal}.", hint=_CONVERT) from None
        self.nbytes = sum(
            math.prod(view.shape) * _NUMPY[_dtype(view)].itemsize for view in self.entries.values()
        )

    def get(self, name: str) -> Dense:
        """The tensor as a read-only view of the file (a transposed one as a strided view)."""
        view = self.entries[name]
        if isinstance(view, opcodes.Constant):
            return Dense(view.data, view.dtype)
        span, dtype = self._spans[view.storage.key], _NUMPY[view.storage.kind.dtype]
        self._file.prefetch(span.begin, span.nbytes)
        flat = self._file.array(span.begin, view.storage.elements * dtype.itemsize, dtype)[view.offset :]
        strides = tuple(step * dtype.itemsize for step in view.strides)
        data: NDArray[Any] = np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)
        return Dense(data, view.storage.kind.dtype)

    def described(self, name: str) -> Described:
        """The tensor's dtype and shape."""
        view = self.entries[name]
        return _dtype(view), view.shape

    def release(self, name: str) -> None:
        """Give the pages of the tensor's storage back (tensors that share it read it again)."""
        view = self.entries[name]
        if isinstance(view, opcodes.TensorView):
            span = self._spans[view.storage.key]
            self._file.release(span.begin, span.nbytes)

    def _open_zip(self) -> tuple[Any, dict[str, _Span]]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except _ZIP_ERRORS as error:
            raise CheckpointError(
                f"{self.path} is a truncated or broken zip file of {self._file.nbytes} bytes ({error}).",
                hint="Download it again.",
            ) from None
        spans = {info.filename: self._span(info) for info in infos if not info.filename.endswith("/")}
        self._check_overlaps(spans)
        streams = [name for name in spans if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(streams) != 1:
            raise opcodes.Refused(f"its zip has {len(streams)} entries named */data.pkl, expected one")
        root = streams[0].removesuffix("data.pkl")
        order = spans.get(f"{root}byteorder")
        if order is not None and self._file.read(order.begin, min(order.nbytes, 8)) != b"little":
            raise opcodes.Refused("its numbers are not little-endian")
        span = spans[streams[0]]
        if span.nbytes > _STREAM_LIMIT_BYTES:
            raise opcodes.Refused(
                f"its description has {span.nbytes} bytes, the limit is {_STREAM_LIMIT_BYTES}"
            )
        value = opcodes.run(io.BytesIO(self._file.read(span.begin, span.nbytes)))
        data = f"{root}data/"
        return value, {name.removeprefix(data): span for name, span in spans.items() if name.startswith(data)}

    def _span(self, info: zipfile.ZipInfo) -> _Span:
        """Where an entry's bytes lie; they must be stored as they are (a zip bomb is not)."""
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & 1
        ):
            raise opcodes.Refused(f"its zip entry {info.filename[:80]!r} is compressed or encrypted")
        local = self._file.read(max(info.header_offset, 0), 30)
        if info.header_offset < 0 or len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise opcodes.Refused(f"its zip entry {info.filename[:80]!r} has no local header")
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + 30 + name_bytes + extra_bytes
        if begin + info.file_size > self._file.nbytes:
            raise CheckpointError(
                f"{self.path} is truncated: its entry {info.filename[:80]!r} ends at byte "
                f"{begin + info.file_size}, but the file has {self._file.nbytes} bytes.",
                hint="Download it again.",
            )
        return _Span(begin, info.file_size)

    def _check_overlaps(self, spans: dict[str, _Span]) -> None:
        end = 0
        for span in sorted(spans.values(), key=lambda span: (span.begin, span.nbytes)):
            if span.nbytes and span.begin < end:
                raise opcodes.Refused("two of its zip entries overlap")
            end = max(end, span.begin + span.nbytes)

    def _open_legacy(self) -> tuple[Any, dict[str, _Span]]:
        stream = io.BytesIO(self._file.read(0, min(self._file.nbytes, _STREAM_LIMIT_BYTES)))
        if self._file.read(0, 1) != b"\x80" or opcodes.run(stream) != _MAGIC_LEGACY:
            raise opcodes.Refused("it is neither a PyTorch zip file nor PyTorch's older format")
        opcodes.run(stream)
        system = opcodes.run(stream)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise opcodes.Refused("its numbers are not little-endian")
        value = opcodes.run(stream)
        keys = opcodes.run(stream)
        views = [view for _, view in opcodes.tensors(value) if isinstance(view, opcodes.TensorView)]
        storages = {view.storage.key: view.storage for view in views}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise opcodes.Refused("its list of storages is not a list of names")
        spans, position = {}, stream.tell()
        for key in keys:
            if key not in storages:
                raise opcodes.Refused(f"its storage {key[:80]!r} belongs to no tensor")
            elements = int.from_bytes(self._file.read(position, 8), "little")
            spans[key] = _Span(position + 8, elements * _size(storages[key]))
            position += 8 + spans[key].nbytes
            if position > self._file.nbytes:
                raise CheckpointError(
                    f"{self.path} is truncated: storage {key[:80]!r} ends at byte {position}, but the file "
                    f"has {self._file.nbytes} bytes.",
                    hint="Download it again.",
                )
        return value, spans

    def _check_storage(self, storage: opcodes.Storage) -> None:
        span = self._spans.get(storage.key)
        if span is None:
            raise opcodes.Refused(f"its storage {storage.key[:80]!r} is missing")
        expected = storage.elements * _size(storage)
        if span.nbytes != expected:
            raise opcodes.Refused(
                f"its storage {storage.key[:80]!r} has {span.nbytes} bytes, {storage.elements} elements of "
                f"{storage.kind.dtype} take {expected}"
            )


def _dtype(view: opcodes.TensorView | opcodes.Constant) -> str:
    return view.dtype if isinstance(view, opcodes.Constant) else view.storage.kind.dtype


def _size(storage: opcodes.Storage) -> int:
    return _NUMPY[storage.kind.dtype].itemsize
