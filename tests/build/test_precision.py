"""What matrices see of their inputs, by --dtype, --activation-dtype and --kv-cache-dtype."""

from __future__ import annotations

import pytest

from octavo.build.precision import dtype_of, precision_of
from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError
from octavo.ops.contract import Precision


@pytest.mark.parametrize(
    ("dtype", "asked", "expected"),
    [
        ("float32", "auto", Precision("float32", "float32", "float32", stated=True)),
        ("bfloat16", "auto", Precision("bfloat16", "bfloat16", "int8", stated=True)),
        ("float16", "auto", Precision("float32", "float16", "int8", stated=True)),
        ("float32", "int8", Precision("float32", "float32", "int8")),
        ("float32", "fp32", Precision("float32", "float32", "float32")),
        ("bfloat16", "bf16", Precision("bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_activations(dtype: str, asked: str, expected: Precision) -> None:
    assert precision_of(EngineConfig(activation_dtype=asked), dtype) == expected


def test_cache() -> None:
    assert precision_of(EngineConfig(kv_cache_dtype="fp8"), "bfloat16").cache == "fp8_e4m3"
    assert precision_of(EngineConfig(kv_cache_dtype="half"), "float32").cache == "float16"
    with pytest.raises(ConfigError, match="KV cache dtype 'int3'"):
        precision_of(EngineConfig(kv_cache_dtype="int3"), "bfloat16")


def test_names_that_are_none() -> None:
    with pytest.raises(ConfigError, match="activation dtype 'fp16'"):
        precision_of(EngineConfig(activation_dtype="fp16"), "bfloat16")
    with pytest.raises(ConfigError, match="No dtype 'fp7'"):
        dtype_of("fp7", "bfloat16")


def test_dtype() -> None:
    assert dtype_of("auto", "float32") == "bfloat16"
    assert dtype_of("auto", "float16") == "float16"
    assert dtype_of("half", "bfloat16") == "float16"
