"""A checkpoint as the rest of Octavo sees it: names, tensors one at a time, and pages given back.

`open_checkpoint` chooses by what is in the folder. Opening reads headers only; `get` maps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from octavo.errors import CheckpointError
from octavo.log import logger
from octavo.ops.layouts import Dense
from octavo.weights.mapped import Described
from octavo.weights.safetensors import SafetensorsFile

log = logger(__name__)

_INDEX_LIMIT_BYTES = 64 << 20
_LONGEST_NAME_BYTES = 240
"""Of a shard's file, below what file systems take."""
_FORMATS = {"safetensors": "safetensors", "fastsafetensors": "safetensors", "pt": "pt", "npcache": "pt"}
"""What a --load-format asks for; the others (auto aside) ask for what Octavo finds out by itself."""
_SUFFIXES = {"safetensors": (".safetensors",), "pt": (".bin", ".pt", ".pth")}
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "adapter_model", "scaler")


class Checkpoint(Protocol):
    """Named tensors on disk. `get` returns read-only data that stays valid while the checkpoint lives."""

    nbytes: int
    """Sum over all tensors."""
    folder: Path

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""

    def get(self, name: str) -> Dense:
        """One tensor; KeyError when there is none of that name."""

    def described(self, name: str) -> Described:
        """A tensor's dtype and shape, from the header; KeyError when there is none of that name."""

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor; KeyError when there is none of that name."""

    def release(self, name: str) -> None:
        """The tensor has been used: drop its pages. It can be read again, from disk."""


class TensorFile(Protocol):
    """What a checkpoint is made of: one file of one format."""

    path: Path
    nbytes: int

    @property
    def entries(self) -> Mapping[str, Any]: ...

    def get(self, name: str) -> Dense: ...

    def described(self, name: str) -> Described: ...

    def release(self, name: str) -> None: ...


class FileCheckpoint:
    """Tensors from one or more files of either format."""

    def __init__(
        self, folder: Path, files: Iterable[TensorFile], homes: Mapping[str, Path] | None = None
    ) -> None:
        """`homes`: tensor name -> file, from an index; it decides when two files hold the same name."""
        self.folder = folder
        self._where: dict[str, TensorFile] = {}
        for file in files:
            for name in file.entries:
                home = (homes or {}).get(name)
                if home is not None and home != file.path:
                    continue
                if name in self._where:
                    raise CheckpointError(
                        f"Tensor {name!r} is in both {self._where[name].path} and {file.path}.",
                        hint="Remove the files that do not belong to the model.",
                    )
                self._where[name] = file
        for name, home in (homes or {}).items():
            if name not in self._where:
                raise CheckpointError(
                    f"The index says that tensor {name!r} is in {home}, but it is not there."
                )
        self.nbytes = sum(file.nbytes for file in dict.fromkeys(self._where.values()))

    def names(self) -> tuple[str, ...]:
        return tuple(self._where)

    def get(self, name: str) -> Dense:
        return self._where[name].get(name)

    def described(self, name: str) -> Described:
        return self._where[name].described(name)

    def file_of(self, name: str) -> Path:
        return self._where[name].path

    def release(self, name: str) -> None:
        self._where[name].release(name)


def open_checkpoint(folder: Path, load_format: str = "auto") -> Checkpoint:
    """The checkpoint in `folder` (or the single weight file that `folder` is).

    Safetensors are preferred to `.bin` and `.pt`. When `load_format` asks for what is not there, one warning
    says so and what is there is read. Raises CheckpointError for no weights, a missing shard, a broken file.
    """
    if folder.is_file():
        return FileCheckpoint(folder.parent, [_open_file(folder)])
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a directory.")
    wanted = _FORMATS.get(load_format, "")
    order = ("pt", "safetensors") if wanted == "pt" else ("safetensors", "pt")
    for kind in order:
        found = _candidates(folder, _SUFFIXES[kind])
        if not found:
            continue
        if load_format != "auto" and wanted != kind:
            log.warning(
                "--load-format %s, but %s has %s files: reading those.",
                load_format,
                folder,
                _SUFFIXES[kind][0],
            )
        return _open_set(folder, kind, found)
    raise CheckpointError(
        f"No weights in {folder}: expected *.safetensors or pytorch_model*.bin, found {_listing(folder)}.",
        hint="Give the folder that holds the model's weights, or --load-format dummy for random ones.",
    )


def _candidates(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Weight files and their indexes by name; what training left beside them is not weights."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = path.name
        is_index = any(name.endswith(f"{suffix}.index.json") for suffix in suffixes)
        if (path.suffix in suffixes and not name.startswith(_NOT_WEIGHTS)) or is_index:
            found[name] = path
    return found


def _open_set(folder: Path, kind: str, found: dict[str, Path]) -> FileCheckpoint:
    """One set of files: the single file, else the index's shards, else every file of the kind."""
    single = {"safetensors": ("model.safetensors",), "pt": ("pytorch_model.bin", "model.pt")}[kind]
    for name in single:
        if name in found:
            return FileCheckpoint(folder, [_open_file(found[name])])
    standard = f"{single[0]}.index.json"
    indexes = [name for name in found if name.endswith(".index.json")]
    if standard in indexes or len(indexes) == 1:
        return _open_indexed(folder, found[standard if standard in indexes else indexes[0]])
    files = [path for name, path in found.items() if not name.endswith(".index.json")]
    own = [path for path in files if not path.name.startswith("consolidated")]
    return FileCheckpoint(folder, [_open_file(path) for path in own or files])


def _open_indexed(folder: Path, index: Path) -> FileCheckpoint:
    """The shards that an index names: `{"weight_map": {tensor: file}}`."""
    weight_map = _read_index(index)
    shards = {name: _inside(folder, index, name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, path in shards.items() if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{folder} lacks {missing[0]}{more}: its index names {len(shards)} shards, "
            f"{len(shards) - len(missing)} are here.",
            hint="Download the model again; finished files are kept.",
        )
    homes = {tensor: shards[name] for tensor, name in weight_map.items()}
    return FileCheckpoint(folder, [_open_file(path) for path in shards.values()], homes)


def _read_index(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > _INDEX_LIMIT_BYTES:
            raise CheckpointError(f"{index} is larger than {_INDEX_LIMIT_BYTES} bytes.")
        parsed = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not valid JSON: {error}.", hint="Download it again.") from None
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror or error}.") from None
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(value, str) for value in weight_map.values())
    ):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names.")
    return weight_map


def _inside(folder: Path, index: Path, name: str) -> Path:
    """`name` as a path below `folder`; an index may not reach outside it."""
    parts = PurePosixPath(name).parts
    strange = any(char in name for char in '\\:"') or not name.isprintable()
    strange = strange or len(name.encode()) > _LONGEST_NAME_BYTES
    if not parts or name.startswith("/") or ".." in parts or strange:
        raise CheckpointError(f"{index} names the file {name[:120]!r}, which is not inside its folder.")
    return folder.joinpath(*parts)


def _open_file(path: Path) -> TensorFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        from octavo.weights.pickled import PickledFile

        return PickledFile(path)
    raise CheckpointError(f"{path} is no weight file that Octavo reads (.safetensors, .bin, .pt).")


def _listing(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
