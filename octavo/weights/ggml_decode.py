"""From the blocks of a GGUF tensor to a weight layout: the same codes and scales, put where kernels look.

Blocks are uint8 [n, block bytes]. Their formats are ggml's (ggml-common.h, ggml-quants.c); what a decoder
gives, dequantized, is bit for bit what the gguf package gives. Types whose weights take at most 16 values
(the IQ types too, whose points have few sizes) become codes of 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModel
from octavo.ops.layouts import F32, FLOATS, Dense, Int4Group, Int8, IntBits, Layout, Lut4, SubScales, pack4
from octavo.weights.ggml import GgmlType
from octavo.weights.iq_grids import grid, sizes

U8 = NDArray[np.uint8]

_CHUNK_ELEMENTS = 1 << 22
"""Blocks are decoded in pieces of about this many values, so that temporaries stay small."""
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_EIGHTH, _QUARTER = np.float32(0.125), np.float32(0.25)
_FP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""E2M1, doubled."""


@dataclass(frozen=True)
class Blocks:
    """n decoded blocks: codes [n, block], and per group of `group` columns a scale and perhaps a minimum.

    A scale or minimum is float32 [n, groups] times, with `steps`, int8 [n, groups]; the float is then [n, 1].
    """

    codes: NDArray[Any]
    group: int
    scale: F32
    steps: NDArray[np.int8] | None = None
    minimum: F32 | None = None
    minimum_steps: NDArray[np.int8] | None = None


def decode(raw: U8, kind: GgmlType, shape: tuple[int, ...]) -> Layout:
    """A tensor's bytes [rows, row bytes] as a layout; `shape` has the row last.

    Plain floats stay views. UnsupportedModel for a type that Octavo does not decode.
    """
    plain = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind.name)
    if plain is not None:
        return Dense(_view(raw, FLOATS[plain]).reshape(shape), plain)
    if kind.name == "F64":
        return Dense(_view(raw, np.dtype("<f8")).reshape(shape).astype(np.float32), "float32")
    if kind.name not in _DECODERS:
        raise UnsupportedModel(f"Tensors of the GGUF type {kind.name} are not supported.")
    if len(shape) != 2:
        raise UnsupportedModel(f"A quantized tensor of {len(shape)} axes is not supported.")
    step = max(_CHUNK_ELEMENTS // shape[1], 1)
    parts = [_rows(raw[i : i + step], kind, shape[1]) for i in range(0, shape[0], step)]
    return parts[0] if len(parts) == 1 else _stacked(parts)


def _view(raw: U8, dtype: np.dtype[Any]) -> NDArray[Any]:
    flat = raw.reshape(-1)
    aligned = flat.ctypes.data % dtype.itemsize == 0
    return (flat if aligned else flat.copy()).view(dtype)


def _rows(raw: U8, kind: GgmlType, cols: int) -> Layout:
    """Some rows of a quantized tensor."""
    rows = len(raw)
    read, build = _DECODERS[kind.name]
    blocks = read(np.ascontiguousarray(raw).reshape(-1, kind.nbytes))
    per = kind.block // blocks.group
    scale = _scale(blocks.scale, blocks.steps, rows, per)
    minimum = None if blocks.minimum is None else _scale(blocks.minimum, blocks.minimum_steps, rows, per)
    found: Layout = build(blocks.codes.reshape(rows, cols), scale, blocks.group, minimum)
    return found


def _scale(unit: F32, steps: NDArray[np.int8] | None, rows: int, per: int) -> F32 | SubScales:
    unit = np.ascontiguousarray(unit, np.float32).reshape(rows, -1)
    return unit if steps is None else SubScales(steps.reshape(rows, -1), unit, per)


def _stacked(parts: list[Layout]) -> Layout:
    """Layouts of one kind, one below the other."""
    first: Any = parts[0]
    joined: dict[str, Any] = {}
    for field in fields(first):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], SubScales):
            joined[field.name] = SubScales(
                np.concatenate([value.codes for value in values]),
                np.concatenate([value.unit for value in values]),
                values[0].per,
            )
        elif isinstance(values[0], np.ndarray) and field.name != "table":
            joined[field.name] = np.concatenate(values)
    found: Layout = replace(first, **joined)
    return found


# Building layouts: (codes [rows, cols], scale, group, minimum) -> layout.


def _int4(codes: Any, scale: Any, group: int, minimum: Any) -> Layout:
    return Int4Group(pack4(codes), codes.shape[1], scale, group, minimum=minimum)


def _int8(codes: Any, scale: Any, group: int, minimum: Any) -> Layout:
    return Int8(codes.view(np.int8), scale, group, minimum=minimum)


def _bits(bits: int) -> Callable[..., Layout]:
    return lambda codes, scale, group, minimum: IntBits(codes, bits, scale, group, minimum=minimum)


