"""A look at the path named as the model, before any work: what is no model is told apart by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from octavo.errors import CheckpointError

_GGUF = b"GGUF"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_MOST_ENTRIES = 1000
"""Of a folder that is looked through; a home folder named by mistake may hold many more."""
_WANTED = "Name a GGUF file, or the folder of a Hugging Face checkpoint (config.json and *.safetensors)."
_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}(\.gguf)?$")


def check_model_path(name: str, *, dummy: bool = False) -> None:
    """Raise CheckpointError when `name` is a path here that holds something else than a checkpoint.

    Nothing happens for a hub id, a GGUF file, or a folder with one or with config.json and weights: what
    those hold is the loader's matter. `dummy`: weights are made up, so none are needed.
    """
    path = Path(name)
    try:
        if path.is_file() and not is_gguf(path):
            raise _file(path)
        if path.is_dir():
            _check_folder(path, dummy)
    except (OSError, ValueError):
        return


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's four bytes, whatever it is called."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_GGUF)) == _GGUF
    except OSError:
        return False


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that it holds and is known by; None when it is something else.

    A folder with config.json and weights of another format is that. Of shards it is the first; projectors of
    multimodal models do not count. CheckpointError when the folder holds several models.
    """
    if path.is_file():
        return path if is_gguf(path) else None
    if not path.is_dir():
        return None
    entries = sorted(islice(path.iterdir(), _MOST_ENTRIES))
    if _is_checkpoint([entry.name for entry in entries]):
        return None
    found = [entry for entry in entries if _may_be_gguf(entry) and is_gguf(entry)]
    found = [file for file in found if not _LATER_SHARD.search(file.name) and "mmproj" not in file.name]
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds {len(found)} GGUF models: {', '.join(file.name for file in found[:5])}.",
            hint="Name one of the files.",
        )
    return found[0] if found else None


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a LoRA adapter and no model."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def _is_checkpoint(names: list[str]) -> bool:
    return "config.json" in names and any(name.endswith(_WEIGHTS) for name in names)


def _file(path: Path) -> CheckpointError:
    if (path.parent / "config.json").is_file():
        return CheckpointError(f"{path} is a file of a model.", hint=f"Name its folder: {path.parent}")
    return CheckpointError(f"{path} is a file, and no model that Octavo knows.", hint=_WANTED)


def _check_folder(path: Path, dummy: bool) -> None:
    entries = sorted(islice(path.iterdir(), _MOST_ENTRIES))
    names = [entry.name for entry in entries]
    configured = "config.json" in names
    if configured and (dummy or _is_checkpoint(names)):
        return
    if configured or gguf_in(path) is not None:
        return
    if "adapter_config.json" in names:
        raise _adapter(path)
    if inside := next(_models_inside(path), None):
        raise CheckpointError(f"There is no config.json in {path} itself.", hint=f"Did you mean {inside}?")
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise CheckpointError(f"There is no config.json in {path} (found {shown or 'nothing'}).", hint=_WANTED)


def _may_be_gguf(entry: Path) -> bool:
    """Files with another format's suffix need not be opened."""
    return not entry.name.endswith((*_WEIGHTS, ".json", ".txt", ".md", ".py")) and entry.is_file()


def _adapter(path: Path) -> CheckpointError:
    try:
        base = str(json.loads((path / "adapter_config.json").read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        base = ""
    made_for = f" made for {base[:200]}" if base else ""
    return CheckpointError(
        f"{path} holds a LoRA adapter{made_for}, not a whole model.",
        hint=f"Name the base model, and the adapter with --lora-modules NAME={path}",
    )


def _models_inside(path: Path) -> Iterator[Path]:
    """Folders below that are model folders: ``x/``, or ``snapshots/REVISION/`` in a cache of the hub."""
    for pattern in ("*/config.json", "snapshots/*/config.json"):
        yield from (found.parent for found in sorted(islice(path.glob(pattern), _MOST_ENTRIES)))
