"""The model in the form that each peer reads, at the number of bits that Octavo runs: made once and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.checkpoint import Tensor, kept, whole_folder, write_safetensors
from octavo.bench.peers import Work
from octavo.errors import ConfigError
from octavo.ops.layouts import f32_to_bf16
from octavo.pipeline.vocab import read_json
from octavo.weights.checkpoint import Checkpoint, open_checkpoint

GGUF = {32: "f32", 16: "bf16", 8: "q8_0", 4: "q4_0"}
"""Bits to the type of a GGUF file's matrices."""
_GROUP = 128
"""Columns that share a scale in GPTQ's usual form."""


def form(name: str, work: Work) -> tuple[Path, str]:
    """(where the peer finds the model, its number format). Raises ConfigError or CheckpointError."""
    if name in work.models:
        return Path(work.models[name]).expanduser(), ""
    if name == "transformers" or (name == "vllm" and work.bits >= 16):
        return work.model, work.dtype
    if name == "vllm":
        label, write = ("W8A8", _write_w8a8) if work.bits == 8 else ("GPTQ int4", _write_gptq)
        folder = _kept(work, f"vllm-int{work.bits}")
        return whole_folder(folder, lambda part: write(work.model, part)), label
    kind = GGUF[work.bits]
    if name == "openvino" and kind == "bf16":
        kind = "f16"  # It reads no bfloat16; it computes in bfloat16 all the same where the processor can.
    return _gguf(work, kind), kind.upper()


def _kept(work: Work, kind: str) -> Path:
    """A path of its own for every state of the checkpoint's files."""
    files = sorted(work.model.glob("*.safetensors")) or sorted(work.model.glob("*.bin"))
    facts = [
        str(work.model.resolve()),
        *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files),
    ]
    return kept() / f"{work.model.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}-{kind}"


def _gguf(work: Work, kind: str) -> Path:
    from octavo.convert.gguf import convert

    def write(folder: Path) -> None:
        convert(work.model, folder / "model.gguf", kind)

    return whole_folder(_kept(work, kind), write) / "model.gguf"


# ---- vLLM's quantized checkpoints -------------------------------------------------------------------------


def _write_w8a8(source: Path, folder: Path) -> None:
    """compressed-tensors: a scale for each row of int8 weights, and activations rounded token by token."""
    bits = {"num_bits": 8, "type": "int", "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**bits, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    checkpoint = _begin(source, folder, config)
    write_safetensors(folder / "model.safetensors", _each(checkpoint, _w8a8))


def _write_gptq(source: Path, folder: Path) -> None:
    """GPTQ's form with groups of 128, symmetric; the codes are the nearest ones."""
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": _GROUP,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    checkpoint = _begin(source, folder, config)
    write_safetensors(folder / "model.safetensors", _each(checkpoint, _gptq))


def _begin(source: Path, folder: Path, quantization: dict[str, Any]) -> Checkpoint:
    """Copy what is no weight, and say in config.json how the weights stand."""
    config = read_json(source / "config.json")
    if "quantization_config" in config:
        raise ConfigError(
            "The checkpoint is quantized already.", hint="Name the model for vLLM: --peer-model vllm=FOLDER."
        )
    for path in source.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}, indent=2))
    return open_checkpoint(source)


def _each(checkpoint: Checkpoint, quantized: Any) -> Iterator[Tensor]:
    """Matrices of the blocks go through `quantized`, everything else stands in bfloat16."""
    for name in checkpoint.names():
        shape = checkpoint.get(name).shape
        if name.endswith("_proj.weight") and len(shape) == 2:
            yield from quantized(checkpoint, name, shape)
        else:
            yield name, "bfloat16", shape, partial(_stored, checkpoint, name)


def _values(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return checkpoint.get(name).dequantize()


def _stored(checkpoint: Checkpoint, name: str) -> NDArray[np.uint16]:
    return f32_to_bf16(_values(checkpoint, name))


def _w8a8(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> Iterator[Tensor]:
    def scales() -> NDArray[np.float32]:
        most: NDArray[np.float32] = np.abs(_values(checkpoint, name)).max(axis=1, keepdims=True)
        return most / np.float32(127)

    yield name, "int8", shape, lambda: np.rint(_values(checkpoint, name) / scales()).astype(np.int8)
    yield f"{name}_scale", "bfloat16", (shape[0], 1), lambda: f32_to_bf16(scales())


def _gptq(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> Iterator[Tensor]:
    rows, cols = shape
    groups = cols // _GROUP
    stem = name.removesuffix("weight")

    def grouped() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        values = _values(checkpoint, name).reshape(rows, groups, _GROUP)
        return values, np.abs(values).max(axis=2, keepdims=True) / np.float32(7)

    def codes() -> NDArray[np.int32]:
        values, scales = grouped()
        whole = (np.rint(values / scales) + 8).astype(np.uint32).reshape(rows, cols // 8, 8)
        packed = np.bitwise_or.reduce(whole << np.arange(0, 32, 4, dtype=np.uint32), axis=2)
        return np.asarray(packed.T.view(np.int32))

    yield f"{stem}qweight", "int32", (cols // 8, rows), codes
    yield f"{stem}scales", "bfloat16", (groups, rows), lambda: f32_to_bf16(grouped()[1][..., 0].T)
    # A zero of 8 is stored as 7 in each of the eight places of a word.
    yield (
        f"{stem}qzeros",
        "int32",
        (groups, rows // 8),
        lambda: np.full((groups, rows // 8), 0x77777777, np.int32),
    )
    yield f"{stem}g_idx", "int32", (cols,), lambda: np.arange(cols, dtype=np.int32) // _GROUP