def _table(*values: float) -> Callable[..., Layout]:
    table = np.zeros(16, np.float32)
    table[: len(values)] = values
    return lambda codes, scale, group, _: Lut4(pack4(codes), codes.shape[1], table, scale, group)


# Pieces of blocks.


def _halves(raw: U8) -> F32:
    """float16 numbers, uint8 [n, 2k] -> float32 [n, k]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _shifted(raw: U8, width: int, *shifts: int) -> U8:
    """Each run of `width` bytes shifted right by each of `shifts` in turn: [n, k] -> [n, k * shifts]."""
    runs = raw.reshape(len(raw), -1, 1, width) >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    return runs.reshape(len(raw), -1)


def _nibbles(raw: U8, width: int) -> U8:
    """Codes of 4 bits; of `width` bytes all low halves come first."""
    return _shifted(raw, width, 0, 4) & np.uint8(15)


def _bit_of(raw: U8, width: int) -> U8:
    """Bits of `width` bytes each: all lowest bits first."""
    return _shifted(raw, width, *range(8)) & np.uint8(1)


def _bits_of_bytes(raw: U8) -> U8:
    """Eight bits of each byte, the lowest first: [n, k] -> [n, 8 k]."""
    return np.unpackbits(raw, axis=1, bitorder="little")


# Blocks of 32.


def _q4_0(b: U8) -> Blocks:
    return Blocks(_nibbles(b[:, 2:], 16), 32, _halves(b[:, :2]))


def _q4_1(b: U8) -> Blocks:
    return Blocks(_nibbles(b[:, 4:], 16), 32, _halves(b[:, :2]), minimum=_halves(b[:, 2:4]))


def _q5_0(b: U8) -> Blocks:
    return Blocks(_nibbles(b[:, 6:], 16) | (_bits_of_bytes(b[:, 2:6]) << 4), 32, _halves(b[:, :2]))


def _q5_1(b: U8) -> Blocks:
    codes = _nibbles(b[:, 8:], 16) | (_bits_of_bytes(b[:, 4:8]) << 4)
    return Blocks(codes, 32, _halves(b[:, :2]), minimum=_halves(b[:, 2:4]))


def _q8_0(b: U8) -> Blocks:
    return Blocks(np.ascontiguousarray(b[:, 2:]), 32, _halves(b[:, :2]))


def _mxfp4(b: U8) -> Blocks:
    """A scale that is a power of two (E8M0), halved as the table is doubled."""
    exponent = b[:, :1].astype(np.uint32)
    small = np.uint32(0x00200000) << np.minimum(exponent, 1)
    bits = np.where(exponent < 2, small, (np.maximum(exponent, 1) - 1) << 23).astype(np.uint32)
    return Blocks(_nibbles(b[:, 1:], 16), 32, bits.view(np.float32))


def _nvfp4(b: U8) -> Blocks:
    """Four groups of 16 with scales of unsigned E4M3; 0x7f means 0."""
    raw = b[:, :4]
    exponent, fraction = (raw >> 3 & 15).astype(np.float32), (raw & 7).astype(np.float32)
    size = np.where(exponent == 0, fraction / 512, (1 + fraction / 8) * np.exp2(exponent - 7))
    scale = np.where((raw == 0) | (raw == 0x7F), 0, size / 2).astype(np.float32)
    return Blocks(_nibbles(b[:, 4:], 8), 16, scale)


# Blocks of 256 with scales in two steps.


def _signed(values: Any) -> NDArray[np.int8]:
    return np.asarray(values).astype(np.int8)


def _q2_k(b: U8) -> Blocks:
    codes = _shifted(b[:, 16:80], 32, 0, 2, 4, 6) & np.uint8(3)
    scales, minima = _signed(b[:, :16] & 15), _signed(b[:, :16] >> 4)
    return Blocks(codes, 16, _halves(b[:, 80:82]), scales, -_halves(b[:, 82:84]), minima)


def _q3_k(b: U8) -> Blocks:
    """Codes -4 .. 3, stored as two bits and an inverted third."""
    high = _bit_of(b[:, :32], 32) ^ np.uint8(1)
    codes = (_shifted(b[:, 32:96], 32, 0, 2, 4, 6) & np.uint8(3)) + np.uint8(8) - (high << 2)
    low = _nibbles(b[:, 96:104], 8)
    scales = low | ((_shifted(b[:, 104:108], 4, 0, 2, 4, 6) & np.uint8(3)) << 4)
    return Blocks(codes, 16, _halves(b[:, 108:110]), _signed(scales.astype(np.int16) - 32))


def _scales_and_minima(raw: U8) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Eight scales and eight minima of 6 bits from the 12 bytes of Q4_K and Q5_K."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 0x30)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 0x30)], axis=1)
    return _signed(scales), _signed(minima)


def _q4_k(b: U8) -> Blocks:
    scales, minima = _scales_and_minima(b[:, 4:16])
    return Blocks(_nibbles(b[:, 16:], 32), 32, _halves(b[:, :2]), scales, -_halves(b[:, 2:4]), minima)


def _q5_k(b: U8) -> Blocks:
    scales, minima = _scales_and_minima(b[:, 4:16])
    codes = _nibbles(b[:, 48:], 32) | (_bit_of(b[:, 16:48], 32) << 4)
    return Blocks(codes, 32, _halves(b[:, :2]), scales, -_halves(b[:, 2:4]), minima)


def _q6_k(b: U8) -> Blocks:
    high = _shifted(b[:, 128:192], 32, 0, 2, 4, 6) & np.uint8(3)
    codes = _nibbles(b[:, :128], 64) | (high << 4)
    return Blocks(codes, 16, _halves(b[:, 208:210]), np.ascontiguousarray(b[:, 192:208]).view(np.int8))


def _iq4_nl(b: U8) -> Blocks:
    return Blocks(_nibbles(b[:, 2:], 16), 32, _halves(b[:, :2]))


def _iq4_xs(b: U8) -> Blocks:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = low.astype(np.int16) + ((high & 3) << 4).astype(np.int16) - 32
    return Blocks(_nibbles(b[:, 8:], 16), 32, _halves(b[:, :2]), _signed(scales))


# Three values a weight.


def _tq1_0(b: U8) -> Blocks:
    """Five digits to base 3 a byte (the last four bytes: four), as a fraction of 256."""

    def digits(raw: U8, width: int, count: int) -> U8:
        powers = (3 ** np.arange(count)).astype(np.uint8).reshape(1, 1, -1, 1)
        moved = raw.reshape(len(raw), -1, 1, width) * powers
        return (moved.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(raw), -1)

    codes = [digits(b[:, :32], 32, 5), digits(b[:, 32:48], 16, 5), digits(b[:, 48:52], 4, 4)]
    return Blocks(np.concatenate(codes, axis=1) + np.uint8(7), 256, _halves(b[:, 52:54]))


def _tq2_0(b: U8) -> Blocks:
    codes = _shifted(b[:, :64], 32, 0, 2, 4, 6) & np.uint8(3)
    return Blocks(codes + np.uint8(7), 256, _halves(b[:, 64:66]))


# Points of a grid. A code is the index of a size, plus 8 when the weight is negative.


def _signs7(indexes: NDArray[Any]) -> U8:
    """Seven sign bits; the eighth makes their number even. [n, k] -> [n, 8 k]."""
    bits = (indexes[..., None] >> np.arange(7, dtype=indexes.dtype) & 1).astype(np.uint8)
    parity = bits.sum(axis=-1, keepdims=True, dtype=np.uint8) & np.uint8(1)
    return np.concatenate([bits, parity], axis=-1).reshape(len(indexes), -1)


def _points(name: str, indexes: NDArray[Any], signs: U8) -> U8:
    return np.asarray(grid(name)[indexes].reshape(len(indexes), -1) | (signs << 3), np.uint8)


def _odd(steps: Any) -> NDArray[np.int8]:
    return _signed(2 * steps.astype(np.int16) + 1)


def _words(raw: U8, dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(raw).view(dtype)


def _two_a_byte(raw: U8) -> U8:
    return np.stack([raw & 15, raw >> 4], axis=2).reshape(len(raw), -1)


_SEVENS = np.array([0, 7, 14, 21], np.uint32)


def _iq2_xxs(b: U8) -> Blocks:
    words = _words(b[:, 2:], "<u4").reshape(len(b), 8, 2)
    signs = _signs7((words[:, :, 1:] >> _SEVENS & 127).reshape(len(b), -1))
    points = np.ascontiguousarray(words[:, :, 0]).view(np.uint8)
    return Blocks(
        _points("IQ2_XXS", points, signs), 32, _halves(b[:, :2]) * _EIGHTH, _odd(words[:, :, 1] >> 28)
    )


def _iq2_xs(b: U8) -> Blocks:
    words = _words(b[:, 2:66], "<u2")
    codes = _points("IQ2_XS", words & 511, _signs7(words >> 9))
    return Blocks(codes, 16, _halves(b[:, :2]) * _EIGHTH, _odd(_two_a_byte(b[:, 66:74])))


def _iq2_s(b: U8) -> Blocks:
    high = (b[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(b), -1)
    indexes = b[:, 2:34].astype(np.uint16) | high.astype(np.uint16) << 8
    codes = _points("IQ2_S", indexes, _bits_of_bytes(b[:, 34:66]))
    return Blocks(codes, 16, _halves(b[:, :2]) * _EIGHTH, _odd(_two_a_byte(b[:, 74:82])))


def _iq3_xxs(b: U8) -> Blocks:
    words = _words(b[:, 66:98], "<u4")
    signs = _signs7((words[:, :, None] >> _SEVENS & 127).reshape(len(b), -1))
    return Blocks(_points("IQ3_XXS", b[:, 2:66], signs), 32, _halves(b[:, :2]) * _QUARTER, _odd(words >> 28))


def _iq3_s(b: U8) -> Blocks:
    indexes = b[:, 2:66].astype(np.uint16) | _bits_of_bytes(b[:, 66:74]).astype(np.uint16) << 8
    codes = _points("IQ3_S", indexes, _bits_of_bytes(b[:, 74:106]))
    return Blocks(codes, 32, _halves(b[:, :2]), _odd(_two_a_byte(b[:, 106:110])))


def _iq1_s(b: U8) -> Blocks:
    """Sizes -1, 0, 1, all moved by an eighth one way or the other in 32 weights."""
    words = _words(b[:, 34:50], "<u2")
    high = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(b), -1)
    indexes = b[:, 2:34].astype(np.uint16) | high << 8
    down = np.repeat((words >> 15).astype(np.uint8), 32, axis=1)
    return Blocks(_points("IQ1_S", indexes, down), 32, _halves(b[:, :2]), _odd(words >> 12 & 7))


def _iq1_m(b: U8) -> Blocks:
    """As IQ1_S, moved by eights; the scale is spread over the high bits of the steps' words."""
    words = _words(b[:, 48:56], "<u2")
    parts = (words & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16)
    scale = np.bitwise_or.reduce(parts, axis=1, keepdims=True).view("<f2").astype(np.float32)
    steps = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(b), -1)
    fours = _two_a_byte(b[:, 32:48])
    indexes = b[:, :32].astype(np.uint16) | (fours & 7).astype(np.uint16) << 8
    return Blocks(_points("IQ1_S", indexes, np.repeat(fours >> 3, 8, axis=1)), 16, scale, _odd(steps))


