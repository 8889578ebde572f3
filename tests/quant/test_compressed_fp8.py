"""compressed-tensors and FP8 modules, written by the packers here, become exactly their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Activation, Fp8, Int4Group, Int8, Layout, Lut4
from octavo.quant.compressed import CompressedTensors
from octavo.quant.format import Format, Tensors
from octavo.quant.fp8 import Fp8Checkpoint, block_of


def read(format: Format, tensors: dict[str, Any], rows: int, cols: int) -> Layout:
    held = Held(**tensors)
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


def config(inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "format": "any"}


def same(layout: Layout, values: np.ndarray[Any, Any]) -> None:
    assert layout.shape == values.shape
    np.testing.assert_allclose(layout.dequantize(), values, rtol=3e-7, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_packed(bits: int, group: int, asymmetric: bool, act_order: bool) -> None:
    rng = np.random.default_rng(bits * 100 + group)
    how = {"bits": bits, "group": group, "asymmetric": asymmetric, "act_order": act_order}
    for rows, cols in ((48, 256), (13, 77)):
        tensors, values = packers.packed(rng, rows, cols, **how)
        said = {"num_bits": bits, "strategy": "group", "group_size": None if group == -1 else group}
        layout = read(CompressedTensors(config(**said)), tensors, rows, cols)
        same(layout, values)
        if bits == 4:
            assert isinstance(layout, Int4Group)
            assert (layout.zero is not None) == asymmetric


def test_a_g_idx_that_says_nothing_is_passed_over() -> None:
    tensors, values = packers.packed(np.random.default_rng(1), 8, 64)
    tensors["weight_g_idx"] = np.full(64, -1, np.int32)
    same(read(CompressedTensors(config(num_bits=4, group_size=32)), tensors, 8, 64), values)


@pytest.mark.parametrize("group", [-1, 32])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_int8(group: int, asymmetric: bool) -> None:
    tensors, values = packers.int8(np.random.default_rng(1), 24, 96, group=group, asymmetric=asymmetric)
    said = {"num_bits": 8, "group_size": None if group == -1 else group}
    layout = read(CompressedTensors(config(**said)), tensors, 24, 96)
    assert isinstance(layout, Int8)
    same(layout, values)


def test_how_inputs_are_rounded() -> None:
    tensors, _ = packers.int8(np.random.default_rng(1), 24, 96)
    fixed = {**tensors, "input_scale": np.array([0.03], np.float32)}
    offset = {**fixed, "input_zero_point": np.array([-7], np.int8)}
    token = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    tensor = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    scale = float(np.float32(0.03))
    for inputs, stored, expected in (
        (None, tensors, None),
        ({**token, "symmetric": True}, tensors, Activation()),
        ({**token, "symmetric": False}, tensors, Activation(symmetric=False)),
        ({**tensor, "symmetric": True}, fixed, Activation(scale=scale)),
        ({**tensor, "symmetric": False}, offset, Activation(symmetric=False, scale=scale, zero=-7)),
        ({**token, "type": "float"}, tensors, None),
    ):
        layout = read(CompressedTensors(config(inputs, num_bits=8)), stored, 24, 96)
        assert isinstance(layout, Int8)
        assert layout.activation == expected


@pytest.mark.parametrize(
    ("scales", "strategy"), [("matrix", "tensor"), ("row", "channel"), ("block", "block")]
)
def test_float8(scales: str, strategy: str) -> None:
    tensors, values = packers.fp8(np.random.default_rng(1), 150, 290, scales=scales)
    said = {"num_bits": 8, "type": "float", "strategy": strategy}
    said |= {"block_structure": [128, 128]} if strategy == "block" else {}
    layout = read(CompressedTensors(config(**said)), tensors, 150, 290)
    assert isinstance(layout, Fp8)
    same(layout, values)
    held = Held(**tensors)
    if scales == "block":
        held = Held(weight=tensors["weight"], weight_scale_inv=tensors["weight_scale"])
    for format in (Fp8Checkpoint({"weight_block_size": [128, 128]}),):
        same(format.read(Tensors("m", format.suffixes("m", held.tensors), held), 150, 290), values)


def test_blocks_may_be_written_as_a_word() -> None:
    assert block_of("128x64", "block_structure") == (128, 64)


def test_scales_of_powers_of_two_and_one_number() -> None:
    tensors, values = packers.fp8(np.random.default_rng(1), 16, 80, scales="32")
    same(read(CompressedTensors(config(num_bits=8, type="float", group_size=32)), tensors, 16, 80), values)
    tensors, values = packers.fp8(np.random.default_rng(1), 16, 80, scales="matrix")
    tensors["weight_scale"] = tensors["weight_scale"].reshape(())
    same(read(Fp8Checkpoint({"activation_scheme": "static"}), tensors, 16, 80), values)


@pytest.mark.parametrize("nv", [True, False])
@pytest.mark.parametrize("cols", [64, 76])
def test_float4(nv: bool, cols: int) -> None:
    tensors, values = packers.fp4(np.random.default_rng(1), 24, cols, nv=nv)
    said = {"num_bits": 4, "type": "float", "group_size": 16 if nv else 32}
    layout = read(CompressedTensors(config(**said)), tensors, 24, cols)
    assert isinstance(layout, Lut4)
    same(layout, values)


def test_groups_are_chosen_by_name_then_pattern_then_class() -> None:
    def group(bits: int, *targets: str) -> dict[str, Any]:
        return {"targets": list(targets), "weights": {"num_bits": bits, "group_size": 32}}

    groups = {"a": group(2, "Linear"), "b": group(3, "re:.*m"), "c": group(8, "m")}
    tensors, values = packers.packed(np.random.default_rng(1), 8, 64, bits=8)
    same(read(CompressedTensors({"config_groups": groups}), tensors, 8, 64), values)
    tensors, values = packers.packed(np.random.default_rng(1), 8, 64, bits=3)
    same(
        read(CompressedTensors({"config_groups": {"a": groups["a"], "b": groups["b"]}}), tensors, 8, 64),
        values,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_shape": np.array([8, 65])}, r"m.weight_shape .* holds \[8, 65\], expected \[8, 64\]"),
        ({"weight_packed": np.zeros((8, 7), np.int32)}, r"m.weight_packed .* \[8, 7\], expected \[8, 8\]"),
        ({"weight_scale": np.full((8, 2), np.inf, np.float32)}, r"m.weight_scale .* holds inf at \[0, 0\]"),
        (
            {"weight_scale": np.ones((8, 3), np.float32)},
            r"m.weight_scale .* shape \[8, 3\], expected \[8, 2\]",
        ),
        ({"weight_scale": np.ones((8, 2), np.int64)}, "m.weight_scale .* dtype int64"),
        ({"weight_g_idx": np.full(64, 2, np.int32)}, "m.weight_g_idx .* holds 2, expected 0 to 1"),
        ({"weight_g_idx": np.arange(64, dtype=np.int32) - 3}, "m.weight_g_idx .* holds -3"),
        (
            {"weight_zero_point": np.zeros((2, 2), np.int32)},
            r"weight_zero_point .* \[2, 2\], expected \[1, 2\]",
        ),
    ],
)
def test_a_damaged_module_is_named(change: dict[str, Any], said: str) -> None:
    tensors, _ = packers.packed(np.random.default_rng(1), 8, 64)
    with pytest.raises(CheckpointError, match=said):
        read(CompressedTensors(config(num_bits=4, group_size=32)), {**tensors, **change}, 8, 64)


def test_floats_that_are_no_numbers_are_named() -> None:
    tensors, _ = packers.fp8(np.random.default_rng(1), 16, 80, scales="matrix")
    tensors["weight"][0][3, 4] = 0xFF
    with pytest.raises(CheckpointError, match=r"m.weight .* holds a NaN or an infinity at \[3, 4\]"):
        read(Fp8Checkpoint({}), tensors, 16, 80)
    tensors, _ = packers.fp4(np.random.default_rng(1), 24, 64, nv=False)
    tensors["weight_scale"][1, 1] = 255
    with pytest.raises(CheckpointError, match=r"m.weight_scale .* holds nan at \[1, 1\]"):
        read(CompressedTensors(config(num_bits=4, type="float")), tensors, 24, 64)
    tensors, _ = packers.fp4(np.random.default_rng(1), 24, 64, nv=True)
    for value in (np.zeros(1, np.float32), np.full(1, 1e-40, np.float32), np.ones(2, np.float32)):
        with pytest.raises(CheckpointError, match=r"weight_global_scale .* expected one positive number"):
            read(
                CompressedTensors(config(num_bits=4, type="float")),
                {**tensors, "weight_global_scale": value},
                24,
                64,
            )
    del tensors["weight_global_scale"]
    with pytest.raises(CheckpointError, match="there is no weight_global_scale"):
        read(CompressedTensors(config(num_bits=4, type="float")), tensors, 24, 64)


def rotated(*places: str) -> dict[str, Any]:
    """A transform_config as llm-compressor's SpinQuant writes it."""
    apply = [{"targets": ["re:.*q_proj$"], "location": place, "inverse": True} for place in places]
    return {"transform_config": {"config_groups": {"R1": {"type": "hadamard", "apply": apply}}}}


