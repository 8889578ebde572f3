"""Reading GGUF files, versions 2 and 3: metadata and the tensor table into memory, the tensors mapped.

The format stands in :mod:`octavo.convert.gguf_file`, which writes it. A file is attacker input: every count,
length, size and offset is held against the bytes that are there before anything is made of it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Layout, SubScales
from octavo.weights.ggml import TYPES, GgmlType
from octavo.weights.ggml_decode import decode, packed_bits
from octavo.weights.mapped import MappedFile

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_PAIRS, _MAX_TENSORS = 1 << 16, 1 << 18
_MAX_KEY_BYTES, _MAX_TEXT_BYTES = 1 << 16, 1 << 26
_MAX_ITEMS = 1 << 24
"""Of a list: as many as the largest vocabulary has tokens."""
_MAX_AXES = 4
_MAX_ELEMENTS = 1 << 48
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>(\.gguf)?)")

Metadata = dict[str, Any]
"""Numbers, truth values and texts; lists of numbers are NumPy arrays, lists of texts are lists."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    type: GgmlType
    shape: tuple[int, ...]
    """The row last."""
    begin: int
    """From the start of the file."""
    nbytes: int


class GgufFile:
    """One mapped file and its checked header. Raises CheckpointError for anything that does not add up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self.metadata, table, data = _header(_Cursor(self._file))
        self.entries = _entries(path, table, data, self._file.nbytes)
        self.nbytes = sum(entry.nbytes for entry in self.entries.values())

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, uint8 [rows, row bytes], as a read-only view of the file."""
        entry = self.entries[name]
        flat = self._file.array(entry.begin, entry.nbytes, np.dtype(np.uint8))
        return flat.view(np.uint8).reshape(-1, entry.type.row_bytes(entry.shape[-1]))

    def get(self, name: str) -> Layout:
        """The tensor in the layout that its type decodes into."""
        entry = self.entries[name]
        self._file.prefetch(entry.begin, entry.nbytes)
        return self._decoded(name, self.raw(name), entry.shape)

    def expert(self, name: str, expert: int) -> Layout:
        """One matrix of a stack [experts, rows, columns]."""
        entry = self.entries[name]
        count, rows, _ = entry.shape
        each = entry.nbytes // count
        self._file.prefetch(entry.begin + expert * each, each)
        return self._decoded(name, self.raw(name)[expert * rows : (expert + 1) * rows], entry.shape[1:])

    def _decoded(self, name: str, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Layout:
        """A matrix whose scales are all numbers; CheckpointError for one with others."""
        try:
            layout = decode(raw, self.entries[name].type, shape)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self.path}: tensor {name!r:.120}: {error}") from None
        for part in ("scale", "minimum"):
            found = getattr(layout, part, None)
            numbers = found.unit if isinstance(found, SubScales) else found
            if numbers is not None and not np.isfinite(numbers).all():
                row, group = np.argwhere(~np.isfinite(numbers))[0].tolist()
                raise CheckpointError(
                    f"{self.path}: tensor {name!r:.120} has the {part} {numbers[row, group]} in row {row}, "
                    "expected a finite number.",
                    hint="The file is damaged: download or convert it again.",
                )
        return layout

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        entry = self.entries[name]
        self._file.release(entry.begin, entry.nbytes)

    def release_expert(self, name: str, expert: int) -> None:
        """Give the pages of one matrix of a stack back."""
        entry = self.entries[name]
        each = entry.nbytes // entry.shape[0]
        self._file.release(entry.begin + expert * each, each)


