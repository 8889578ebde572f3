"""Model Optimizer's modules become exactly their numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from held import Held
from tiny_model import TINY

from octavo.build.quantize import quantize, with_quantization
from octavo.config.arch import read_arch
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Activation, Dense, Int4Group, Int8, Layout
from octavo.pipeline.vocab import read_json
from octavo.quant.format import Tensors
from octavo.quant.modelopt import ModelOpt


def read(algorithm: str, tensors: dict[str, Any], rows: int, cols: int) -> Layout:
    held, format = Held(**tensors), ModelOpt({"quant_algo": algorithm})
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


def nvfp4(rows: int, cols: int) -> tuple[dict[str, Any], Any]:
    tensors, values = packers.fp4(np.random.default_rng(1), rows, cols, nv=True)
    tensors["weight"] = tensors.pop("weight_packed")
    # compressed-tensors divides by its global scale.
    tensors["weight_scale_2"] = np.float32(1) / tensors.pop("weight_global_scale")
    return tensors, values


@pytest.mark.parametrize("cols", [64, 48])
def test_nvfp4(cols: int) -> None:
    tensors, values = nvfp4(24, cols)
    np.testing.assert_allclose(read("NVFP4", tensors, 24, cols).dequantize(), values, rtol=1e-6)


def test_fp8() -> None:
    tensors, values = packers.fp8(np.random.default_rng(1), 24, 64, scales="matrix", name="weight_scale")
    np.testing.assert_allclose(read("FP8", tensors, 24, 64).dequantize(), values, rtol=1e-6)


def test_fp8_by_block_and_by_row() -> None:
    tensors, values = packers.fp8(np.random.default_rng(1), 256, 384, scales="block", name="weight_scale")
    np.testing.assert_allclose(read("FP8_PB_WO", tensors, 256, 384).dequantize(), values, rtol=1e-6)
    tensors["weight_scale"] = tensors["weight_scale"].reshape(2, 1, 3, 1)
    np.testing.assert_allclose(read("fp8_pb_wo", tensors, 256, 384).dequantize(), values, rtol=1e-6)
    tensors, values = packers.fp8(np.random.default_rng(1), 300, 400, scales="block", name="weight_scale")
    for shape in ((3, 4), (3, 1, 4, 1)):
        tensors["weight_scale"] = tensors["weight_scale"].reshape(shape)
        np.testing.assert_allclose(read("FP8_PB_WO", tensors, 300, 400).dequantize(), values, rtol=1e-6)
    with pytest.raises(CheckpointError, match=r"m.weight_scale .* shape \[2, 2, 3, 1\]"):
        read("FP8_PB_WO", {**tensors, "weight_scale": np.ones((2, 2, 3, 1), np.float32)}, 300, 400)
    tensors, values = packers.fp8(np.random.default_rng(1), 24, 64, scales="row", name="weight_scale")
    tensors["weight_scale"] = tensors["weight_scale"].reshape(-1)
    found = read("FP8_PER_CHANNEL_PER_TOKEN", tensors, 24, 64)
    np.testing.assert_allclose(found.dequantize(), values, rtol=1e-6)


def test_mxfp4() -> None:
    tensors, values = packers.fp4(np.random.default_rng(1), 24, 64, nv=False)
    tensors["weight"] = tensors.pop("weight_packed")
    np.testing.assert_allclose(read("MXFP4", tensors, 24, 64).dequantize(), values, rtol=1e-6)


def int4(rows: int, cols: int) -> tuple[dict[str, Any], Any]:
    """Two rows a byte, the even one low; signed codes."""
    rng = np.random.default_rng(3)
    codes, scale = (
        rng.integers(-8, 8, (rows, cols)),
        rng.uniform(0.1, 1, (rows, cols // 32)).astype(np.float32),
    )
    pairs = ((codes[0::2] & 15) | ((codes[1::2] & 15) << 4)).astype(np.uint8)
    return {"weight": pairs, "weight_scale": scale}, codes * np.repeat(scale, 32, axis=1)


def test_int4_and_the_factors_of_awq() -> None:
    tensors, values = int4(24, 96)
    layout = read("W4A16_AWQ", tensors, 24, 96)
    assert isinstance(layout, Int4Group)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)
    factors = np.random.default_rng(0).uniform(0.5, 2, 96).astype(np.float32)
    plain = read("W4A16_AWQ", {**tensors, "pre_quant_scale": factors}, 24, 96)
    assert isinstance(plain, Dense)
    np.testing.assert_allclose(plain.dequantize(), values * factors, rtol=1e-6)


def test_int8() -> None:
    tensors, values = packers.int8(np.random.default_rng(1), 24, 64)
    tensors["weight_scale"] = tensors["weight_scale"].reshape(-1)
    layout = read("W8A16", tensors, 24, 64)
    assert isinstance(layout, Int8)
    assert layout.activation is None
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)
    static = read("W8A8_SQ_PER_CHANNEL", {**tensors, "input_scale": np.float32([0.5])}, 24, 64)
    assert isinstance(static, Int8)
    assert static.activation == Activation(True, 0.5)


def test_the_config_stands_beside(tmp_path: Path) -> None:
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    arch = with_quantization(read_arch(TINY), tmp_path, read_json)
    assert isinstance(quantize(arch), ModelOpt)
    cache_only = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(cache_only))
    format = quantize(with_quantization(read_arch(TINY), tmp_path, read_json))
    assert format is not None
    assert format.suffixes("m", {"m.weight"}) == ()
    assert any(re.search(pattern, "model.layers.0.self_attn.k_proj.k_scale") for pattern in format.unused)


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="quant_algo 'W4A8_AWQ'"):
        ModelOpt({"quant_algo": "W4A8_AWQ"})
    tensors, _ = nvfp4(24, 64)
    with pytest.raises(CheckpointError, match=r"weight_scale_2 .* one positive number"):
        read("NVFP4", {**tensors, "weight_scale_2": np.full(1, -1, np.float32)}, 24, 64)
