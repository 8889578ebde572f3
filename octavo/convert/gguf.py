"""A Hugging Face folder to one GGUF file that llama.cpp reads: metadata, tokenizer, then the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.build.declare import declare
from octavo.build.load import located
from octavo.config.arch import Arch
from octavo.config.generation import load_generation_config, token_ids
from octavo.config.gguf_encoders import ENCODERS
from octavo.config.pooling import folder_reader, read_pooler
from octavo.convert.ggml_types import Mix, Traits, encode, mix_of, tensor_type
from octavo.convert.gguf_arch import arch_metadata, encoder_metadata, rope_tensors
from octavo.convert.gguf_file import Metadata, Tensor, Value, write_gguf
from octavo.convert.gguf_tokenizer import special_ids, tokenizer_metadata
from octavo.convert.plain import plain_model
from octavo.errors import UnsupportedModel
from octavo.layers.decoder import Decoder
from octavo.layers.norm import RMSNorm
from octavo.models.gguf import UNTIED, GgufSource, gguf_name, source, stored_shape, to_pairs
from octavo.models.names import sources
from octavo.ops.contract import Param
from octavo.ops.layouts import Dense
from octavo.pipeline.template import load_template
from octavo.pipeline.tokenizer import Tokenizer
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.dummy import DummyWeights
from octavo.weights.ggml import NAMED

_CHUNK_ELEMENTS = 1 << 20
"""Rows are converted in pieces of about this many values."""
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    nbytes: int
    tensors: int
    types: dict[str, int]
    """Tensor type -> number of values."""


def convert(
    folder: Path,
    target: Path,
    outtype: str = "auto",
    *,
    dummy: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Report:
    """Write the checkpoint in `folder` to the file `target`. `outtype`: a mix, or auto, the stored dtype.

    `dummy`: random weights for a folder without any. Raises CheckpointError, UnsupportedModel or ConfigError.
    """
    raw, arch = plain_model(folder)
    name = gguf_name(arch.architecture)
    model = declare(arch)
    dtype = arch.dtype if arch.dtype in ("float16", "float32") else "bfloat16"
    checkpoint: Checkpoint | DummyWeights = DummyWeights(dtype) if dummy else open_checkpoint(folder)
    stored = {"float32": "f32", "float16": "f16"}.get(dtype, "bf16")
    mix = mix_of(stored if outtype == "auto" else outtype)
    metadata = _metadata(folder, raw, arch, name, mix)
    reader = _Reader(model, checkpoint)
    tensors = _tensors(model, reader, mix, name)
    nbytes = write_gguf(target, metadata, tensors, on_bytes)
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type.name] = types.get(tensor.type.name, 0) + int(np.prod(tensor.shape))
    return Report(target, nbytes, len(tensors), types)


def _metadata(folder: Path, raw: dict[str, Any], arch: Arch, name: str, mix: Mix) -> Metadata:
    found: Metadata = {
        "general.architecture": Value("string", name),
        "general.type": Value("string", "model"),
        "general.file_type": Value("u32", mix.file_type),
        "general.quantization_version": Value("u32", _QUANTIZATION_VERSION),
        **arch_metadata(arch, name),
        **(_encoder(folder, raw, arch, name) if name in ENCODERS else {}),
    }
    tokenizer = Tokenizer.load(folder)
    found.update(tokenizer_metadata(tokenizer, name, arch.vocab))
    title = folder.resolve().name
    # llama.cpp takes a model of this name for one with the token </s>, and fails when there is none.
    if not re.search("phi-?3", title, re.IGNORECASE) or tokenizer.token_id("</s>") is not None:
        found["general.name"] = Value("string", title)
    ends = load_generation_config("auto", folder, None).eos_ids or token_ids(raw.get("eos_token_id"))
    found.update(special_ids(tokenizer.eos_id, ends))
    template = load_template(folder, tokenizer)
    if template is not None:
        found["tokenizer.chat_template"] = Value("string", template.source)
    return found


def _encoder(folder: Path, raw: dict[str, Any], arch: Arch, name: str) -> Metadata:
    """What an encoder's vectors are made of. UnsupportedModel for labels and for layers behind it."""
    pooler = read_pooler(raw, arch.architecture, folder_reader(folder))
    if pooler is None or pooler.kind != "embed" or pooler.modules:
        raise UnsupportedModel("GGUF has no word for what this model makes of its vectors.")
    return encoder_metadata(arch, name, pooler.rows)


