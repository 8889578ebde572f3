"""ggml's K-quants: blocks of 256 whose scales (and minima) are quantized too, rounded as ggml does it.

A quantizer takes blocks, float32 [n, 256], and gives their bytes. Q4_K and Q5_K: 8 groups of 32, value =
d * scale * code - dmin * minimum, scale and minimum of 6 bits. Q6_K: 16 groups of 16, value = d * scale *
(code - 32), scale int8. Sums run in another order than ggml's, so that a code may differ where two are
equally good within float32's rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.convert.ggml_simple import F32, U8, half_bytes, inverse

_TINY = np.float32(1e-15)
"""ggml's GROUP_MAX_EPS: groups below it are all zero."""


def _ranged(groups: F32, weight: F32, largest: int, first: float, steps: int) -> tuple[F32, F32]:
    """Scale and minimum (at most 0, given back negated) of least weighted squared error for each group.

    groups and weight [n, width] -> scale [n, 1], minimum [n, 1]. Each trial rounds with its own scale and
    solves for the best scale and minimum of those codes (ggml: make_qkx2_quants).
    """
    low = np.minimum(groups.min(axis=1, keepdims=True), 0)
    span = groups.max(axis=1, keepdims=True) - low
    sum_w = weight.sum(axis=1, keepdims=True)
    sum_x = (weight * groups).sum(axis=1, keepdims=True)
    above = groups - low

    def error(codes: F32, scale: F32, base: F32) -> F32:
        diff = scale * codes + base - groups
        found: F32 = (weight * diff * diff).sum(axis=1, keepdims=True)
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


def _super(values: F32) -> tuple[U8, F32, NDArray[np.uint8]]:
    """Scales [n, 8] to 6 bits: (their float16 factor as bytes, the factor again, the codes)."""
    largest = values.max(axis=1, keepdims=True)
    codes = np.rint(np.float32(63) * inverse(largest) * values).clip(0, 63).astype(np.uint8)
    raw = half_bytes(largest / np.float32(63))
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
