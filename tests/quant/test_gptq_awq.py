"""GPTQ and AWQ modules, written by the packers beside this file, become exactly their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Activation, Int4Group, Int8, Layout
from octavo.quant.auto_round import auto_round
from octavo.quant.awq import Awq
from octavo.quant.format import Format, Tensors
from octavo.quant.gptq import Gptq


def read(format: Format, tensors: dict[str, Any], rows: int, cols: int) -> Layout:
    held = Held(**tensors)
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


def same(layout: Layout, values: np.ndarray[Any, Any]) -> None:
    assert layout.shape == values.shape
    np.testing.assert_allclose(layout.dequantize(), values, rtol=3e-7, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq(bits: int, group: int, symmetric: bool, act_order: bool) -> None:
    rng = np.random.default_rng(bits * 1000 + group)
    for second in (False, True):
        tensors, values = packers.gptq(
            rng, 64, 256, bits=bits, group=group, symmetric=symmetric, act_order=act_order, second=second
        )
        config = {"bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
        config["checkpoint_format"] = "gptq_v2" if second else "gptq"
        layout = read(Gptq(config), tensors, 64, 256)
        same(layout, values)
        if bits <= 4:
            assert isinstance(layout, Int4Group)
            assert (layout.order is not None) == (act_order and group != -1)
            assert bits < 4 or (layout.zero is None) == symmetric


@pytest.mark.parametrize(("rows", "cols", "group"), [(40, 104, 32), (8, 72, 128), (24, 80, 64), (16, 40, 16)])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_of_sizes_that_nothing_divides(rows: int, cols: int, group: int, act_order: bool) -> None:
    tensors, values = packers.gptq(np.random.default_rng(1), rows, cols, group=group, act_order=act_order)
    same(read(Gptq({"bits": 4, "group_size": group}), tensors, rows, cols), values)


def test_a_zero_point_that_borrowed_of_its_neighbour_comes_back() -> None:
    """Version 1 takes 0x11111111 off the word: a field of 0 leaves 15 and one less in the next."""
    tensors, _ = packers.gptq(np.random.default_rng(1), 8, 32, symmetric=False, second=True)
    zero = np.array([[0, 5, 0, 0, 15, 1, 0, 9]])
    tensors["qzeros"] = packers.along_rows(zero, 4, minus=0x11111111)
    layout = read(Gptq({"bits": 4, "group_size": 32, "sym": False}), tensors, 8, 32)
    assert isinstance(layout, Int4Group)
    assert layout.zero is not None
    assert layout.zero[:, 0].tolist() == zero[0].tolist()


def test_symmetric_zero_points_show_their_version() -> None:
    """Some writers say gptq and store version 2; early ones took odd constants off 3-bit words."""
    for bits in (2, 4, 8):
        tensors, values = packers.gptq(np.random.default_rng(1), 32, 64, bits=bits, second=True)
        same(read(Gptq({"bits": bits, "group_size": 32, "sym": True}), tensors, 32, 64), values)
    tensors, values = packers.gptq(np.random.default_rng(1), 64, 64, bits=3, swapped=True)
    same(read(Gptq({"bits": 3, "group_size": 32, "sym": True}), tensors, 64, 64), values)


def test_static_groups_of_any_size_and_a_missing_g_idx() -> None:
    rng = np.random.default_rng(1)
    tensors, values = packers.gptq(rng, 16, 64)
    del tensors["g_idx"]
    same(read(Gptq({"bits": 4, "group_size": 32}), tensors, 16, 64), values)
    tensors, _ = packers.gptq(rng, 16, 64)
    codes, scale, zero = packers.grid(rng, 16, 64, 4, 32, False)
    uneven = (rng.random(64) < 0.2).astype(np.int32)
    tensors |= {"qweight": packers.along_rows(codes, 4).T, "scales": scale.T, "g_idx": uneven}
    layout = read(Gptq({"bits": 4, "group_size": 32}), tensors, 16, 64)
    same(layout, packers.numbers(codes, scale, zero, uneven))


def test_dynamic_changes_the_settings_of_modules() -> None:
    tensors, values = packers.gptq(np.random.default_rng(1), 32, 64, bits=8, group=64)
    dynamic = {"-:never": {}, "+:other": {"bits": 2}, "+:m": {"bits": 8, "group_size": 64}}
    same(read(Gptq({"bits": 4, "group_size": 32, "dynamic": dynamic}), tensors, 32, 64), values)
    with pytest.raises(UnsupportedModel, match=r"dynamic has '\('"):
        Gptq({"bits": 4, "group_size": 32, "dynamic": {"+:(": {}}})


def test_auto_round_is_one_of_the_two() -> None:
    tensors, values = packers.gptq(np.random.default_rng(1), 32, 64, bits=2)
    extra = {"m": {"bits": 2}, "other": {"bits": 16, "data_type": "fp"}}
    config = {"bits": 4, "group_size": 32, "sym": True, "packing_format": "auto_round:auto_gptq"}
    same(read(auto_round({**config, "extra_config": extra}), tensors, 32, 64), values)
    tensors, values = packers.awq(np.random.default_rng(1), 32, 64, group=32)
    same(read(auto_round({**config, "packing_format": "auto_round:auto_awq"}), tensors, 32, 64), values)
    with pytest.raises(UnsupportedModel, match="'triton'"):
        auto_round({**config, "packing_format": "auto_round:triton"})


def test_auto_round_may_pack_as_compressed_tensors() -> None:
    rng, config = np.random.default_rng(1), {"bits": 4, "group_size": 32, "data_type": "mx_fp"}
    config |= {"packing_format": "auto_round:llm_compressor", "act_bits": 4, "act_data_type": "mx_fp"}
    tensors, values = packers.fp4(rng, 32, 64, nv=False)
    same(read(auto_round({**config, "extra_config": {"lm_head": {"bits": 16}}}), tensors, 32, 64), values)
    tensors, values = packers.fp8(rng, 32, 64, scales="matrix")
    static = {**config, "bits": 8, "group_size": -1, "packing_format": "auto_round:fp8_static"}
    same(read(auto_round(static), tensors, 32, 64), values)
    tensors, values = packers.int8(rng, 32, 64)
    rounded = {**static, "act_bits": 8, "act_data_type": "int", "act_dynamic": True}
    named = {**config, "packing_format": "llm_compressor", "extra_config": {"m": rounded}}
    layout = read(auto_round(named), tensors, 32, 64)
    same(layout, values)
    assert isinstance(layout, Int8)
    assert layout.activation == Activation(True)


def test_few_bits_take_the_room_of_four() -> None:
    assert [Gptq({"bits": bits}).growth for bits in (2, 4, 8)] == [2, 1, 1]


@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("gemv", [False, True])
def test_awq(group: int, gemv: bool) -> None:
    tensors, values = packers.awq(np.random.default_rng(group + 9), 48, 256, group=group, gemv=gemv)
    config = {"bits": 4, "group_size": group, "zero_point": True, "version": "GEMV" if gemv else "gemm"}
    same(read(Awq(config), tensors, 48, 256), values)
    old = {"w_bit": 4, "q_group_size": group, "version": config["version"]}
    same(read(Awq(old), tensors, 48, 256), values)


def test_a_plain_module_is_none_of_them() -> None:
    held = Held(weight=np.zeros((2, 2), np.float16))
    assert not Gptq({"bits": 4}).suffixes("m", held.tensors)
    assert not Awq({}).suffixes("m", held.tensors)


def broken(**changes: Any) -> dict[str, Any]:
    tensors, _ = packers.gptq(np.random.default_rng(1), 16, 64)
    return {**tensors, **{k: f(tensors[k]) for k, f in changes.items()}}


def nan(x: Any) -> Any:
    y = x.copy()
    y[1, 3] = np.nan
    return y


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scales": nan}, r"m.scales in folder/model.safetensors holds nan at \[1, 3\], expected a finite"),
        (
            {"scales": lambda x: x.astype(np.int32)},
            r"m.scales .* dtype int32, expected float32 or float16 or",
        ),
        ({"qweight": lambda x: x.astype(np.int64)}, "m.qweight .* dtype int64, expected int32"),
        ({"qweight": lambda x: x[:3]}, r"m.qweight .* shape \[3, 16\], expected \[8 to 8, 16\]"),
        ({"qzeros": lambda x: x[:1]}, r"m.qzeros .* shape \[1, 2\], expected \[2, 2 to 2\]"),
        ({"scales": lambda x: x[0]}, r"m.scales .* shape \[16\], expected \[2, 16\]"),
        ({"g_idx": lambda x: x + 1}, "m.g_idx .* holds the group 2, expected 0 to 1"),
        ({"g_idx": lambda x: x - 1}, "m.g_idx .* holds the group -1, expected 0 to 1"),
    ],
)
def test_a_damaged_module_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read(Gptq({"bits": 4, "group_size": 32}), broken(**changes), 16, 64)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gptq({"bits": 5}), "bits 5, expected one of 2, 3, 4, 8"),
        (lambda: Gptq({}), "bits None"),
        (lambda: Gptq({"bits": 4, "group_size": 0}), "group_size 0"),
        (lambda: Gptq({"bits": 4, "group_size": "all"}), "group_size 'all'"),
        (lambda: Gptq({"bits": 4, "sym": "yes"}), "sym 'yes'"),
        (lambda: Gptq({"bits": 4, "checkpoint_format": "marlin"}), "checkpoint_format 'marlin'"),
        (lambda: Gptq({"bits": 4, "dynamic": []}) and Gptq({"bits": 4, "dynamic": [1]}), "dynamic"),
        (lambda: Awq({"bits": 8}), "bits 8, expected 4"),
        (lambda: Awq({"bits": 4, "version": "gemv_fast"}), "version 'gemv_fast'"),
    ],
)
def test_a_config_that_says_something_else_is_refused(make: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        make()
