"""ggml's quantized types with blocks of 32: one scale a block, rounded as ggml's reference code does it.

A quantizer takes blocks, float32 [n, 32], and gives their bytes, uint8 [n, block bytes]. Formats: a scale d
(float16), for Q4_1 and Q5_1 a minimum m (float16), then the codes: value = d * (code - offset), d * code + m.
Of two codes in a byte the low half belongs to the first half of the block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
"""The 16 values of IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl)."""
_E2M1_BETWEEN = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], dtype=np.float32)
"""Half way between 0, 1, 2, 3, 4, 6, 8 and 12: E2M1's sizes, doubled."""


def half_bytes(values: F32) -> U8:
    """float32 [n, k] as float16, uint8 [n, 2k]; what overflows becomes an infinity, as in ggml."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)


def inverse(values: F32) -> F32:
    """1 / values, 0 for 0."""
    with np.errstate(divide="ignore", over="ignore"):
        found: F32 = np.where(values == 0, np.float32(0), np.float32(1) / values)
    return found


def nibbles(codes: NDArray[Any]) -> U8:
    """Codes 0 .. 15 [n, 32] -> uint8 [n, 16]."""
    codes = codes.astype(np.uint8)
    found: U8 = codes[:, :16] | (codes[:, 16:] << 4)
    return found


def q8_0(blocks: F32) -> U8:
    """d = largest / 127; codes rounded, halves away from 0."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    exact = blocks * inverse(scale)
    size = np.abs(exact)
    whole = np.floor(size)
    codes = np.sign(exact) * (whole + np.floor(2 * (size - whole)))
    return np.concatenate([half_bytes(scale), codes.astype(np.int8).view(np.uint8)], axis=1)


def _signed(blocks: F32, offset: int) -> tuple[F32, NDArray[np.uint8]]:
    """The value of largest size gets code 0: d = it / -offset; codes 0 .. 2 * offset - 1."""
    at = np.abs(blocks).argmax(axis=1)[:, None]
    scale = np.take_along_axis(blocks, at, axis=1) / np.float32(-offset)
    codes = np.trunc(blocks * inverse(scale) + np.float32(offset + 0.5))
    return scale, codes.clip(0, 2 * offset - 1).astype(np.uint8)


def _ranged(blocks: F32, largest: int) -> tuple[F32, F32, NDArray[np.uint8]]:
    """From the smallest (code 0) to the largest: (d, m, codes 0 .. largest)."""
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(largest)
    codes = np.trunc((blocks - low) * inverse(scale) + np.float32(0.5))
    return scale, low, codes.clip(0, largest).astype(np.uint8)


def _fifth_bits(codes: NDArray[np.uint8]) -> U8:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def q4_0(blocks: F32) -> U8:
    """d, codes - 8."""
    scale, codes = _signed(blocks, 8)
    return np.concatenate([half_bytes(scale), nibbles(codes)], axis=1)


def q4_1(blocks: F32) -> U8:
    """d, m, codes."""
    scale, low, codes = _ranged(blocks, 15)
    return np.concatenate([half_bytes(scale), half_bytes(low), nibbles(codes)], axis=1)


def q5_0(blocks: F32) -> U8:
    """d, the fifth bits (32 of them), codes - 16."""
    scale, codes = _signed(blocks, 16)
    return np.concatenate([half_bytes(scale), _fifth_bits(codes), nibbles(codes & 15)], axis=1)


def q5_1(blocks: F32) -> U8:
    """d, m, the fifth bits, codes."""
    scale, low, codes = _ranged(blocks, 31)
    parts = [half_bytes(scale), half_bytes(low), _fifth_bits(codes), nibbles(codes & 15)]
    return np.concatenate(parts, axis=1)


def iq4_nl(blocks: F32) -> U8:
    """d, indexes of IQ4_VALUES."""
    scale = iq4_scale(blocks)
    return np.concatenate([half_bytes(scale), nibbles(nearest_iq4(blocks * inverse(scale)))], axis=1)


def iq4_scale(blocks: F32) -> F32:
    """Of 16 scales near largest / -127 the one with the least squared error [n, 1], each value's weighted
    with its own square, as ggml does without an importance matrix.
    """
    weight = blocks * blocks
    at = np.abs(blocks).argmax(axis=1)[:, None]
    largest = np.take_along_axis(blocks, at, axis=1)
    over = inverse(largest)
    best_scale = np.zeros_like(largest)
    best = np.zeros_like(largest)
    for top in (-IQ4_VALUES[0], *(IQ4_VALUES[0] + np.float32(step) for step in range(-7, 8))):
        values = IQ4_VALUES[nearest_iq4(blocks * (top * over))]
        across = (weight * values * blocks).sum(axis=1, keepdims=True)
        square = (weight * values * values).sum(axis=1, keepdims=True)
        better = (square > 0) & (across * across > best * square)
        scale = across * inverse(square)
        best_scale = np.where(better, scale, best_scale)
        best = np.where(better, scale * across, best)
    return best_scale


def nearest_iq4(values: F32) -> NDArray[np.int64]:
    """Index of the nearest of IQ4_VALUES."""
    between = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    return np.searchsorted(between, values, side="right")


def mxfp4(blocks: F32) -> U8:
    """An exponent for the largest value to be 4 .. 8 halves times it, then E2M1 codes."""
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    _, power = np.frexp(largest)  # largest = [0.5, 1) * 2 ** power
    exponent = np.where(largest > 0, np.clip(power - 3 + 127, 0, 254), 0).astype(np.uint8)
    halves = np.ldexp(np.abs(blocks), 128 - exponent.astype(np.int32))
    size = np.searchsorted(_E2M1_BETWEEN, halves, side="left")
    codes = np.where((blocks < 0) & (size > 0), size + 8, size)
    return np.concatenate([exponent, nibbles(codes)], axis=1)
