"""The load pass: every Param of a model once, from wherever its tensors stand, one at a time.

A backend packs what it gets and lets it go; the file's pages are given back when the next Param is asked for,
so that the peak while loading stays near one copy of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.build.load_gguf import load_gguf
from octavo.errors import CheckpointError
from octavo.layers.decoder import Decoder
from octavo.models import names
from octavo.models.names import Source
from octavo.ops.contract import Param
from octavo.ops.joining import join
from octavo.ops.layouts import FLOATS, Dense, Experts, Layout, f32_to_bf16
from octavo.quant.format import Format, Store, Tensors, tensor_name
from octavo.quant.online import Rounding
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.dummy import DummyWeights
from octavo.weights.gguf import GgufCheckpoint

_CHUNK_ELEMENTS = 4 << 20
"""Conversions go in pieces of this many elements, so that their temporaries stay small."""
_LISTED = 5


def load(
    model: Decoder,
    checkpoint: Checkpoint | GgufCheckpoint | DummyWeights,
    dtype: str,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
    roundings: Mapping[str, Rounding] | None = None,
    stored: Format | None = None,
) -> Iterator[tuple[Param, Layout]]:
    """Every Param of `model` (named by declare) with its weights; `dtype` is the resolved --dtype.

    Vectors come as float32. Matrices and tables keep their stored dtype, but what is stored wider than
    `dtype` (float32 under bfloat16 or float16) is rounded to it. The arrays may be read-only views of the
    file: pack or copy them before asking for the next item, lest their pages be read again. `on_bytes` gets
    the bytes read since it was last called. The matrices that `roundings` names come marked to be rounded
    while they are packed, from their stored dtype. `stored` is the format of a quantized checkpoint, whose
    matrices come in the layouts that it decodes into.

    Raises CheckpointError at once for missing and left-over tensors, on the way for wrong shapes and dtypes.
    """
    params = [param for _, param in model.named_params()]
    rounded = roundings or {}
    if isinstance(checkpoint, DummyWeights):
        return _made(params, checkpoint, on_bytes, rounded)
    if isinstance(checkpoint, GgufCheckpoint):
        return load_gguf(model, checkpoint, dtype, on_bytes=on_bytes, roundings=rounded)
    names.choose_spelling(model, set(checkpoint.names()))
    wanted = [(param, names.sources(model, param)) for param in params]
    unused = tuple(re.compile(pattern) for pattern in (stored.unused if stored else ()))

    def may_be_unused(name: str) -> bool:
        return names.may_be_unused(model, name) or any(pattern.search(name) for pattern in unused)

    return stream(wanted, checkpoint, dtype, may_be_unused, on_bytes, rounded, stored)


def stream(
    wanted: list[tuple[Param, Source]],
    checkpoint: Checkpoint,
    dtype: str,
    may_be_unused: Callable[[str], bool],
    on_bytes: Callable[[int], None],
    roundings: Mapping[str, Rounding] | None = None,
    stored: Format | None = None,
) -> Iterator[tuple[Param, Layout]]:
    """`load` for Params whose sources are known."""
    present = set(checkpoint.names())
    found = [_Found(param, source, _find(param, source, present, stored)) for param, source in wanted]
    _refuse_missing(checkpoint.folder, found)
    _refuse_incomplete(checkpoint, found, present, stored)
    left = present - {name for item in found for name in item.names}
    _refuse_left_over(checkpoint, left - _idle_biases(checkpoint, left, found), may_be_unused)
    return _read(found, checkpoint, dtype, on_bytes, roundings or {}, stored)


def located(model: Decoder, checkpoint: Checkpoint) -> dict[str, list[Callable[[], Dense]]]:
    """Where every Param of `model` stands in a checkpoint of plain weights: by name, makers of its parts.

    The parts stand one below the other and keep their stored dtype. Raises CheckpointError as `load` does.
    """
    present = set(checkpoint.names())
    found = [
        _Found(param, source, _find(param, source, present, None))
        for param, source in ((param, names.sources(model, param)) for _, param in model.named_params())
    ]
    _refuse_missing(checkpoint.folder, found)
    used = {name for item in found for name in item.names}
    _refuse_left_over(checkpoint, present - used, lambda name: names.may_be_unused(model, name))
    return {
        item.param.name: [
            partial(_part, item, part, name, _store(item, part, checkpoint))
            for part, name in enumerate(item.names)
        ]
        for item in found
    }


@dataclass(frozen=True)
class _Piece:
    """One part of a Param as it was found: a plain tensor, or the tensors of a quantized module `stem`."""

    names: tuple[str, ...]
    stem: str = ""
    suffixes: tuple[str, ...] = ()
    rows: str = ""
    """Which rows of a stack of experts: a word of names.STACKED; empty: no stack."""


@dataclass(frozen=True)
class _Found:
    """A Param, where it should be, and how each part was found (None: not at all)."""

    param: Param
    source: Source
    spelled: tuple[_Piece | None, ...]

    @property
    def pieces(self) -> list[_Piece]:
        return [piece for piece in self.spelled if piece is not None]

    @property
    def names(self) -> list[str]:
        return [name for piece in self.pieces for name in piece.names]


def _find(
    param: Param, source: Source, present: set[str], stored: Format | None
) -> tuple[_Piece | None, ...]:
    quantized = stored if param.kind != "vector" else None
    return tuple(_piece(spellings, present, quantized) for spellings in source.names)


def _piece(spellings: tuple[str, ...], present: set[str], stored: Format | None) -> _Piece | None:
    """The first spelling that the checkpoint has, quantized or plain."""
    for spelling in spellings:
        name, _, rows = spelling.partition(":")
        stem = name.removesuffix(".weight")
        suffixes = stored.suffixes(stem, present) if stored else ()
        if suffixes:
            return _Piece(tuple(tensor_name(stem, suffix) for suffix in suffixes), stem, suffixes, rows)
        if name in present:
            return _Piece((name,), rows=rows)
    return None


def _refuse_incomplete(
    checkpoint: Checkpoint, found: list[_Found], present: set[str], stored: Format | None
) -> None:
    """A quantized module has all of its tensors."""
    for item in found:
        for piece in item.pieces:
            missing = [name for name in piece.names if name not in present]
            if missing and stored:
                there = [name for name in piece.names if name in present]
                raise CheckpointError(
                    f"Tensor {missing[0]} is missing from {checkpoint.folder}; expected beside "
                    f"{', '.join(there)} of a module stored as {stored.method}.",
                    hint="Is the download complete?",
                )


def _idle_biases(checkpoint: Checkpoint, left: set[str], found: list[_Found]) -> set[str]:
    """Biases of nothing but zeros, which some quantizers give to modules that have none."""
    stems = {piece.stem for item in found for piece in item.pieces if piece.stem}
    biases = {name for name in left if name.endswith(".bias") and name.removesuffix(".bias") in stems}
    return {name for name in biases if not checkpoint.get(name).data.any()}


def _refuse_missing(folder: Path, found: list[_Found]) -> None:
    missing = [(item, part) for item in found for part, piece in enumerate(item.spelled) if piece is None]
    if not missing:
        return
    item, part = missing[0]
    first, *others = item.source.names[part]
    also = f" (nor as {', '.join(others)})" if others else ""
    more = f" {len(missing) - 1} more are missing." if len(missing) > 1 else ""
    raise CheckpointError(
        f"Tensor {first} is missing from {folder}{also}; expected shape "
        f"{_shape(item.source.shape(part, item.param))}.{more}",
        hint="Is it the checkpoint that config.json describes, and is its download complete?",
    )


def _refuse_left_over(checkpoint: Checkpoint, unused: set[str], may_be_unused: Callable[[str], bool]) -> None:
    strange = sorted(name for name in unused if not may_be_unused(name))
    if not strange:
        return
    more = f" and {len(strange) - _LISTED} more" if len(strange) > _LISTED else ""
    raise CheckpointError(
        f"The model has no place for {len(strange)} of the tensors in {checkpoint.file_of(strange[0])}: "
        f"{', '.join(f'{name:.120}' for name in strange[:_LISTED])}{more}.",
        hint="Is it the checkpoint that config.json describes?",
    )


def _read(
    found: list[_Found],
    checkpoint: Checkpoint,
    dtype: str,
    on_bytes: Callable[[int], None],
    roundings: Mapping[str, Rounding],
    stored: Format | None,
) -> Iterator[tuple[Param, Layout]]:
    for item in found:
        if item.source.experts:
            yield from _read_experts(item, checkpoint, dtype, on_bytes, roundings, stored)
            continue
        size = sum(checkpoint.get(name).nbytes for name in item.names)
        rounding = roundings.get(item.param.name)
        tensor: Layout
        if stored and any(piece.stem for piece in item.pieces):
            tensor = _decoded(item, checkpoint, dtype, stored)
        else:
            parts = [_part(item, part, piece.names[0], checkpoint) for part, piece in enumerate(item.pieces)]
            if rounding and rounding.apart:
                tensor = join([rounding(_converted(part, item, "float32", checkpoint)) for part in parts])
            else:
                plain = _converted(_joined(parts), item, "float32" if rounding else dtype, checkpoint)
                tensor = rounding(plain) if rounding else plain
                del plain
            del parts
        yield item.param, tensor
        del tensor
        for name in item.names:
            checkpoint.release(name)
        on_bytes(size)


def _read_experts(
    item: _Found,
    checkpoint: Checkpoint,
    dtype: str,
    on_bytes: Callable[[int], None],
    roundings: Mapping[str, Rounding],
    stored: Format | None,
) -> Iterator[tuple[Param, Layout]]:
    """A Param with a part for each expert, made when it is asked for, its pages given back thereafter."""
    rounding = roundings.get(item.param.name)
    pieces = item.pieces

    def make(expert: int) -> Layout:
        piece, store = pieces[expert], _store(item, expert, checkpoint)
        if piece.stem and stored:
            decoded = _decoded_expert(item, expert, stored, store)
            return _converted(decoded, item, dtype, checkpoint) if isinstance(decoded, Dense) else decoded
        plain = _part(item, expert, piece.names[0], store)
        plain = _converted(plain, item, "float32" if rounding else dtype, checkpoint)
        return rounding(plain) if rounding else plain

    def done(expert: int) -> None:
        for name in pieces[expert].names:
            checkpoint.release(name)
        share = item.param.shape[0] if pieces[expert].rows else 1
        on_bytes(sum(checkpoint.get(name).nbytes for name in pieces[expert].names) // share)

    if item.param.kind == "vector":
        yield item.param, Dense(np.stack([make(e).dequantize() for e in range(len(pieces))]), "float32")
        return
    count, rows, cols = item.param.shape
    yield item.param, Experts((count, rows, cols), make, done)


def _decoded_expert(item: _Found, expert: int, stored: Format, store: Store) -> Layout:
    """One expert's matrix of a quantized module; where that holds gate and up, those of its rows."""
    piece, (count, rows, cols) = item.pieces[expert], item.param.shape
    if not piece.rows:
        return stored.read(Tensors(piece.stem, piece.suffixes, store), rows, cols)
    tensors = Tensors(piece.stem, piece.suffixes, store, (expert, count))
    if piece.rows == "all":
        return stored.read(tensors, rows, cols)
    wanted = np.arange(2 * rows)[names.STACKED[piece.rows](2 * rows)]
    return stored.read(tensors, 2 * rows, cols).take(wanted)


