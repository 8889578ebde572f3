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


def twice(part: np.ndarray[Any, Any], fold: tuple[int, ...], by: tuple[int, ...]) -> tuple[Any, ...]:
    """Scales or zeros that are quantized: codes of `fold`, scale and zero of the shape `by`, the numbers."""
    rng = np.random.default_rng(part.size)
    codes = rng.integers(0, 256, fold).astype(np.uint8)
    scale, zero = (rng.uniform(0.01, 2, by).astype(np.float32) for _ in range(2))
    return codes, scale, zero, ((codes - zero) * scale).reshape(part.shape)


@pytest.mark.parametrize("kept", ["apart", "together"])
@pytest.mark.parametrize(("fold", "by"), [((48, 1), ()), ((4, 12), (1, 12)), ((4, 12), (4, 1))])
def test_scales_and_zeros_that_are_quantized_too(kept: str, fold: Any, by: Any) -> None:
    tensors, _ = packers.hqq(np.random.default_rng(0), 24, 64)
    codes, numbers, given = {}, {}, dict(tensors)
    for part in ("scale", "zero"):
        codes[part], *inner, numbers[part] = twice(given.pop(part), fold, by)
        given |= {f"meta_{part}.scale": inner[0], f"meta_{part}.zero": inner[1]}
    if kept == "together":
        given["zero_scale"] = np.stack([codes["zero"], codes["scale"]])
    else:
        given |= {"scale_q": codes["scale"], "zero_q": codes["zero"]}
    plain = {part: found.astype(np.float32) for part, found in numbers.items()}
    wanted = read({**tensors, **plain}, 24, 64).dequantize()
    np.testing.assert_allclose(read(given, 24, 64).dequantize(), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"m.meta_zero.zero .* shape \[5, 7\], which fits no"):
        read({**given, "meta_zero.zero": np.ones((5, 7), np.float32)}, 24, 64)


def test_plain_scales_and_zeros_in_one_tensor() -> None:
    tensors, values = packers.hqq(np.random.default_rng(0), 24, 64)
    both = np.stack([tensors.pop("zero"), tensors.pop("scale")])
    np.testing.assert_allclose(read({**tensors, "zero_scale": both}, 24, 64).dequantize(), values, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"m.zero_scale .* expected 2 of each"):
        read({**tensors, "zero_scale": both[:1]}, 24, 64)


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
