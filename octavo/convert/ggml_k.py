"""ggml's K-quants: blocks of 256 whose scales (and minima) are quantized too, rounded as ggml does it.

A quantizer takes blocks, float32 [n, 256], and gives their bytes. Q2_K: 16 groups of 16, value = d * scale *
code - dmin * minimum, scale and minimum of 4 bits; Q4_K and Q5_K: 8 groups of 32, the same with 6 bits. Q3_K
and Q6_K: 16 groups of 16, value = d * scale * (code - half), scales of 6 and 8 bits. IQ4_XS: 8 groups of 32,
value = d * scale * table[code], scale of 6 bits. Sums run in another order than ggml's, so that a code may
differ where two are equally good within float32's rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.convert.ggml_simple import F32, U8, half_bytes, inverse, iq4_scale, nearest_iq4, nibbles

_TINY = np.float32(1e-15)
"""ggml's GROUP_MAX_EPS: groups below it are all zero."""


def _ranged(
    groups: F32, weight: F32, largest: int, first: float, steps: int, *, squared: bool = True
) -> tuple[F32, F32]:
    """Scale and minimum (at most 0, given back negated) of least weighted error for each group.

    groups and weight [n, width] -> scale [n, 1], minimum [n, 1]. `squared`: whether errors are compared by
    their squares or by their sizes. Each trial rounds with its own scale and
    solves for the best scale and minimum of those codes (ggml: make_qkx2_quants).
    """
    low = np.minimum(groups.min(axis=1, keepdims=True), 0)
    span = groups.max(axis=1, keepdims=True) - low
    sum_w = weight.sum(axis=1, keepdims=True)
    sum_x = (weight * groups).sum(axis=1, keepdims=True)
    above = groups - low

    def error(codes: F32, scale: F32, base: F32) -> F32:
        diff = scale * codes + base - groups
        found: F32 = (weight * (diff * diff if squared else np.abs(diff))).sum(axis=1, keepdims=True)
        return found

    scale = span / np.float32(largest)
    base = low
    best = error(np.rint(above * inverse(scale)).clip(0, largest), scale, base)
    for step in range(steps + 1):
        codes = np.rint(np.float32(first + 0.1 * step + largest) * inverse(span) * above).clip(0, largest)
        weighted = weight * codes
        sum_l = weighted.sum(axis=1, keepdims=True)
        sum_ll = (weighted * codes).sum(axis=1, keepdims=True)
        sum_xl = (weighted * groups).sum(axis=1, keepdims=True)
        det = sum_w * sum_ll - sum_l * sum_l
        over = inverse(det)
        new_scale = (sum_w * sum_xl - sum_x * sum_l) * over
        new_base = (sum_ll * sum_x - sum_l * sum_xl) * over
        positive = new_base > 0
        new_scale = np.where(positive, sum_xl * inverse(sum_ll), new_scale)
        new_base = np.where(positive, 0, new_base)
        new_error = error(codes, new_scale, new_base)
        better = (det > 0) & (new_error < best)
        scale, base = np.where(better, new_scale, scale), np.where(better, new_base, base)
        best = np.where(better, new_error, best)
    return scale, -base