@dataclass(frozen=True)
class _OneExpert:
    """The tensors of one expert, where a checkpoint stacks those of all `count`: [count, rows, ...], or
    `turned` [count, columns, rows]. Of a quantized module (no `rows`) every row; see Tensors.stack.
    """

    checkpoint: Checkpoint
    expert: int
    count: int
    rows: str
    turned: bool

    def get(self, name: str) -> Dense:
        """The expert's rows of a tensor."""
        tensor = self.checkpoint.get(name)
        if not self.rows and tensor.data.ndim < 3:
            return tensor
        if tensor.data.ndim < 2 or len(tensor.data) != self.count:
            raise CheckpointError(
                f"Tensor {name} in {self.file_of(name)} has shape {_shape(tensor.shape)}, expected "
                f"{self.count} experts.",
                hint="Does config.json belong to this checkpoint?",
            )
        one = tensor.data[self.expert]
        one = one.T if self.turned else one
        return Dense(one[names.STACKED[self.rows or "all"](len(one))], tensor.dtype)

    def file_of(self, name: str) -> Path:
        return self.checkpoint.file_of(name)


def _store(item: _Found, part: int, checkpoint: Checkpoint) -> Store:
    """Where the tensors of one part are got from."""
    piece = item.pieces[part]
    if not piece.rows:
        return checkpoint
    turned = item.source.transpose and not piece.stem
    return _OneExpert(checkpoint, part, item.param.shape[0], "" if piece.stem else piece.rows, turned)


