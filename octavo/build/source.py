"""What stands behind a model's name: a Hugging Face folder, or a GGUF file. Headers are read, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.config.arch import Arch, read_arch
from octavo.config.gguf import config_of
from octavo.config.model_path import gguf_in
from octavo.errors import CheckpointError
from octavo.log import logger
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.gguf import GgufCheckpoint, open_gguf

log = logger(__name__)

Weights = Checkpoint | GgufCheckpoint
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Source:
    """A model on disk."""

    folder: Path
    """The folder, also when `gguf` is one file in it."""
    gguf: GgufCheckpoint | None
    config: dict[str, Any]
    """config.json's keys, or what stands for them in a GGUF file; {} for a folder without."""

    def arch(self, overrides: dict[str, Any] | None) -> Arch:
        """The architecture. Raises CheckpointError or UnsupportedModel."""
        if not self.config:
            raise CheckpointError(
                f"There is no config.json in {self.folder}.",
                hint="Name the folder of a Hugging Face checkpoint.",
            )
        return read_arch(self.config, overrides)

    def checkpoint(self, load_format: str = "auto", quantization: str | None = None) -> Weights:
        """The weights, opened. What is asked for and contradicts a GGUF file gets a warning and loses."""
        if self.gguf is None:
            return open_checkpoint(self.folder, load_format)
        if load_format not in ("auto", "gguf"):
            log.warning("--load-format %s, but %s is a GGUF file: reading that.", load_format, self.gguf.path)
        if self.quantized and quantization not in (None, "gguf"):
            log.warning("The GGUF file is quantized: --quantization %s is not used.", quantization)
        return self.gguf

    @cached_property
    def quantized(self) -> bool:
        """Whether a GGUF file holds matrices of another type than a float."""
        return self.gguf is not None and any(
            self.gguf.entry(name).type.name not in _FLOATS for name in self.gguf.names()
        )


def open_source(path: Path, read_config: Any, *, weights: bool = True) -> Source:
    """The model in `path`, a folder or a file. `read_config` parses a JSON file, {} for none.

    Without `weights` (random ones are wanted) a folder's config.json is enough. Raises CheckpointError.
    """
    found = gguf_in(path) if weights or path.is_file() else None
    if found is None:
        return Source(path, None, read_config(path / "config.json"))
    gguf = open_gguf(found)
    shapes = {name: gguf.entry(name).shape for name in gguf.names()}

    def values(name: str) -> list[float]:
        if name not in shapes:
            raise CheckpointError(f"{found}: the tensor {name} is missing.")
        return [float(value) for value in gguf.get(name).dequantize().reshape(-1)]

    source = Source(found.parent, gguf, config_of(gguf.metadata, shapes, values, str(found)))
    source.config.setdefault("torch_dtype", _dtype(gguf))
    if source.quantized:
        source.config["quantization_config"] = {"quant_method": "gguf"}
    return source


def _dtype(gguf: GgufCheckpoint) -> str:
    """float16 for a file of float16 matrices; bfloat16 keeps what all others need."""
    kinds = [gguf.entry(name).type.name for name in gguf.names() if len(gguf.entry(name).shape) > 1]
    return "float16" if kinds and kinds.count("F16") * 2 > len(kinds) else "bfloat16"