def _packed_scales(scales: NDArray[np.uint8], minima: NDArray[np.uint8]) -> U8:
    """Eight scales and eight minima of 6 bits in 12 bytes, as Q4_K and Q5_K keep them."""
    out = np.empty((len(scales), 12), np.uint8)
    out[:, :4] = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    out[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    out[:, 8:] = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return out


def _super(values: F32, top: int = 63) -> tuple[U8, F32, NDArray[np.uint8]]:
    """Scales [n, groups] to 0 .. top: (their float16 factor as bytes, the factor again, the codes)."""
    largest = values.max(axis=1, keepdims=True)
    codes = np.rint(np.float32(top) * inverse(largest) * values).clip(0, top).astype(np.uint8)
    raw = half_bytes(largest / np.float32(top))
    return raw, raw.view("<f2").astype(np.float32), codes


def _minimum_blocks(blocks: F32, largest: int, first: float, steps: int) -> tuple[U8, NDArray[np.uint8]]:
    """(d, dmin and packed scales [n, 16], codes [n, 256]) of Q4_K and Q5_K."""
    groups = blocks.reshape(-1, 32)
    mean = np.sqrt((groups * groups).sum(axis=1, keepdims=True) / np.float32(32))
    scale, minimum = _ranged(groups, mean + np.abs(groups), largest, first, steps)
    raw_d, d, scales = _super(scale.reshape(-1, 8))
    raw_min, dmin, minima = _super(minimum.reshape(-1, 8))
    step = (d * scales).reshape(-1, 1)
    offset = (dmin * minima).reshape(-1, 1)
    codes = np.rint((groups + offset) * inverse(step)).clip(0, largest).astype(np.uint8)
    head = np.concatenate([raw_d, raw_min, _packed_scales(scales, minima)], axis=1)
    return head, codes.reshape(-1, 256)


def _pairs(codes: NDArray[np.uint8]) -> U8:
    """Codes of 4 bits [n, 256]: in each 64 the first 32 in the low halves, the others in the high ones."""
    split = codes.reshape(-1, 4, 2, 32)
    return np.asarray(split[:, :, 0] | (split[:, :, 1] << 4), np.uint8).reshape(-1, 128)


def _quarters(codes: NDArray[np.uint8]) -> U8:
    """Codes of 2 bits [n, 256]: in each 128 the first 32 in the lowest bits, the next above them."""
    split = codes.reshape(-1, 2, 4, 32)
    packed = split[:, :, 0] | (split[:, :, 1] << 2) | (split[:, :, 2] << 4) | (split[:, :, 3] << 6)
    return np.asarray(packed, np.uint8).reshape(-1, 64)


def q2_k(blocks: F32) -> U8:
    """Scales in the low halves of 16 bytes and minima in the high ones, codes of 2 bits, d, dmin."""
    groups = blocks.reshape(-1, 16)
    scale, minimum = _ranged(groups, np.abs(groups), 3, -0.5, 15, squared=False)
    raw_d, d, scales = _super(scale.reshape(-1, 16), 15)
    raw_min, dmin, minima = _super(minimum.reshape(-1, 16), 15)
    offset = (dmin * minima).reshape(-1, 1)
    codes = np.rint((groups + offset) * inverse((d * scales).reshape(-1, 1))).clip(0, 3).astype(np.uint8)
    parts = [scales | (minima << 4), _quarters(codes.reshape(-1, 256)), raw_d, raw_min]
    return np.concatenate(parts, axis=1)


def _improved(groups: F32, half: int) -> F32:
    """The scale [n, 1] for codes -half .. half - 1: each code in turn, five times over, is moved to where it
    serves the others' best scale, if that lessens the error weighted with the squares (ggml: make_q3_quants).
    """
    columns = np.ascontiguousarray(groups.T)
    weight = columns * columns
    peak = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    codes = np.rint(-half * inverse(peak) * columns).clip(-half, half - 1)
    across = (weight * columns * codes).sum(axis=0)
    square = (weight * codes * codes).sum(axis=0)
    for _ in range(5):
        for value, own, code in zip(columns, weight, codes, strict=True):
            other_across = across - own * value * code
            other_square = square - own * code * code
            moved = np.rint(value * other_square * inverse(other_across)).clip(-half, half - 1)
            new_across = other_across + own * value * moved
            new_square = other_square + own * moved * moved
            better = (other_across > 0) & (new_square > 0)
            better &= new_across * new_across * square > across * across * new_square
            across, square = np.where(better, new_across, across), np.where(better, new_square, square)
            code[:] = np.where(better, moved, code)
    scale: F32 = np.where(np.abs(peak) < _TINY, np.float32(0), across * inverse(square))
    return scale[:, None]


def _signed_scales(scales: F32) -> tuple[U8, F32, NDArray[np.int8]]:
    """Scales [n, groups] to -32 .. 31: (their float16 factor as bytes, the products, the codes)."""
    at = np.abs(scales).argmax(axis=1)[:, None]
    factor = np.take_along_axis(scales, at, axis=1) / np.float32(-32)
    codes = np.rint(scales * inverse(factor)).clip(-32, 31)
    raw = half_bytes(factor)
    return raw, raw.view("<f2").astype(np.float32) * codes, codes.astype(np.int8)


def q3_k(blocks: F32) -> U8:
    """The third bits (bit g of byte j: column 32 * g + j), the other two, 16 scales of 6 bits, d."""
    groups = blocks.reshape(-1, 16)
    raw_d, step, scales = _signed_scales(_improved(groups, 4).reshape(-1, 16))
    codes = (np.rint(groups * inverse(step.reshape(-1, 1))).clip(-4, 3) + 4).astype(np.uint8)
    codes = codes.reshape(-1, 256)
    high = np.packbits(codes.reshape(-1, 8, 32) >> 2, axis=1, bitorder="little").reshape(-1, 32)
    six = (scales + 32).astype(np.uint8)
    upper = (six >> 4).reshape(-1, 4, 4)
    upper = upper[:, 0] | (upper[:, 1] << 2) | (upper[:, 2] << 4) | (upper[:, 3] << 6)
    lower = six[:, :8] & 15 | ((six[:, 8:] & 15) << 4)
    return np.concatenate([high, _quarters(codes & 3), lower, upper, raw_d], axis=1)


def iq4_xs(blocks: F32) -> U8:
    """d, the scales' upper 2 bits, their lower 4, indexes of ggml_simple.IQ4_VALUES."""
    groups = blocks.reshape(-1, 32)
    raw_d, step, scales = _signed_scales(iq4_scale(groups).reshape(-1, 8))
    codes = nibbles(nearest_iq4(groups * inverse(step.reshape(-1, 1)))).reshape(-1, 128)
    six = (scales + 32).astype(np.uint8)
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    upper = ((six.astype(np.uint16) >> 4) << shifts).sum(axis=1, dtype=np.uint16)[:, None]
    lower = six[:, 0::2] & 15 | ((six[:, 1::2] & 15) << 4)
    return np.concatenate([raw_d, upper.astype("<u2").view(np.uint8), lower, codes], axis=1)


def q4_k(blocks: F32) -> U8:
    """d, dmin, scales, codes of 4 bits."""
    head, codes = _minimum_blocks(blocks, 15, -1.0, 20)
    return np.concatenate([head, _pairs(codes)], axis=1)


def q5_k(blocks: F32) -> U8:
    """d, dmin, scales, the fifth bits (bit g of byte j: column 32 * g + j), the other four."""
    head, codes = _minimum_blocks(blocks, 31, -0.5, 15)
    high = np.packbits(codes.reshape(-1, 8, 32) >> 4, axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([head, high, _pairs(codes & np.uint8(15))], axis=1)


def _symmetric(groups: F32, largest: int) -> F32:
    """The scale [n, 1] of least error weighted with the squares (ggml: make_qx_quants, rmse_type 1)."""
    at = np.abs(groups).argmax(axis=1)[:, None]
    peak = np.take_along_axis(groups, at, axis=1)
    weight = groups * groups
    scale = best = np.zeros_like(peak)
    for step in [0, *range(-9, 0), *range(1, 10)]:
        trial = -(np.float32(largest) + np.float32(0.1) * np.float32(step)) * inverse(peak)
        codes = np.rint(trial * groups).clip(-largest, largest - 1)
        across = (weight * groups * codes).sum(axis=1, keepdims=True)
        square = (weight * codes * codes).sum(axis=1, keepdims=True)
        better = (square > 0) & ((across * across > best * square) | (step == 0))
        found = across * inverse(square)
        scale, best = np.where(better, found, scale), np.where(better, found * across, best)
    return np.where(np.abs(peak) < _TINY, np.float32(0), scale)


def q6_k(blocks: F32) -> U8:
    """The low four bits, the high two, 16 scales (int8), d."""
    groups = blocks.reshape(-1, 16)
    scale = _symmetric(groups, 32).reshape(-1, 16)
    at = np.abs(scale).argmax(axis=1)[:, None]
    factor = -128 * inverse(np.take_along_axis(scale, at, axis=1))
    scales = np.minimum(np.rint(factor * scale), 127).astype(np.int8)
    raw_d = half_bytes(inverse(factor))
    step = (raw_d.view("<f2").astype(np.float32) * scales).reshape(-1, 1)
    codes = (np.rint(groups * inverse(step)).clip(-32, 31) + 32).astype(np.uint8)
    codes = np.where(step == 0, np.uint8(32), codes).reshape(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | ((codes[:, :, 2:] & 15) << 4)
    high = codes >> 4
    high = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), raw_d]
    return np.concatenate(parts, axis=1)
