"""compressed-tensors, as llm-compressor writes it. A module X of [rows, cols] stands in one of these forms:

- pack-quantized: `X.weight_packed` int32, each row a stream of codes of 1 to 8 bits, the lowest bits first,
  stored plus 2 ** (bits - 1); `X.weight_scale` [rows, groups]; `X.weight_shape`; for asymmetric ones
  `X.weight_zero_point` int32, packed likewise down the rows; with act-order `X.weight_g_idx`.
- int-quantized: `X.weight` int8 and `X.weight_scale` (a number, one a row, or groups), perhaps
  `X.weight_zero_point` int8; where activations have a fixed scale `X.input_scale`, `X.input_zero_point`.
- float-quantized, mxfp8: `X.weight` of 8-bit floats and `X.weight_scale`, also by block.
- nvfp4-pack-quantized, mxfp4-pack-quantized: `X.weight_packed` uint8, two 4-bit floats a byte, the even
  column low; `X.weight_scale` of 8-bit floats, for NVFP4 over `X.weight_global_scale`.

Which one it is shows in the tensors themselves; the config's groups say how many bits, and how inputs are
rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import Activation, Int4Group, Int8, Layout
from octavo.quant import small_floats
from octavo.quant.codes import F32, in_groups, turned, unpack_down
from octavo.quant.format import Tensors, flag, group_size, integer
from octavo.quant.fp8 import block_of
from octavo.quant.patterns import Pattern

_SPARSE = ("dense", None)
_IN_WEIGHTS = {"weight_input", "weight_output"}
"""Locations of transform_config that were applied to the weights before they were rounded."""
_OPTIONAL = ("weight_zero_point", "weight_g_idx", "weight_global_scale", "weight_shape")


@dataclass(frozen=True)
class _Inputs:
    """How a group of modules has its inputs rounded to int8."""

    symmetric: bool
    fixed: bool


@dataclass(frozen=True)
class _Scheme:
    """One of the config's groups."""

    targets: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    bits: int
    group: int | None
    block: tuple[int, int] | None
    inputs: _Inputs | None


class CompressedTensors:
    """A compressed-tensors checkpoint."""

    method = "compressed-tensors"
    unused: tuple[str, ...] = (
        r"\.(input|output)_(scale|zero_point|global_scale)$",
        r"\.([kqv]|kv|attn)_(scale|zero_point|global_scale)$",
    )
    growth = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        sparsity = config.get("sparsity_config") or {}
        if isinstance(sparsity, dict) and sparsity.get("format") not in _SPARSE:
            raise UnsupportedModel(f"Sparse weights ({sparsity['format']!r:.60}) are not supported.")
        _refuse_rotations(config.get("transform_config"))
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
            raise UnsupportedModel("The quantization config has no config_groups.")
        self._schemes = [_scheme(group, config) for group in groups.values() if group.get("weights")]

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        weight = "weight_packed" if f"{stem}.weight_packed" in present else "weight"
        if weight == "weight" and f"{stem}.weight_scale" not in present:
            return ()
        more = [suffix for suffix in _OPTIONAL if f"{stem}.{suffix}" in present]
        inputs = self._scheme(stem).inputs if weight == "weight" else None
        if inputs and inputs.fixed:
            zero = () if inputs.symmetric else ("input_zero_point",)
            more += ["input_scale", *zero]
        return (weight, "weight_scale", *more)

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        scheme = self._scheme(tensors.stem)
        if "weight_shape" in tensors:
            shape = tensors.get("weight_shape", ("int64", "int32"), (2,)).data.tolist()
            if shape != [rows, cols]:
                raise tensors.error("weight_shape", f"holds {shape}, expected [{rows}, {cols}]")
        if "weight_packed" in tensors:
            kind = tensors.get("weight_packed", ("int32", "uint8"), (rows, None)).dtype
            return (_packed if kind == "int32" else _fp4)(tensors, rows, cols, scheme)
        if tensors.stored("weight").dtype == "int8":
            return _int8(tensors, rows, cols, scheme)
        scale, group = _scale(tensors, rows, cols, scheme)
        return small_floats.fp8(tensors, rows, cols, scale, group)

    def _scheme(self, stem: str) -> _Scheme:
        """The group that targets a module: by its name, by a pattern, by its class; else the first."""
        kind = "Embedding" if "embed" in stem.rpartition(".")[2] else "Linear"
        rules: tuple[Callable[[_Scheme], bool], ...] = (
            lambda scheme: stem in scheme.targets,
            lambda scheme: any(pattern.matches(stem) for pattern in scheme.patterns),
            lambda scheme: kind in scheme.targets,
        )
        for matches in rules:
            for scheme in self._schemes:
                if matches(scheme):
                    return scheme
        if not self._schemes:
            raise UnsupportedModel("No group of the quantization config quantizes weights.")
        return self._schemes[0]


def _refuse_rotations(said: Any) -> None:
    """Rotations that are part of the stored weights are nobody's matter; those of activations are refused."""
    groups = said.get("config_groups") if isinstance(said, dict) else None
    if not groups:
        return
    lists = [_field(group, "apply") for group in (groups.values() if isinstance(groups, dict) else [None])]
    known = all(isinstance(one, list) and one for one in lists)
    places = {str(_field(place, "location")) for one in lists if isinstance(one, list) for place in one}
    if not known or places - _IN_WEIGHTS:
        raise UnsupportedModel(
            "The quantization config's transform_config rotates activations "
            f"({', '.join(sorted(places - _IN_WEIGHTS)):.60}), which is not supported."
        )


