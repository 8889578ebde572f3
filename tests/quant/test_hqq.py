"""HQQ's modules become exactly their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Dense, Int4Group, Int8, Layout
from octavo.quant.format import Tensors
from octavo.quant.hqq import Hqq


def read(tensors: dict[str, Any], rows: int, cols: int) -> Layout:
    held, format = Held(**tensors), Hqq({})
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("rows", "cols", "group"), [(24, 64, 32), (32, 96, 64), (16, 80, 16), (32, 20, 16), (8, 48, 96)]
)
def test_the_numbers(bits: int, axis: int, rows: int, cols: int, group: int) -> None:
    if (rows * cols // group if axis else group) % 8:
        pytest.skip("the library packs no such sizes")
    tensors, values = packers.hqq(np.random.default_rng(bits), rows, cols, bits=bits, group=group, axis=axis)
    layout = read(tensors, rows, cols)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-5, atol=1e-6)
    kind: type = Int8 if bits == 8 else Int4Group
    assert isinstance(layout, kind if axis == 1 and cols != 20 else Dense)


def test_codes_seen_as_floats() -> None:
    tensors, values = packers.hqq(np.random.default_rng(0), 24, 64)
    viewed = {**tensors, "W_q": tensors["W_q"].view(np.float16), "view_as_float": np.array(1, np.uint8)}
    np.testing.assert_allclose(read(viewed, 24, 64).dequantize(), values, rtol=1e-5)


def test_numbers_that_no_layout_holds_come_in_the_librarys_dtype() -> None:
    tensors, values = packers.hqq(np.random.default_rng(0), 24, 64, axis=0)
    tensors["compute_dtype"] = np.frombuffer(b"torch.float16", np.uint8)
    layout = read(tensors, 24, 64)
    assert isinstance(layout, Dense)
    assert layout.dtype == "float16"
    np.testing.assert_array_equal(layout.data, values.astype(np.float16))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": np.array([64, 24])}, r"m.shape .* holds \[64, 24\], expected \[24, 64\]"),
        ({"axis": np.array(2, np.int32)}, "groups of 32 on axis 2"),
        ({"group_size": np.array(0, np.int32)}, "groups of 0"),
        ({"group_size": np.array([32, 32], np.int32)}, "holds 2 numbers of int32, expected one whole number"),
        ({"scale": np.full((48, 1), np.nan, np.float16)}, "holds nan"),
        ({"zero": np.zeros((47, 1), np.float16)}, "holds 47 numbers, expected 48"),
        ({"W_q": np.zeros((23, 32), np.uint8)}, r"has shape \[23, 32\], expected \[24, 32\]"),
        ({"W_q": np.zeros((24, 32), np.int32)}, "dtype int32, expected uint8"),
        ({"packing": None}, "has no packing beside it"),
    ],
)
def test_damage_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    tensors, _ = packers.hqq(np.random.default_rng(0), 24, 64)
    changed = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        read(changed, 24, 64)


def test_what_is_not_read_is_named() -> None:
    tensors, _ = packers.hqq(np.random.default_rng(0), 24, 64)
    with pytest.raises(UnsupportedModel, match="packing '5bit_u8'"):
        read({**tensors, "packing": np.frombuffer(b"5bit_u8", np.uint8)}, 24, 64)
    with pytest.raises(UnsupportedModel, match="quant_zero of m"):
        read({**tensors, "quant_zero": np.array(1, np.uint8)}, 24, 64)
