"""To a Hugging Face folder of safetensors: from GGUF, from `.bin`, or from safetensors of another dtype.

What is quantized in a GGUF file is written as the numbers it stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.build.declare import declare
from octavo.build.load_gguf import load_gguf, plain_norms
from octavo.build.source import Source, open_source
from octavo.config.arch import read_arch
from octavo.convert.hf_config import config_json, generation_json
from octavo.convert.hf_tokenizer import write_tokenizer
from octavo.convert.plain import plain_model
from octavo.convert.safetensors_file import Piece, Written, copy_text, new_folder, write_json, write_weights
from octavo.errors import CheckpointError, ConfigError, UnsupportedModel
from octavo.layers.decoder import Decoder
from octavo.layers.norm import RMSNorm
from octavo.models import names
from octavo.ops.contract import Param
from octavo.ops.layouts import FLOATS, Dense, Layout
from octavo.pipeline.vocab import read_json
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.gguf import GgufCheckpoint

OUTTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_CHUNK_ELEMENTS = 1 << 21


def outtype_of(name: str) -> str | None:
    """The dtype of an --outtype; None for auto, the stored one. ConfigError for what GGUF alone has."""
    if name == "auto":
        return None
    if name not in OUTTYPES:
        raise ConfigError(
            f"--outtype {name}: safetensors are written as auto, {', '.join(OUTTYPES)}.",
            hint="Use --to gguf, or octavo quantize.",
        )
    return OUTTYPES[name]


def to_safetensors(
    path: Path, target: Path, outtype: str = "auto", on_bytes: Callable[[int], None] = lambda _: None
) -> Written:
    """Write the model in `path` (a GGUF file, or a folder) to the new folder `target`.

    Raises CheckpointError, UnsupportedModel or ConfigError.
    """
    dtype = outtype_of(outtype)
    source = open_source(path, read_json)
    if source.gguf is not None:
        return _from_gguf(source, source.gguf, target, dtype, on_bytes)
    raw, _ = plain_model(source.folder)
    checkpoint = open_checkpoint(source.folder)
    pieces = [_cast(checkpoint, name, dtype) for name in checkpoint.names()]
    config = {**raw}
    if dtype:
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    with new_folder(target) as made:
        copy_text(source.folder, made)
        write_json(made / "config.json", config)
        written = write_weights(made, pieces, on_bytes)
    return Written(target, written.nbytes, written.tensors, written.types)


def _cast(checkpoint: Checkpoint, name: str, dtype: str | None) -> Piece:
    stored, shape = checkpoint.described(name)
    wanted = dtype if dtype and stored in FLOATS else stored

    def chunks() -> Iterator[NDArray[Any]]:
        tensor = checkpoint.get(name)
        if wanted == stored:
            yield tensor.data
        else:
            yield from _rows(tensor, 0, shape[0] if shape else 1, wanted, name)
        checkpoint.release(name)

    return Piece(name, wanted, shape, chunks)


def _rows(
    layout: Layout, start: int, stop: int, dtype: str, name: str, less: float = 0.0, *, turned: bool = False
) -> Iterator[NDArray[Any]]:
    """Rows of a weight as `dtype`, some at a time; `less` is taken off, `turned` gives the transpose."""
    width = int(np.prod(layout.shape[1:])) if len(layout.shape) > 1 else 1
    step = stop - start if turned or not layout.shape else max(_CHUNK_ELEMENTS // max(width, 1), 1)
    for low in range(start, stop, step):
        whole = not layout.shape
        values = (layout if whole else layout.slice(0, low, min(low + step, stop))).dequantize()
        if less:
            values = values - np.float32(less)
        with np.errstate(over="ignore"):
            made = Dense.of(values, dtype)
        if dtype == "float16" and (np.isinf(made.data) & np.isfinite(values)).any():
            raise CheckpointError(
                f"Tensor {name} holds {float(np.abs(values).max()):g}, but the largest float16 is 65504.",
                hint="Use --outtype bf16 or f32.",
            )
        yield made.data.T if turned else made.data


def _from_gguf(
    source: Source, gguf: GgufCheckpoint, target: Path, dtype: str | None, on_bytes: Callable[[int], None]
) -> Written:
    config = config_json(source.config, gguf.metadata)
    dtype = dtype or _stored(gguf)
    arch = read_arch(copy.deepcopy(source.config))
    if arch.architecture == "GptOssForCausalLM":
        raise UnsupportedModel(
            "gpt-oss is not written from GGUF to safetensors: its experts are kept otherwise."
        )
    offsets = {
        layer.weight.name: layer.offset for _, layer in declare(arch).walk() if isinstance(layer, RMSNorm)
    }
    model = plain_norms(declare(arch))
    weights = _InOrder(load_gguf(model, gguf, "float32"))
    pieces = [
        piece
        for _, param in model.named_params()
        for piece in _of_param(model, param, weights, dtype, offsets.get(param.name, 0.0))
    ]
    with new_folder(target) as made:
        write_json(made / "config.json", {**config, "torch_dtype": dtype})
        if generation := generation_json(gguf.metadata):
            write_json(made / "generation_config.json", generation)
        write_tokenizer(made, gguf.metadata, str(gguf.path))
        written = write_weights(made, pieces, on_bytes)
    return Written(target, written.nbytes, written.tensors, written.types)


def _stored(gguf: GgufCheckpoint) -> str:
    """The dtype of most of a file's matrices; bfloat16 for quantized ones."""
    kinds = [gguf.entry(name).type.name for name in gguf.names() if len(gguf.entry(name).shape) > 1]
    most = max(set(kinds), key=kinds.count) if kinds else "BF16"
    return {"F32": "float32", "F16": "float16"}.get(most, "bfloat16")


class _InOrder:
    """The weights of a load pass, asked for in its order: one is held at a time."""

    def __init__(self, items: Iterator[tuple[Param, Layout]]) -> None:
        self._items = items
        self._now: tuple[Param, Layout] | None = None

    def of(self, param: Param) -> Layout:
        while self._now is None or self._now[0] is not param:
            self._now = None
            self._now = next(self._items)
        return self._now[1]


def _of_param(model: Decoder, param: Param, weights: _InOrder, dtype: str, offset: float) -> list[Piece]:
    """The tensors of a Param by their first names."""
    source = names.sources(model, param)
    found = []
    start = 0
    for part, spellings in enumerate(source.names):
        rows = source.rows[part]
        chunks = partial(
            _part, param, weights, start, start + rows, dtype, spellings[0], offset, source.transpose
        )
        found.append(Piece(spellings[0], dtype, source.shape(part, param), chunks))
        start += rows
    return found


def _part(
    param: Param,
    weights: _InOrder,
    start: int,
    stop: int,
    dtype: str,
    name: str,
    offset: float,
    turned: bool,
) -> Iterator[NDArray[Any]]:
    yield from _rows(weights.of(param), start, stop, dtype, name, offset, turned=turned)