def _decoded(item: _Found, checkpoint: Checkpoint, dtype: str, stored: Format) -> Layout:
    """A Param of which at least one part is quantized, its parts one below the other."""
    layouts: list[Layout] = []
    for part, piece in enumerate(item.pieces):
        if piece.stem:
            tensors = Tensors(piece.stem, piece.suffixes, checkpoint)
            layout = stored.read(tensors, item.source.rows[part], item.param.shape[1])
            # Numbers that no other layout holds.
            if isinstance(layout, Dense):
                layout = _converted(layout, item, dtype, checkpoint)
            layouts.append(layout)
        else:
            plain = _part(item, part, piece.names[0], checkpoint)
            layouts.append(_converted(plain, item, dtype, checkpoint))
    return join(layouts)


def _made(
    params: list[Param],
    dummy: DummyWeights,
    on_bytes: Callable[[int], None],
    roundings: Mapping[str, Rounding],
) -> Iterator[tuple[Param, Layout]]:
    for param in params:
        rounding = roundings.get(param.name)
        if param.kind == "experts":
            yield param, _made_experts(dummy.experts(param), rounding)
            continue
        tensor = dummy.make(param)
        size = tensor.nbytes
        yield param, rounding(tensor) if rounding else tensor
        del tensor
        on_bytes(size)