class GgufCheckpoint:
    """A model in GGUF: one file, or the shards of one."""

    def __init__(self, files: Iterable[GgufFile]) -> None:
        self.files = tuple(files)
        self.path = self.files[0].path
        self.folder = self.path.parent
        self.metadata = self.files[0].metadata
        self._where: dict[str, GgufFile] = {}
        for file in self.files:
            for name in file.entries:
                if name in self._where:
                    raise CheckpointError(
                        f"Tensor {name!r:.120} is in both {self._where[name].path} and {file.path}."
                    )
                self._where[name] = file
        self.nbytes = sum(file.nbytes for file in self.files)

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""
        return tuple(self._where)

    def entry(self, name: str) -> Entry:
        """A tensor's type and shape; KeyError when there is none of that name."""
        return self._where[name].entries[name]

    def get(self, name: str) -> Layout:
        """One tensor; KeyError when there is none of that name."""
        return self._where[name].get(name)

    def expert(self, name: str, expert: int) -> Layout:
        """One matrix of a stack of experts; KeyError when there is none of that name."""
        return self._where[name].expert(name, expert)

    def packed_bytes(self) -> int:
        """About what the tensors take in memory once they are packed."""
        entries = [entry for file in self.files for entry in file.entries.values()]
        return sum(packed_bits(entry.type) * math.prod(entry.shape) // 8 for entry in entries)

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._where[name].path

    def release(self, name: str) -> None:
        """The tensor has been used: drop its pages."""
        self._where[name].release(name)

    def release_expert(self, name: str, expert: int) -> None:
        """One matrix of a stack has been used: drop its pages."""
        self._where[name].release_expert(name, expert)


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's four bytes, whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_gguf(path: Path) -> GgufCheckpoint:
    """The model in `path`; of a shard (`-00001-of-00003.gguf`, or without suffix) the whole set.

    Raises CheckpointError for a broken file or a missing shard.
    """
    paths = shards(path)
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} lacks {missing[0]}: {len(paths) - len(missing)} of {len(paths)} shards are here.",
            hint="Download the model again; finished files are kept.",
        )
    checkpoint = GgufCheckpoint(GgufFile(shard) for shard in paths)
    stated = checkpoint.metadata.get("split.count", len(paths))
    if not isinstance(stated, int) or stated not in (0, len(paths)):
        raise CheckpointError(
            f"{checkpoint.path} says that it is one of {stated!r:.20} shards, found {len(paths)}."
        )
    return checkpoint


