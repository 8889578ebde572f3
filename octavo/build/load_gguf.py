"""The load pass for GGUF: every Param once, in the layout that its tensor's type decodes into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from octavo.errors import CheckpointError
from octavo.layers.decoder import Decoder
from octavo.layers.norm import RMSNorm
from octavo.models.gguf import GgufSource, source, stored_shape, to_halves
from octavo.models.names import STACKED
from octavo.ops.contract import Param
from octavo.ops.joining import join
from octavo.ops.layouts import Dense, Experts, Layout
from octavo.quant.online import Rounding
from octavo.weights.gguf import GgufCheckpoint

_UNUSED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Read with the hyper-parameters."""
_LISTED = 5


def plain_norms(model: Decoder) -> Decoder:
    """The model with norms that hold their whole weight, as GGUF stores Gemma's."""
    for _, layer in model.walk():
        if isinstance(layer, RMSNorm):
            layer.offset = 0.0
    return model


def load_gguf(
    model: Decoder,
    checkpoint: GgufCheckpoint,
    dtype: str,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
    roundings: Mapping[str, Rounding] | None = None,
) -> Iterator[tuple[Param, Layout]]:
    """Every Param of `model` (named by declare, with plain norms) with its weights, as `load` gives them.

    Raises CheckpointError at once for tensors that are missing, of another shape, or left over.
    """
    present = set(checkpoint.names())
    wanted = [(param, source(model, param, present)) for _, param in model.named_params()]
    for param, found in wanted:
        _check(checkpoint, param, found, present)
    left = sorted(present - {name for _, found in wanted for name in found.names} - set(_UNUSED))
    if left:
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        raise CheckpointError(
            f"The model has no place for {len(left)} of the tensors in {checkpoint.path}: "
            f"{', '.join(name[:80] for name in left[:_LISTED])}{more}."
        )
    return _read(wanted, checkpoint, dtype, on_bytes, roundings or {})


def _check(checkpoint: GgufCheckpoint, param: Param, found: GgufSource, present: set[str]) -> None:
    for name, rows in zip(found.names, found.rows, strict=True):
        expected = stored_shape(name, rows, param)
        if name not in present:
            raise CheckpointError(
                f"Tensor {name} is missing from {checkpoint.path}; expected shape {list(expected)}.",
                hint="Is its download complete?",
            )
        shape = checkpoint.entry(name).shape
        if shape != expected:
            raise CheckpointError(
                f"Tensor {name} in {checkpoint.file_of(name)} has shape {list(shape)}, expected "
                f"{list(expected)}."
            )


def _read(
    wanted: list[tuple[Param, GgufSource]],
    checkpoint: GgufCheckpoint,
    dtype: str,
    on_bytes: Callable[[int], None],
    roundings: Mapping[str, Rounding],
) -> Iterator[tuple[Param, Layout]]:
    for param, found in wanted:
        rounding = roundings.get(param.name)
        kept = "float32" if rounding else dtype
        if param.kind == "experts":
            yield param, _experts(checkpoint, param, found, kept, rounding, on_bytes)
            continue
        parts = [
            _part(checkpoint, param, name, rows, heads, kept)
            for name, rows, heads in zip(found.names, found.rows, found.heads, strict=True)
        ]
        if rounding and rounding.apart:
            parts = [rounding(part) if isinstance(part, Dense) else part for part in parts]
        tensor: Layout = _vector(parts) if param.kind == "vector" else join(parts)
        del parts
        if rounding and not rounding.apart and isinstance(tensor, Dense):
            tensor = rounding(tensor)
        yield param, tensor
        del tensor
        for name in found.names:
            checkpoint.release(name)
        on_bytes(sum(checkpoint.entry(name).nbytes for name in found.names))


def _experts(
    checkpoint: GgufCheckpoint,
    param: Param,
    found: GgufSource,
    dtype: str,
    rounding: Rounding | None,
    on_bytes: Callable[[int], None],
) -> Experts:
    """Experts, each made when it is asked for, its pages given back thereafter."""
    count, rows, cols = param.shape
    stack = found.names[0] if len(checkpoint.entry(found.names[0]).shape) == 3 else ""

    def make(expert: int) -> Layout:
        whole = checkpoint.expert(stack, expert) if stack else checkpoint.get(found.names[expert])
        if found.share != "all":
            whole = whole.take(np.arange(2 * rows)[STACKED[found.share](2 * rows)])
        made = _narrowed(whole, dtype)
        return rounding(made) if rounding and isinstance(made, Dense) else made

    def done(expert: int) -> None:
        if stack:
            checkpoint.release_expert(stack, expert)
            share = checkpoint.entry(stack).nbytes // count
            on_bytes(share if found.share == "all" else share // 2)
            return
        checkpoint.release(found.names[expert])
        on_bytes(checkpoint.entry(found.names[expert]).nbytes)

    return Experts((count, rows, cols), make, done)


def _vector(parts: list[Layout]) -> Dense:
    """Vectors one behind the other, float32."""
    return Dense(np.concatenate([part.dequantize() for part in parts]), "float32")


def _part(checkpoint: GgufCheckpoint, param: Param, name: str, rows: int, heads: int, dtype: str) -> Layout:
    """One tensor with its rows in the checkpoint's order; a matrix of wide floats as `dtype`."""
    layout = checkpoint.get(name)
    if heads:
        layout = layout.take(to_halves(rows, heads))
    if param.kind == "vector":
        return layout
    if isinstance(layout, Dense) and layout.data.ndim == 1:
        layout = Dense(layout.data.reshape(rows, *param.shape[1:]), layout.dtype)
    return _narrowed(layout, dtype)


def _narrowed(layout: Layout, dtype: str) -> Layout:
    """A matrix of wide floats as `dtype`."""
    if isinstance(layout, Dense) and layout.dtype == "float32" and dtype != "float32":
        return Dense.of(layout.dequantize(), dtype)
    return layout