def _made_experts(experts: Experts, rounding: Rounding | None) -> Experts:
    def make(expert: int) -> Layout:
        one = experts.make(expert)
        return rounding(one) if rounding and isinstance(one, Dense) else one

    return Experts(experts.shape, make)


def _part(item: _Found, part: int, name: str, checkpoint: Store) -> Dense:
    """One tensor, checked, turned round if it is stored so."""
    tensor = checkpoint.get(name)
    expected = item.source.shape(part, item.param)
    if tensor.shape != expected:
        raise CheckpointError(
            f"Tensor {name} in {checkpoint.file_of(name)} has shape {_shape(tensor.shape)}, expected "
            f"{_shape(expected)}.",
            hint="Does config.json belong to this checkpoint?",
        )
    if tensor.dtype not in FLOATS and tensor.dtype != "float64":
        raise CheckpointError(
            f"Tensor {name} in {checkpoint.file_of(name)} has the dtype {tensor.dtype}, expected one of "
            f"{', '.join(FLOATS)}.",
            hint="Quantized checkpoints need a quantization_config that Octavo reads.",
        )
    if tensor.dtype == "float64":
        tensor = Dense(tensor.data.astype(np.float32), "float32")
    turned = item.source.transpose and not item.source.experts
    return Dense(tensor.data.T, tensor.dtype) if turned else tensor


def _joined(parts: list[Dense]) -> Dense:
    """The parts one below the other; of several dtypes float32 is the one that holds them all."""
    if len(parts) == 1:
        return parts[0]
    kinds = {part.dtype for part in parts}
    if len(kinds) == 1:
        return Dense(np.concatenate([part.data for part in parts]), kinds.pop())
    return Dense(np.concatenate([part.dequantize() for part in parts]), "float32")


def _converted(tensor: Dense, item: _Found, dtype: str, checkpoint: Checkpoint) -> Dense:
    """The dtype that `load` promises, contiguous."""
    if item.param.kind == "vector":
        return Dense(np.ascontiguousarray(tensor.dequantize()), "float32")
    if tensor.dtype != "float32" or dtype == "float32":
        return Dense(np.ascontiguousarray(tensor.data), tensor.dtype)
    out: NDArray[Any] = np.empty(tensor.shape, dtype=FLOATS[dtype])
    for start, stop in _row_chunks(tensor.shape):
        out[start:stop] = _rounded(tensor.data[start:stop], item, dtype, checkpoint)
    return Dense(out, dtype)


def _row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    width = max(int(np.prod(shape[1:])), 1)
    step = max(_CHUNK_ELEMENTS // width, 1)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _rounded(values: NDArray[Any], item: _Found, dtype: str, checkpoint: Checkpoint) -> NDArray[Any]:
    """float32 to bfloat16 bits or float16. Infinities and NaN pass; a finite weight must stay finite."""
    if dtype == "bfloat16":
        return f32_to_bf16(values)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if (np.isinf(rounded) & np.isfinite(values)).any():
        largest = float(np.abs(values[np.isfinite(values)]).max())
        file = checkpoint.file_of(item.names[0])
        raise CheckpointError(
            f"Tensor {item.names[0]} in {file} holds {largest:g}, but the largest float16 is 65504.",
            hint="Use --dtype bfloat16 or --dtype float32.",
        )
    return rounded


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))
