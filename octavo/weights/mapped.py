"""A file mapped into memory, read-only: bounds-checked views, and pages that can be given back.

A view costs no memory of its own: the kernel pages it in as it is read. `release` drops the pages of a
tensor that has been packed, so that loading does not hold the whole checkpoint and the packed copy at once.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import CheckpointError

Described = tuple[str, tuple[int, ...]]
"""(dtype, shape) of a tensor."""

_LFS_PREFIX = b"version https://git-lfs"
_WEB_PREFIXES = (b"<!doctype", b"<html")


class MappedFile:
    """The bytes of `path`, which must not shrink while this lives.

    Raises CheckpointError when the file cannot be opened, is empty, or is a stand-in for the weights (a
    git-lfs pointer, a web page that was saved in place of the download).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A pipe would wait for a writer for ever.
            if path.exists() and not path.is_file() and not path.is_dir():
                raise CheckpointError(f"{path} is no regular file.")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise CheckpointError(f"{path} is empty (0 bytes).", hint="Download it again.") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        self.nbytes = len(self._map)
        self._refuse_stand_ins()

    def _refuse_stand_ins(self) -> None:
        start = self._map[:64].lower()
        if start.startswith(_LFS_PREFIX):
            raise CheckpointError(
                f"{self.path} is a git-lfs pointer of {self.nbytes} bytes, not the weights themselves.",
                hint="Run `git lfs install && git lfs pull` in that folder, or download the model again.",
            )
        if start.lstrip().startswith(_WEB_PREFIXES):
            raise CheckpointError(
                f"{self.path} is a web page, not weights.", hint="The download went wrong: download it again."
            )

    def __len__(self) -> int:
        return self.nbytes

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of at most `nbytes` bytes from `offset` on (fewer at the end of the file)."""
        return self._map[offset : offset + nbytes]

    def array(self, offset: int, nbytes: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """A read-only flat view of `[offset, offset + nbytes)`; a copy when it is not aligned to `dtype`.

        The caller has checked that the range lies inside the file and is a multiple of the item size.
        """
        view = np.frombuffer(self._map, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)
        if view.flags.aligned:
            return view
        copy = view.copy()
        copy.flags.writeable = False
        return copy

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Ask the kernel to read the range ahead."""
        self._advise(offset, nbytes, "MADV_WILLNEED")

    def release(self, offset: int, nbytes: int) -> None:
        """Drop the range from this process's memory; reading it again reads the file again."""
        self._advise(offset, nbytes, "MADV_DONTNEED")

    def _advise(self, offset: int, nbytes: int, advice: str) -> None:
        option = getattr(mmap, advice, None)
        if option is None or nbytes == 0:
            return
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(option, start, offset + nbytes - start)
