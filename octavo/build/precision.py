"""The dtype a model runs in, and how its activations are rounded (docs/design.md, "Numbers")."""

from __future__ import annotations

from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError
from octavo.ops.contract import Precision

_DTYPES = {
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
_CACHES = {**_DTYPES, "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "int8": "int8"}
_DENSE = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
"""dtype -> Precision.activation."""
_ACTIVATIONS = {"int8": "int8", "bf16": "bfloat16", "fp32": "float32"}
"""--activation-dtype -> Precision.quantized."""


def dtype_of(asked: str, stored: str | None) -> str:
    """The dtype to run in. auto: the checkpoint's own, and bfloat16 for float32 ones, as in vLLM on a CPU."""
    if asked == "auto":
        return "float16" if stored == "float16" else "bfloat16"
    if asked not in _DTYPES:
        raise ConfigError(f"No dtype {asked!r}.", hint=f"Choose one of: auto, {', '.join(_DTYPES)}.")
    return _DTYPES[asked]


def precision_of(config: EngineConfig, dtype: str) -> Precision:
    """How the engine rounds. Raises ConfigError for a name that is none."""
    cache = dtype
    if config.kv_cache_dtype != "auto":
        if config.kv_cache_dtype not in _CACHES:
            raise ConfigError(
                f"No KV cache dtype {config.kv_cache_dtype!r}.",
                hint=f"Choose auto or one of: {', '.join(_CACHES)}.",
            )
        cache = _CACHES[config.kv_cache_dtype]
    quantized, stated = activations(config.activation_dtype, dtype)
    return Precision(_DENSE[dtype], cache, quantized, stated)


def activations(asked: str, dtype: str) -> tuple[str, bool]:
    """--activation-dtype as Precision's `quantized` and `stated`. auto: int8, but float32 for who asks for
    float32, except where the checkpoint itself states how inputs are rounded.
    """
    if asked == "auto":
        return ("float32" if dtype == "float32" else "int8"), True
    if asked not in _ACTIVATIONS:
        raise ConfigError(
            f"No activation dtype {asked!r}.", hint=f"Choose one of: auto, {', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[asked], False