def _with_signs(name: str) -> Callable[..., Layout]:
    found = sizes(name)
    return _table(*(*found, *[0] * (8 - len(found)), *(-size for size in found)))


_MOVED = _table(-0.875, 0.125, 1.125, 0, 0, 0, 0, 0, -1.125, -0.125, 0.875)
_DECODERS: dict[str, tuple[Callable[[U8], Blocks], Callable[..., Layout]]] = {
    "Q4_0": (_q4_0, _int4),
    "Q4_1": (_q4_1, _int4),
    "Q5_0": (_q5_0, _bits(5)),
    "Q5_1": (_q5_1, _bits(5)),
    "Q8_0": (_q8_0, _int8),
    "Q2_K": (_q2_k, _int4),
    "Q3_K": (_q3_k, _int4),
    "Q4_K": (_q4_k, _int4),
    "Q5_K": (_q5_k, _bits(5)),
    "Q6_K": (_q6_k, _bits(6)),
    "IQ1_S": (_iq1_s, _MOVED),
    "IQ1_M": (_iq1_m, _MOVED),
    "IQ2_XXS": (_iq2_xxs, _with_signs("IQ2_XXS")),
    "IQ2_XS": (_iq2_xs, _with_signs("IQ2_XS")),
    "IQ2_S": (_iq2_s, _with_signs("IQ2_S")),
    "IQ3_XXS": (_iq3_xxs, _with_signs("IQ3_XXS")),
    "IQ3_S": (_iq3_s, _with_signs("IQ3_S")),
    "IQ4_NL": (_iq4_nl, _table(*IQ4_VALUES)),
    "IQ4_XS": (_iq4_xs, _table(*IQ4_VALUES)),
    "TQ1_0": (_tq1_0, _int4),
    "TQ2_0": (_tq2_0, _int4),
    "MXFP4": (_mxfp4, _table(*_FP4_VALUES)),
    "NVFP4": (_nvfp4, _table(*_FP4_VALUES)),
}
"""Type -> (its blocks taken apart, how the codes are kept)."""


def packed_bits(kind: GgmlType) -> int:
    """Bits of memory a weight of this type takes at most, its share of scales and minima included."""
    if kind.name not in _DECODERS:
        return 8 * kind.nbytes // kind.block
    read, build = _DECODERS[kind.name]
    blocks = read(np.zeros((1, kind.nbytes), np.uint8))
    code = 4 if isinstance(build(blocks.codes, np.zeros((1, 1), np.float32), kind.block, None), _FOUR) else 8
    return code + -(-32 * (1 if blocks.minimum is None else 2) // blocks.group)


_FOUR = (Int4Group, Lut4)
DECODED = frozenset(_DECODERS) | {"F32", "F16", "BF16", "F64"}
"""The types that `decode` knows."""
