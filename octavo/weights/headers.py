"""Stand-ins of weight files that are somewhere else: of full size, with their headers, and otherwise holes.

Holes take no room on the disk. Whatever reads headers reads a stand-in as it reads any file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from octavo.errors import CheckpointError
from octavo.weights.gguf import Beginning, GgufFile, Truncated, header_bytes

_FIRST_BYTES = 1 << 18
"""Asked for at first: as much as most safetensors headers have."""
_MOST_BYTES = 1 << 26
_MOST_SAFETENSORS = 100_000_008
"""As the reader of safetensors has it."""
_SMALL_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of a GGUF file that are read with its hyper-parameters."""


class Source(Protocol):
    """Files by their names."""

    def begin(self, file: str, nbytes: int) -> tuple[bytes, int]:
        """The first bytes of a file, at most `nbytes`, and how many it has. Raises CheckpointError."""

    def read(self, file: str, begin: int, nbytes: int) -> bytes:
        """Bytes `begin` .. `begin + nbytes - 1` of a file. Raises CheckpointError."""


def stand_in(source: Source, file: str, target: Path) -> None:
    """The stand-in of one file, at `target`, where nothing may be yet."""
    content, size = source.begin(file, _FIRST_BYTES)
    needed = _needed(target, content, size)
    while needed > len(content):
        content += source.read(file, len(content), needed - len(content))
        needed = _needed(target, content, size)
    try:
        with target.open("xb") as out:  # a new file: what a link leads to is never written
            out.write(content[:size])
            out.truncate(size)
    except OSError as error:
        raise CheckpointError(f"{target} cannot hold {size} bytes: {error.strerror or error}.") from None
    if target.suffix != ".safetensors":
        _add_small_tensors(source, file, target)


def _add_small_tensors(source: Source, file: str, target: Path) -> None:
    entries = GgufFile(target).entries
    with target.open("r+b") as out:
        for name in _SMALL_TENSORS:
            if name in entries and entries[name].nbytes < _FIRST_BYTES:
                out.seek(entries[name].begin)
                out.write(source.read(file, entries[name].begin, entries[name].nbytes))


def _needed(path: Path, content: bytes, size: int) -> int:
    """How many of a file's first bytes hold its header, or may."""
    most = _MOST_BYTES
    if path.suffix != ".safetensors":
        try:
            return min(header_bytes(Beginning(path, content)), size)
        except Truncated:
            needed = len(content) * 4
    else:
        needed, most = 8 + int.from_bytes(content[:8], "little"), _MOST_SAFETENSORS
    if len(content) >= size or needed > most:
        # Broken: the reader will say how.
        return len(content)
    return min(needed, size)
