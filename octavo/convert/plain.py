"""A folder of plain weights, which is what other forms are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.build.quantize import with_quantization
from octavo.config.arch import Arch, read_arch
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.pipeline.vocab import read_json


def plain_model(folder: Path) -> tuple[dict[str, Any], Arch]:
    """(config.json, what it says). CheckpointError without one, UnsupportedModel for quantized weights."""
    raw = read_json(folder / "config.json")
    if not raw:
        raise CheckpointError(f"There is no config.json in {folder}.")
    arch = with_quantization(read_arch(raw), folder, read_json)
    if arch.quantization:
        raise UnsupportedModel(
            "The checkpoint is quantized already; other forms are made from plain weights.",
            hint="Start from the checkpoint that it was made from.",
        )
    return raw, arch