class _Reader:
    """Rows of a model's Params as float32, from wherever the checkpoint keeps them."""

    def __init__(self, model: Decoder, checkpoint: Checkpoint | DummyWeights) -> None:
        self._checkpoint = checkpoint
        self._offsets = {
            id(layer.weight): layer.offset for _, layer in model.walk() if isinstance(layer, RMSNorm)
        }
        self._made: tuple[str, list[Dense]] = ("", [])
        self._found = {} if isinstance(checkpoint, DummyWeights) else located(model, checkpoint)

    def rows(self, param: Param, start: int, order: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Some rows of a Param; `order` counts from row `start`. Gemma's norms come with their 1."""
        offset = np.float32(self._offsets.get(id(param), 0.0))
        parts = self._parts(param)
        if isinstance(order, slice):
            wanted = range(start + order.start, start + order.stop)
            pieces = []
            first = 0
            for part in parts:
                low, high = max(wanted.start, first), min(wanted.stop, first + part.shape[0])
                if low < high:
                    pieces.append(part.slice(0, low - first, high - first).dequantize())
                first += part.shape[0]
            values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            return values + offset if offset else values
        first = 0
        for part in parts:
            if first <= start < first + part.shape[0]:
                return part.take(order + (start - first)).dequantize()
            first += part.shape[0]
        raise ValueError(f"{param.name} has no row {start}")

    def expert(self, param: Param, expert: int) -> Dense:
        """One expert's matrix [rows, columns], or its bias [1, columns]."""
        if not isinstance(self._checkpoint, DummyWeights):
            made = self._found[param.name][expert]()
        elif param.kind == "vector":
            made = Dense(self._checkpoint.make(param).data[expert], "float32")
        else:
            layout = self._checkpoint.experts(param).make(expert)
            made = layout if isinstance(layout, Dense) else Dense(layout.dequantize(), "float32")
        return Dense(made.data.reshape(-1, param.shape[-1]), made.dtype)

    def _parts(self, param: Param) -> list[Dense]:
        """The Param's parts; the last ones stay, as one is asked for in many pieces."""
        if self._made[0] != param.name:
            if isinstance(self._checkpoint, DummyWeights):
                self._made = (param.name, [self._checkpoint.make(param)])
            else:
                self._made = (param.name, [piece() for piece in self._found[param.name]])
        return self._made[1]


def _tensors(model: Decoder, reader: _Reader, mix: Mix, name: str) -> list[Tensor]:
    found = [_fixed(tensor_name, values) for tensor_name, values in rope_tensors(model.arch).items()]
    for _, param in model.named_params():
        where = source(model, param)
        found += _of_param(model, reader, mix, param, where)
        if model.head and param is model.head.weight and param is model.embed.weight and name in UNTIED:
            again = GgufSource(("output.weight",), where.rows, where.heads)
            found += _of_param(model, reader, mix, param, again)
    return found


def _fixed(name: str, values: NDArray[np.float32]) -> Tensor:
    return Tensor(name, values.shape, NAMED["F32"], lambda: iter([values]))


def _of_param(model: Decoder, reader: _Reader, mix: Mix, param: Param, where: GgufSource) -> list[Tensor]:
    found = []
    start = 0
    arch = model.arch
    tied = arch.tied and "output.weight" not in where.names
    traits = Traits(
        arch.layers, tied, arch.heads // max(arch.kv_heads, 1), int(arch.config.get("num_experts") or 0)
    )
    for name, rows, heads in zip(where.names, where.rows, where.heads, strict=True):
        shape = stored_shape(name, rows, param)
        kind = tensor_type(mix, name, shape, traits)
        order = to_pairs(rows, heads) if heads else None
        if sources(model, param).experts:
            chunks = _expert_chunks(reader, param, kind)
        else:
            chunks = _chunks(reader, param, start, (rows, *param.shape[1:]), order, kind)
        found.append(Tensor(name, shape, kind, chunks))
        start += rows
    return found


def _expert_chunks(reader: _Reader, param: Param, kind: Any) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    """The maker of a stack's bytes: one expert after another, some rows at a time."""
    step = max(_CHUNK_ELEMENTS // param.shape[-1], 1)

    def make() -> Iterator[NDArray[np.uint8]]:
        for expert in range(param.shape[0]):
            matrix = reader.expert(param, expert)
            for low in range(0, matrix.shape[0], step):
                rows = matrix.slice(0, low, min(low + step, matrix.shape[0]))
                yield encode(rows.dequantize(), kind)

    return make


def _chunks(
    reader: _Reader,
    param: Param,
    start: int,
    shape: tuple[int, ...],
    order: NDArray[np.int64] | None,
    kind: Any,
) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    """The maker of a tensor's bytes: rows `start` on of a Param, in `order`, a few at a time."""
    step = max(_CHUNK_ELEMENTS // int(np.prod(shape[1:])), 1) if len(shape) > 1 else shape[0]

    def make() -> Iterator[NDArray[np.uint8]]:
        for low in range(0, shape[0], step):
            high = min(low + step, shape[0])
            rows = slice(low, high) if order is None else order[low:high]
            values = reader.rows(param, start, rows)
            yield encode(values.reshape(high - low, -1) if values.ndim > 1 else values[None], kind)

    return make
