"""Writing a Hugging Face folder: safetensors files of bounded size, and the text files beside them.

Nothing but one chunk of a tensor is in memory at a time; the folder takes its name only when it is whole.
The format stands in :mod:`octavo.weights.safetensors`, which reads it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.weights.hub import TEXT_FILES
from octavo.weights.safetensors import DTYPES

SHARD_BYTES = 5 << 30
_CODES = {ours: (code, np.dtype(numpy).itemsize) for code, (ours, numpy) in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: `chunks` makes its rows when they are wanted, in the order of the pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _CODES[self.dtype][1]


@dataclass(frozen=True)
class Written:
    """What was written."""

    path: Path
    nbytes: int
    tensors: int
    types: dict[str, int]
    """Dtype -> number of values."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends, and is gone when it fails. ConfigError says why."""
    if target.exists():
        raise ConfigError(f"{target} exists.", hint="Remove it, or give another name.")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        yield part
        part.replace(target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_weights(
    folder: Path,
    pieces: list[Piece],
    on_bytes: Callable[[int], None] = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Write the tensors into `folder`: model.safetensors, or shards and their index.

    Raises ConfigError when there is not enough room.
    """
    total = sum(piece.nbytes for piece in pieces)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise ConfigError(
            f"The weights would take {total:,} bytes, but {free:,} are free in {folder.parent}.",
            hint="Free some, or give a folder on another disk.",
        )
    shards = _shards(pieces, shard_bytes)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, on_bytes)
    if len(shards) > 1:
        homes = {p.name: name for name, shard in zip(names, shards, strict=True) for p in shard}
        index = {"metadata": {"total_size": total}, "weight_map": homes}
        write_json(folder / "model.safetensors.index.json", index)
    types: dict[str, int] = {}
    for piece in pieces:
        types[piece.dtype] = types.get(piece.dtype, 0) + math.prod(piece.shape)
    return Written(folder, total, len(pieces), types)


def write_json(path: Path, value: object) -> None:
    """A JSON file as published checkpoints have it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_text(source: Path, target: Path) -> None:
    """Tokenizer, templates and the like; not the configuration and the weights' index."""
    for pattern in TEXT_FILES:
        for path in source.glob(pattern):
            if path.is_file() and path.name != "config.json" and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)


def _shards(pieces: list[Piece], most: int) -> list[list[Piece]]:
    found: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if found[-1] and size + piece.nbytes > most:
            found.append([])
            size = 0
        found[-1].append(piece)
        size += piece.nbytes
    return found


def _write(path: Path, pieces: list[Piece], on_bytes: Callable[[int], None]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in pieces:
        span = [at, at + piece.nbytes]
        header[piece.name] = {
            "dtype": _CODES[piece.dtype][0],
            "shape": list(piece.shape),
            "data_offsets": span,
        }
        at = span[1]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for piece in pieces:
            written = 0
            for chunk in piece.chunks():
                file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
                written += chunk.nbytes
                on_bytes(chunk.nbytes)
            if written != piece.nbytes:
                raise ValueError(f"{piece.name}: {written} bytes made, {piece.nbytes} announced")
