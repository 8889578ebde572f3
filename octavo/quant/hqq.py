"""HQQ (Badri and Shaji 2023), as its library and transformers store it: scale * (code - zero).

The flattened matrix [rows, cols] of a module X is folded into [groups, group_size] (axis 1: neighbours share
a scale) or [group_size, groups] (axis 0: numbers that lie `groups` apart do). `X.W_q` holds the codes of the
folded matrix, which is cut into slabs of equal height, a slab for each field of a word, the first one in the
highest bits: uint8 of 8, 4, 2 or 1 bits, or int32 with ten codes of 3 bits. `X.scale` and `X.zero` have a
number for each group. `X.packing` (its letters), `X.axis`, `X.group_size` and `X.shape` are tensors too.

Scales and zeros may be quantized once more, in the library's own files (weights/opcodes.py): `X.scale_q`
uint8 with `X.meta_scale.scale` and `X.meta_scale.zero`, and `X.zero_q` likewise. Where they were kept in the
main memory both stand in one tensor, `X.zero_scale`: the zeros, the scales.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import FLOATS, Dense, Layout
from octavo.quant.codes import U8, grouped, turned
from octavo.quant.format import F32, Tensors

_PACKINGS = {
    "8bit_u8": ("uint8", 8, 1),
    "4bit_u8": ("uint8", 4, 2),
    "3bit_32": ("int32", 3, 10),
    "2bit_u8": ("uint8", 2, 4),
    "1bit_u8": ("uint8", 1, 8),
}
"""packing -> (dtype of the words, bits of a code, codes in a word)."""
_READ = ("packing", "axis", "group_size", "shape", "view_as_float", "compute_dtype")
_BOTH = ("zero", "scale")
"""In the order of `zero_scale`."""
_SMALLEST_GROUP = 8
_LONGEST_WORD = 64


class Hqq:
    """An HQQ checkpoint; its tensors say all that its config does."""

    method = "hqq"
    unused: tuple[str, ...] = (
        r"\.(nbits|unpack_view_dtype|offload_meta|encoded_state_dict|stores_quant_config)$",
        r"\.(channel_wise|optimize|round_zero|quant_scale|quant_zero)$",
        r"\.meta_(scale|zero)\.\w+$",
    )

    def __init__(self, config: dict[str, Any]) -> None:
        inside = config.get("quant_config")
        said = inside.get("weight_quant_params") if isinstance(inside, dict) else None
        bits = said.get("nbits") if isinstance(said, dict) else None
        # Codes of fewer bits than 4 stand in 4.
        self.growth = max(1.0, 4 / bits) if isinstance(bits, int | float) and bits >= 1 else 1.0

    def suffixes(self, stem: str, present: Container[str]) -> tuple[str, ...]:
        if f"{stem}.W_q" not in present:
            return ()
        one = f"{stem}.zero_scale" in present
        words = ["W_q", *(["zero_scale"] if one else [])]
        for part in _BOTH:
            if f"{stem}.{part}_q" in present or (one and f"{stem}.meta_{part}.scale" in present):
                words += [*([] if one else [f"{part}_q"]), f"meta_{part}.scale", f"meta_{part}.zero"]
            elif not one:
                words.append(part)
        return (*words, *(word for word in _READ if f"{stem}.{word}" in present))

    def read(self, tensors: Tensors, rows: int, cols: int) -> Layout:
        for said in ("shape", "axis", "group_size", "packing"):
            if said not in tensors:
                raise tensors.error("W_q", f"has no {said} beside it")
        shape = tensors.get("shape", ("int64", "int32"), (2,)).data.tolist()
        if shape != [rows, cols]:
            raise tensors.error("shape", f"holds {shape}, expected [{rows}, {cols}]")
        axis, group = _whole(tensors, "axis"), _whole(tensors, "group_size")
        count = rows * cols
        if group < 1 or count % group or axis not in (0, 1):
            raise tensors.error("group_size", f"gives groups of {group} on axis {axis} for [{rows}, {cols}]")
        codes, bits = _codes(tensors, count, group if axis == 1 else count // group)
        scale, zero = _by_group(tensors, "scale", count // group), _by_group(tensors, "zero", count // group)
        step = math.gcd(group, cols)
        if axis == 0 or step < min(_SMALLEST_GROUP, cols):
            folded = codes.reshape(group, -1) if axis == 0 else codes.reshape(-1, group)
            by_group = (1, -1) if axis == 0 else (-1, 1)
            numbers = (folded - zero.reshape(by_group)) * scale.reshape(by_group)
            return Dense.of(numbers.reshape(rows, cols).astype(np.float32, copy=False), _dtype(tensors))
        parts = [np.repeat(part, group // step).reshape(rows, -1) for part in (scale, zero)]
        return grouped(turned(codes.reshape(rows, cols)), bits, parts[0], parts[1], step, None)


def _codes(tensors: Tensors, count: int, width: int) -> tuple[U8, int]:
    """(the codes of the flattened matrix, their bits)."""
    name = _letters(tensors, "packing")
    if name not in _PACKINGS:
        raise UnsupportedModel(
            f"HQQ's packing {name!r:.60} is not supported.", hint=f"Supported: {', '.join(_PACKINGS)}."
        )
    dtype, bits, fields = _PACKINGS[name]
    words = tensors.stored("W_q").data
    if "view_as_float" in tensors and _whole(tensors, "view_as_float"):
        words = np.ascontiguousarray(words).view(dtype)
    else:
        tensors.get("W_q", (dtype,), (None, None))
    height = -(-(count // width) // fields)
    if words.shape != (height, width):
        raise tensors.error("W_q", f"has shape {list(words.shape)}, expected [{height}, {width}]")
    stream: NDArray[Any] = words.view(np.uint32) if dtype == "int32" else words
    slabs = np.empty((fields, height, width), np.uint8)
    for field in range(fields):
        slabs[field] = (stream >> stream.dtype.type(bits * (fields - 1 - field))) & stream.dtype.type(
            (1 << bits) - 1
        )
    return slabs.reshape(-1)[:count], bits


def _by_group(tensors: Tensors, part: str, groups: int) -> F32:
    """A number for each group, or one for all."""
    suffix = next(word for word in (part, f"{part}_q", "zero_scale") if word in tensors)
    if f"meta_{part}.scale" in tensors:
        values = _twice(tensors, suffix, part)
    else:
        values = _half(tensors, suffix, part, tensors.floats(suffix, tensors.stored(suffix).shape))
    values = values.reshape(-1)
    if values.size not in (1, groups):
        raise tensors.error(suffix, f"holds {values.size} numbers, expected {groups}")
    return np.ascontiguousarray(np.broadcast_to(values, groups))


def _half(tensors: Tensors, suffix: str, part: str, values: NDArray[Any]) -> NDArray[Any]:
    """Of a tensor that holds zeros and scales those that are asked for."""
    if suffix != "zero_scale":
        return values
    if values.shape[:1] != (2,):
        raise tensors.error(suffix, f"has shape {list(values.shape)}, expected 2 of each")
    return np.asarray(values[_BOTH.index(part)])


def _twice(tensors: Tensors, suffix: str, part: str) -> F32:
    """Scales or zeros that are quantized themselves, a code a byte: (code - zero) * scale."""
    whole = tensors.ints(suffix, "uint8", tensors.stored(suffix).shape)
    codes = _half(tensors, suffix, part, whole)
    inner = [f"meta_{part}.{word}" for word in ("scale", "zero")]
    scale, zero = (tensors.floats(word, tensors.stored(word).shape) for word in inner)
    for word, found in zip(inner, (scale, zero), strict=True):
        if not _fits(found.shape, codes.shape):
            raise tensors.error(word, f"has shape {list(found.shape)}, which fits no {list(codes.shape)}")
    return tensors.finite(inner[0], np.asarray((codes - zero) * scale, np.float32))


def _fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether numbers of one shape stand for those of another, a size of 1 for every size."""
    ends = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(size in (1, whole) for size, whole in ends)


def _whole(tensors: Tensors, suffix: str) -> int:
    """A number that stands as a tensor of one."""
    value = tensors.stored(suffix).data.reshape(-1)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise tensors.error(suffix, f"holds {value.size} numbers of {value.dtype}, expected one whole number")
    return int(value[0])


def _letters(tensors: Tensors, suffix: str) -> str:
    """A word that stands as a tensor of its letters."""
    return tensors.ints(suffix, "uint8", (range(_LONGEST_WORD),)).tobytes().decode("latin-1")


def _dtype(tensors: Tensors) -> str:
    """What HQQ itself computes the numbers in."""
    name = _letters(tensors, "compute_dtype").removeprefix("torch.") if "compute_dtype" in tensors else ""
    return name if name in FLOATS else "float32"