def _field(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _scheme(group: dict[str, Any], config: dict[str, Any]) -> _Scheme:
    stored = group.get("format") or config.get("format")
    if stored in ("marlin-24", "sparse-24-bitmask", "sparse-bitmask", "mxfp6-pack-quantized"):
        raise UnsupportedModel(f"The compressed-tensors format {stored!r} is not supported.")
    weights = group["weights"]
    targets = group.get("targets")
    if not isinstance(weights, dict) or not isinstance(targets, list):
        raise UnsupportedModel("A group of the quantization config has no targets or weights.")
    names = tuple(target for target in targets if isinstance(target, str))
    patterns = tuple(
        Pattern(name.removeprefix("re:"), "The quantization config targets")
        for name in names
        if name.startswith("re:")
    )
    block = block_of(weights.get("block_structure"), "block_structure")
    return _Scheme(
        names,
        patterns,
        integer(weights, "num_bits", range(1, 9), "1 to 8", default=8),
        group_size(weights),
        block if weights.get("strategy") == "block" else None,
        _inputs(group.get("input_activations")),
    )


def _inputs(said: Any) -> _Inputs | None:
    """None where inputs are not rounded to int8; floats of few bits stay floats here."""
    if said is not None and not isinstance(said, dict):
        raise UnsupportedModel(
            f"The quantization config has input_activations {said!r:.60}, expected an object or null."
        )
    if not said or said.get("type", "int") != "int" or said.get("num_bits", 8) != 8:
        return None
    fixed = not said.get("dynamic") and said.get("strategy", "tensor") == "tensor"
    return _Inputs(flag(said, "symmetric", True), fixed)


def _packed(tensors: Tensors, rows: int, cols: int, scheme: _Scheme) -> Layout:
    bits = scheme.bits
    words = tensors.ints("weight_packed", "int32", (rows, -(-cols * bits // 32)))
    index = _group_of(tensors, cols)
    scale, group = _scale(tensors, rows, cols, scheme)
    zero = None
    if "weight_zero_point" in tensors:
        packed = tensors.ints("weight_zero_point", "int32", (-(-rows * bits // 32), scale.shape[1]))
        zero = unpack_down(packed, bits, rows)
    if bits == 4 and index is None:
        codes = np.ascontiguousarray(words).view(np.uint8)[:, : (cols + 1) // 2]
        return Int4Group(codes, cols, scale, group, None if zero is None else zero.astype(np.float32))
    if index is not None and index.max(initial=0) >= scale.shape[1]:
        raise tensors.error("weight_g_idx", f"holds {index.max()}, expected 0 to {scale.shape[1] - 1}")
    return in_groups(unpack_down(turned(words), bits, cols), bits, scale, zero, group, index)


def _group_of(tensors: Tensors, cols: int) -> NDArray[np.int32] | None:
    """The group of each column; None where none is written, or only -1, which says as much."""
    if "weight_g_idx" not in tensors:
        return None
    index = tensors.ints("weight_g_idx", "int32", (cols,))
    if (index == -1).all():
        return None
    if index.min() < 0:
        raise tensors.error("weight_g_idx", f"holds {index.min()}, expected 0 or more")
    return index


def _scale(tensors: Tensors, rows: int, cols: int, scheme: _Scheme) -> tuple[F32, int]:
    """(scales [rows, groups], columns in a group)."""
    return small_floats.spread(tensors, "weight_scale", rows, cols, block=scheme.block, group=scheme.group)


def _int8(tensors: Tensors, rows: int, cols: int, scheme: _Scheme) -> Int8:
    codes = tensors.ints("weight", "int8", (rows, cols))
    scale, group = _scale(tensors, rows, cols, scheme)
    zero = None
    if "weight_zero_point" in tensors:
        given = tensors.get("weight_zero_point", ("int8", "int32"), tensors.stored("weight_scale").shape)
        zero = np.broadcast_to(given.data.reshape(-1, scale.shape[1]), scale.shape).astype(np.float32)
        zero = zero if zero.any() else None
    return Int8(codes, scale, group, zero, activation=_activation(tensors, scheme.inputs))


def _activation(tensors: Tensors, inputs: _Inputs | None) -> Activation | None:
    if inputs is None or not inputs.fixed:
        return None if inputs is None else Activation(inputs.symmetric)
    scale = float(tensors.floats("input_scale", tensors.stored("input_scale").shape).reshape(-1)[0])
    if not scale > 0:
        raise tensors.error("input_scale", f"holds {scale}, expected a positive number")
    zero = 0
    if not inputs.symmetric:
        given = tensors.get("input_zero_point", ("int8", "int32"), tensors.stored("input_zero_point").shape)
        zero = int(given.data.reshape(-1)[0])
        if not -128 <= zero <= 127:
            raise tensors.error("input_zero_point", f"holds {zero}, expected -128 to 127")
    return Activation(inputs.symmetric, scale, zero)


def _fp4(tensors: Tensors, rows: int, cols: int, scheme: _Scheme) -> Layout:
    codes = tensors.ints("weight_packed", "uint8", (rows, (cols + 1) // 2))
    scale, group = _scale(tensors, rows, cols, scheme)
    if tensors.stored("weight_scale").dtype in ("uint8", "float8_e8m0fnu"):
        return small_floats.fp4(codes, cols, scale, group)
    if "weight_global_scale" not in tensors:
        raise tensors.error("weight_packed", "is NVFP4, but there is no weight_global_scale beside it")
    over = tensors.floats("weight_global_scale", tensors.stored("weight_global_scale").shape).reshape(-1)
    if over.size != 1 or not over[0] >= np.finfo(np.float32).tiny:
        raise tensors.error("weight_global_scale", f"holds {over[:4].tolist()}, expected one positive number")
    return small_floats.fp4(codes, cols, scale, group, float(np.float32(1) / over[0]))
