"""Model Optimizer's modules become exactly their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.ops.layouts import Layout
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


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="quant_algo 'W4A8_AWQ'"):
        ModelOpt({"quant_algo": "W4A8_AWQ"})
    tensors, _ = nvfp4(24, 64)
    with pytest.raises(CheckpointError, match=r"weight_scale_2 .* one positive number"):
        read("NVFP4", {**tensors, "weight_scale_2": np.full(1, -1, np.float32)}, 24, 64)
