"""NF4 at load: the nearest number of each block, by the rule written slowly."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.ops.layouts import Dense, Lut4
from octavo.quant.nf4 import BLOCK, NF4, in_blocks, round_nf4


def slow(values: np.ndarray) -> np.ndarray:
    """Every number by the code that lies nearest, the lower one half-way."""
    flat, out = values.reshape(-1).astype(np.float32), []
    edges = (NF4[:-1] + NF4[1:]) / np.float32(2)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        size = np.maximum(np.abs(block).max(), np.float32(1e-38))
        scaled = block * (np.float32(1) / size) if block.size == BLOCK else block / size
        codes = [sum(bool(number > edge) for edge in edges) for number in np.clip(scaled, -1, 1)]
        out += (NF4[codes] * np.abs(block).max()).tolist()
    return np.array(out, np.float32).reshape(values.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 64), (3, 160), (5, 33), (2, 16), (1, 1), (20, 100)])
def test_the_rule(shape: tuple[int, int], dtype: str) -> None:
    values = np.random.default_rng(shape[1]).standard_normal(shape, np.float32) ** 3
    matrix = Dense.of(values, dtype)
    rounded = round_nf4(matrix)
    np.testing.assert_array_equal(rounded.dequantize(), slow(matrix.dequantize()))
    assert isinstance(rounded, Lut4) == (shape[1] not in (33, 100))


def test_numbers_on_and_beside_every_edge() -> None:
    edges = (NF4[:-1] + NF4[1:]) / np.float32(2)
    numbers = np.concatenate([NF4, edges, np.nextafter(edges, -2), np.nextafter(edges, 2)])
    numbers = np.append(numbers, np.zeros(-len(numbers) % (BLOCK - 1), np.float32)).astype(np.float32)
    blocks = np.pad(numbers.reshape(-1, BLOCK - 1), ((0, 0), (0, 1)), constant_values=1)
    np.testing.assert_array_equal(round_nf4(Dense(blocks, "float32")).dequantize(), slow(blocks))


def test_chunks_and_the_short_block_at_the_end() -> None:
    values = np.random.default_rng(0).standard_normal((700, 200), np.float32)
    assert values.size > 2 << 16
    assert values.size % BLOCK
    whole = round_nf4(Dense(values, "float32")).dequantize()
    head = values.reshape(-1)[: 320 * BLOCK].reshape(-1, BLOCK)
    np.testing.assert_array_equal(
        whole.reshape(-1)[: head.size], round_nf4(Dense(head, "float32")).dequantize().reshape(-1)
    )


def test_a_block_of_zeros_stays_so() -> None:
    assert not round_nf4(Dense(np.zeros((3, 96), np.float32), "float32")).dequantize().any()


def test_blocks_that_hold_several_rows() -> None:
    codes = np.arange(96, dtype=np.uint8) % 16
    layout = in_blocks(codes, NF4, np.array([1, 2], np.float32), 64, 6, 16)
    np.testing.assert_array_equal(layout.dequantize()[3], NF4)
    np.testing.assert_array_equal(layout.dequantize()[4], 2 * NF4)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_block(number: float) -> None:
    values = np.ones((3, 88), np.float32)
    values[0, 3] = values[2, 87] = number
    rounded = round_nf4(Dense(values, "float32"))
    with np.errstate(invalid="ignore"):
        found = rounded.dequantize().reshape(-1)
    assert not np.isfinite(found[:BLOCK]).all()
    np.testing.assert_array_equal(found[BLOCK : 4 * BLOCK], 1)
    assert not np.isfinite(found[4 * BLOCK :]).all()
