"""torchao's tensors become exactly their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Activation, Fp8, Int4Group, Int8, Layout, Lut4
from octavo.quant.format import Tensors
from octavo.quant.torchao import TorchAo

WEIGHTS = {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
ROUNDED = {"quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig", "_data": {}}}}


def read(tensors: dict[str, Any], rows: int, cols: int, config: dict[str, Any] | None = None) -> Layout:
    held, format = Held(**tensors), TorchAo(config or WEIGHTS)
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


@pytest.mark.parametrize("group", [32, 16, 96])
@pytest.mark.parametrize(
    ("bits", "kind"), [(8, Int8), (6, Int8), (4, Int4Group), (2, Int4Group), (1, Int4Group)]
)
def test_codes_one_a_byte(bits: int, kind: type, group: int) -> None:
    tensors, values = packers.torchao(np.random.default_rng(bits), 24, 96, bits=bits, group=group)
    layout = read(tensors, 24, 96)
    assert isinstance(layout, kind)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)


@pytest.mark.parametrize(("rows", "cols"), [(24, 96), (16, 64)])
def test_codes_two_a_byte(rows: int, cols: int) -> None:
    tensors, values = packers.torchao4(np.random.default_rng(0), rows, cols)
    np.testing.assert_allclose(read(tensors, rows, cols).dequantize(), values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "cols", "group"), [(8, 1024, 128), (20, 96, 32), (3, 1100, 64)])
def test_tiles(rows: int, cols: int, group: int) -> None:
    tensors, values = packers.tinygemm(np.random.default_rng(0), rows, cols, group=group)
    layout = read(tensors, rows, cols)
    assert layout.shape == (rows, cols)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("nv", [False, True])
@pytest.mark.parametrize(("rows", "cols"), [(24, 96), (130, 160), (300, 32)])
def test_4_bit_floats(rows: int, cols: int, nv: bool, tiled: bool) -> None:
    tensors, values = packers.microscaled(np.random.default_rng(0), rows, cols, nv=nv, tiled=tiled)
    layout = read(tensors, rows, cols)
    assert isinstance(layout, Lut4)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)


def test_8_bit_floats_with_powers_of_two() -> None:
    packed, values = packers.fp8(np.random.default_rng(0), 24, 96, scales="32")
    scale = (packed["weight_scale"], "float8_e8m0fnu")
    layout = read({"_weight_qdata": packed["weight"], "_weight_scale": scale}, 24, 96)
    assert isinstance(layout, Fp8)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)


def test_codes_eight_a_word() -> None:
    tensors, values = packers.torchao_words(np.random.default_rng(0), 24, 96)
    layout = read(tensors, 24, 96)
    assert isinstance(layout, Int4Group)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)


def test_factors_of_inputs_become_part_of_the_numbers() -> None:
    tensors, values = packers.torchao4(np.random.default_rng(0), 24, 96)
    factors = np.linspace(0.5, 2, 96, dtype=np.float32)
    layout = read({**tensors, "_weight_act_pre_scale": factors}, 24, 96)
    np.testing.assert_allclose(layout.dequantize(), values * factors, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(24, 1), (1, 1), (2, 3), ()])
def test_8_bit_floats_by_block(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = (rng.integers(0, 0x7F, (24, 96)) | rng.integers(0, 2, (24, 96)) << 7).astype(np.uint8)
    scale = rng.uniform(0.5, 2, shape).astype(np.float32)
    layout = read({"_weight_qdata": (codes, "float8_e4m3fn"), "_weight_scale": np.asarray(scale)}, 24, 96)
    assert isinstance(layout, Fp8)
    high, wide = scale.reshape(shape or (1, 1)).shape
    spread = np.repeat(np.repeat(scale.reshape(high, wide), 24 // high, 0), 96 // wide, 1)
    plain = Fp8(codes, "e4m3", np.ones((24, 1), np.float32), 96).dequantize()
    np.testing.assert_array_equal(layout.dequantize(), plain * spread)


def test_inputs_are_rounded_as_the_config_says() -> None:
    tensors, _ = packers.torchao(np.random.default_rng(0), 24, 96, bits=4)
    quiet = {"_type": "Int8WeightOnlyConfig", "_data": {}}
    loud = ROUNDED["quant_type"]["default"]
    other = {
        "_type": "Int8DynamicActivationInt8WeightConfig",
        "_data": {"act_mapping_type": {"_data": "ASYMMETRIC"}},
    }
    named = {"_default": quiet, "m": loud, "re:.*n": other}
    by_name = {"quant_type": {"default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": named}}}}
    for config in (ROUNDED, {"quant_type": "int8_dynamic_activation_int8_weight"}, by_name):
        layout = read(tensors, 24, 96, config)
        assert isinstance(layout, Int8)
        assert layout.activation == Activation(True)
    assert TorchAo(by_name)._of("model.n") == Activation(False)
    assert TorchAo(by_name)._of("model.o") is None
    static = read({**tensors, "_weight_act_quant_scale": np.full((1, 1), 0.5, np.float32)}, 24, 96, ROUNDED)
    assert isinstance(static, Int8)
    assert static.activation == Activation(True, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_weight_scale": np.ones((24, 5), np.float32)}, r"shape \[24, 5\], which shares out no \[24, 96\]"),
        ({"_weight_scale": np.zeros((0, 0), np.float32)}, "which shares out no"),
        ({"_weight_scale": np.full((24, 3), np.inf, np.float32)}, "holds inf"),
        ({"_weight_zero_point": np.zeros((23, 3), np.int8)}, "which shares out no"),
        ({"_weight_zero_point": np.zeros((24, 1), np.int8)}, "zero_point .* has 1 groups, expected 3"),
        ({"_weight_act_pre_scale": np.ones(95, np.float32)}, "holds 95 numbers, expected 96"),
        ({"_weight_scale": (np.ones((24, 5), np.uint8), "float8_e8m0fnu")}, r"expected \[32, 16\]"),
    ],
)
def test_damage_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    tensors, _ = packers.torchao(np.random.default_rng(0), 24, 96)
    with pytest.raises(CheckpointError, match=said):
        read({**tensors, **changes}, 24, 96)


@pytest.mark.parametrize("shape", [(), (24,), (0, 24), (5, 24)])
def test_scales_by_group_must_share_out_the_columns(shape: tuple[int, ...]) -> None:
    for pack in (packers.torchao4, packers.torchao_words):
        tensors, _ = pack(np.random.default_rng(0), 24, 96)
        with pytest.raises(CheckpointError, match=r"_weight_scale .* shares out no 96 columns"):
            read({**tensors, "_weight_scale": np.ones(shape, np.float16)}, 24, 96)


def test_what_is_not_read_is_named() -> None:
    tensors, _ = packers.torchao(np.random.default_rng(0), 24, 96)
    with pytest.raises(UnsupportedModel, match=r"int32 \[24, 12\] for m .* Int8Tensor"):
        read(
            {"_weight_qdata": np.zeros((24, 12), np.int32), "_weight_scale": tensors["_weight_scale"]}, 24, 96
        )
    floats = np.zeros((3, 24), np.float16)
    with pytest.raises(UnsupportedModel, match=r"int32 \[24, 12\]"):
        read({**tensors, "_weight_qdata": np.zeros((24, 12), np.int32), "_weight_zero_point": floats}, 24, 96)
    with pytest.raises(UnsupportedModel, match="quant_type None"):
        TorchAo({})