def shards(path: Path) -> list[Path]:
    """The files of the set that `path` is one of, the first first; itself when it is the only one."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{i + 1:05d}-of-{count:05d}{match['suffix']}" for i in range(count)]
    return [path.with_name(name) for name in names] or [path]


class Truncated(CheckpointError):
    """The header goes on behind the end of the file."""


class _Bytes(Protocol):
    """Where a header stands."""

    path: Path
    nbytes: int

    def read(self, offset: int, nbytes: int) -> bytes: ...


@dataclass(frozen=True)
class Beginning:
    """The first bytes of a file that is somewhere else."""

    path: Path
    content: bytes

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, nbytes: int) -> bytes:
        return self.content[offset : offset + nbytes]


def header_bytes(file: Beginning) -> int:
    """Bytes before the first tensor. Raises Truncated when the beginning is too short to know."""
    return _header(_Cursor(file))[2]


class _Cursor:
    """A place in the header, moved by what is read."""

    def __init__(self, file: _Bytes | Beginning) -> None:
        self.file = file
        self.at = 0

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: at byte {self.at} {what}.")

    def take(self, nbytes: int) -> bytes:
        if self.at + nbytes > self.file.nbytes:
            raise Truncated(
                f"{self.file.path} is truncated inside its header: expected {nbytes} bytes at {self.at}, "
                f"found {self.file.nbytes - self.at}.",
                hint="Download it again.",
            )
        raw = self.file.read(self.at, nbytes)
        self.at += nbytes
        return raw

    def magic(self) -> None:
        if self.take(4) != MAGIC:
            raise CheckpointError(f"{self.file.path} is no GGUF file: it does not begin with GGUF.")
        version = self.u32()
        if version in _VERSIONS:
            return
        if version >> 24 in _VERSIONS:
            raise CheckpointError(f"{self.file.path} is a GGUF file for big-endian machines.")
        raise CheckpointError(f"{self.file.path} is GGUF version {version}; versions 2 and 3 are read.")

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def count(self, what: str, most: int) -> int:
        found = self.u64()
        if found > most:
            raise self.error(f"it claims {found} {what}, the limit is {most}")
        return found

    def text(self, most: int = _MAX_TEXT_BYTES) -> str:
        length = self.u64()
        if length > most:
            raise self.error(f"it claims a text of {length} bytes, the limit is {most}")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.error(f"is a value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        found = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        return bool(found) if kind == _BOOL else found

    def array(self) -> Any:
        kind = self.u32()
        items = self.count("items of a list", _MAX_ITEMS)
        if kind == _STRING:
            return [self.text() for _ in range(items)]
        if kind not in _SCALARS:
            raise self.error(f"is a list of the type {kind}, which Octavo does not read")
        dtype = np.dtype(_SCALARS[kind])
        found = np.frombuffer(self.take(items * dtype.itemsize), dtype)
        return found.astype(bool) if kind == _BOOL else found


_Row = tuple[str, tuple[int, ...], int, int]


def _header(cursor: _Cursor) -> tuple[Metadata, list[_Row], int]:
    """(metadata, tensor table, where the tensors begin)."""
    cursor.magic()
    tensors = cursor.count("tensors", _MAX_TENSORS)
    pairs = cursor.count("metadata pairs", _MAX_PAIRS)
    metadata = _pairs(cursor, pairs)
    table = [_row(cursor) for _ in range(tensors)]
    return metadata, table, _padded(cursor.at, _alignment(cursor.file.path, metadata))


def _pairs(cursor: _Cursor, count: int) -> Metadata:
    found: Metadata = {}
    for _ in range(count):
        key = cursor.text(_MAX_KEY_BYTES)
        if key in found:
            raise cursor.error(f"the key {key!r:.120} stands a second time")
        found[key] = cursor.value(cursor.u32())
    return found


def _row(cursor: _Cursor) -> _Row:
    """(name, shape with the row last, type, offset in the data) of the tensor table."""
    name = cursor.text(_MAX_KEY_BYTES)
    axes = cursor.u32()
    if not 1 <= axes <= _MAX_AXES:
        raise cursor.error(f"tensor {name!r:.120} has {axes} axes, from 1 to {_MAX_AXES} are possible")
    shape = tuple(cursor.u64() for _ in range(axes))[::-1]
    return name, shape, cursor.u32(), cursor.u64()


def _alignment(path: Path, metadata: Metadata) -> int:
    found = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(found) is not int or not 0 < found <= _MAX_ALIGNMENT or found & (found - 1):
        raise CheckpointError(f"{path}: general.alignment is {found!r:.60}, expected a power of two.")
    return found


def _padded(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _entries(path: Path, table: list[_Row], data: int, file_bytes: int) -> dict[str, Entry]:
    """The checked tensors: known types, whole blocks, inside the file, no two on the same bytes."""
    found: dict[str, Entry] = {}
    for name, shape, number, offset in table:
        where = f"{path}: tensor {name!r:.120}"
        if name in found:
            raise CheckpointError(f"{where} stands a second time.")
        kind = TYPES.get(number)
        if kind is None:
            raise CheckpointError(f"{where} has the type {number}, which Octavo does not know.")
        elements = 1
        for size in shape:
            elements *= size
        if not 0 < elements <= _MAX_ELEMENTS:
            raise CheckpointError(f"{where} has the impossible shape {list(shape)}.")
        if shape[-1] % kind.block:
            raise CheckpointError(
                f"{where}: {shape[-1]} columns are not whole {kind.name} blocks of {kind.block}."
            )
        nbytes = kind.tensor_bytes(shape)
        if data + offset + nbytes > file_bytes:
            raise CheckpointError(
                f"{path} is truncated: for tensor {name!r:.120} it should have at least "
                f"{data + offset + nbytes} bytes, found {file_bytes}.",
                hint="Download it again.",
            )
        found[name] = Entry(kind, shape, data + offset, nbytes)
    end, before = 0, ""
    for name, entry in sorted(found.items(), key=lambda item: item[1].begin):
        if entry.begin < end:
            raise CheckpointError(f"{path}: tensors {before!r:.120} and {name!r:.120} overlap.")
        end, before = entry.begin + entry.nbytes, name
    return found