def test_rotations_that_are_part_of_the_weights_need_nothing() -> None:
    tensors, values = packers.packed(np.random.default_rng(0), 24, 64)
    said = {**config(num_bits=4, group_size=32), **rotated("weight_input", "weight_output")}
    np.testing.assert_allclose(read(CompressedTensors(said), tensors, 24, 64).dequantize(), values, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CompressedTensors({}), "no config_groups"),
        (lambda: CompressedTensors(config(num_bits=9)), "num_bits 9, expected 1 to 8"),
        (lambda: CompressedTensors(config(["int8"], num_bits=8)), "input_activations .*expected an object"),
        (
            lambda: CompressedTensors({**config(), "sparsity_config": {"format": "sparse-24-bitmask"}}),
            "Sparse",
        ),
        (lambda: CompressedTensors({**config(num_bits=4), "format": "marlin-24"}), "'marlin-24'"),
        (
            lambda: CompressedTensors({**config(), "transform_config": {"config_groups": {"a": 1}}}),
            "rotates activations",
        ),
        (lambda: CompressedTensors({**config(), **rotated("weight_input", "input")}), r"\(input\)"),
        (lambda: CompressedTensors({**config(), **rotated()}), "rotates activations"),
        (lambda: Fp8Checkpoint({"weight_block_size": [0, 1]}), "weight_block_size"),
        (lambda: CompressedTensors(config(num_bits=8, block_structure="0x128")), "block_structure"),
    ],
)
def test_a_config_that_says_something_else_is_refused(make: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        make()
