"""Flags whose meaning is more than "store it in a field": each rule changes the settings or adds a notice.

A rule gets the settings so far, the value (already of the flag's kind) and the spelling to name in messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.config.flag_values import bad_value
from octavo.config.lora import parse_modules
from octavo.errors import ConfigError

LOAD_FORMATS = ("auto", "safetensors", "pt", "npcache", "dummy")
_FOREIGN_FORMATS = frozenset(
    [
        "gguf",
        "bitsandbytes",
        "tensorizer",
        "runai_streamer",
        "runai_streamer_sharded",
        "sharded_state",
        "mistral",
        "fastsafetensors",
        "instanttensor",
        "hf",
        "modelexpress",
    ]
)
_DEVICES = ("auto", "cpu", "cuda", "gpu", "xpu", "hpu", "tpu", "neuron", "openvino", "mps", "rocm")
_KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "int8")
_MEMORY_SHARE = 0.5


class Settings:
    """Flags resolved into fields: what EngineConfig, the server's settings and the command itself get.

    Only what was given is present. `notices` are lines for a person, one for each flag without effect.
    """

    def __init__(self) -> None:
        self.engine: dict[str, Any] = {}
        self.server: dict[str, Any] = {}
        self.cli: dict[str, Any] = {}
        self.notices: list[str] = []

    def notice(self, spelling: str, text: str) -> None:
        """Add the line "spelling: text", once however often the flag was given."""
        line = f"{spelling}: {text}"
        if line not in self.notices:
            self.notices.append(line)


Rule = Callable[[Settings, Any, str], None]


def _hf_token(settings: Settings, value: Any, name: str) -> None:
    """A bare --hf-token (or True) means the stored login, which is the default anyway."""
    if value not in ("True", "true"):
        settings.engine["hf_token"] = value


def _load_format(settings: Settings, value: Any, name: str) -> None:
    if value in LOAD_FORMATS:
        settings.engine["load_format"] = value
    elif value in _FOREIGN_FORMATS:
        settings.engine["load_format"] = "auto"
        settings.notice(name, f"{value} accepted; the format is read from the checkpoint itself.")
    else:
        raise bad_value(name, value, "one of " + ", ".join(LOAD_FORMATS))


def _merge_overrides(settings: Settings, new: dict[str, Any]) -> None:
    settings.engine["hf_overrides"] = {**settings.engine.get("hf_overrides", {}), **new}


def _hf_overrides(settings: Settings, value: Any, name: str) -> None:
    _merge_overrides(settings, value)


def _rope_scaling(settings: Settings, value: Any, name: str) -> None:
    _merge_overrides(settings, {"rope_scaling": value})


def _rope_theta(settings: Settings, value: Any, name: str) -> None:
    _merge_overrides(settings, {"rope_theta": value})


def _device(settings: Settings, value: Any, name: str) -> None:
    kind = str(value).lower().split(":")[0]
    if kind not in _DEVICES:
        raise bad_value(name, value, "auto or cpu")
    if kind not in ("auto", "cpu"):
        settings.notice(name, f"{value} accepted; this version of Octavo runs on the CPU.")


_TASK_CONVERSIONS = {"embed": "embed", "embedding": "embed", "classify": "classify", "score": "score"}


def _task(settings: Settings, value: Any, name: str) -> None:
    if value in _TASK_CONVERSIONS:
        settings.engine.setdefault("runner", "pooling")
        settings.engine.setdefault("convert", _TASK_CONVERSIONS[value])
    elif value == "generate":
        settings.engine.setdefault("runner", "generate")
    elif value != "auto":
        settings.notice(name, f"{value} accepted; this version of Octavo does not have that task.")


def _share(value: float, name: str) -> float:
    if not 0.0 < value <= 1.0:
        raise bad_value(name, value, "a number above 0 and at most 1")
    return value


def _memory_share(settings: Settings, value: Any, name: str) -> None:
    settings.engine["memory_share"] = _share(value, name)


def _gpu_memory(settings: Settings, value: Any, name: str) -> None:
    """People copy 0.9 from GPU command lines; nine tenths of a laptop's memory would serve nobody."""
    share = _share(value, name)
    if share < _MEMORY_SHARE:
        settings.engine.setdefault("memory_share", share)
    else:
        settings.notice(
            name,
            f"{share:g} accepted; on a CPU the KV cache takes at most half of the free memory "
            "(--kv-cache-memory or --memory-share ask for more).",
        )


def _kv_cache_dtype(settings: Settings, value: Any, name: str) -> None:
    if value in _KV_DTYPES:
        settings.engine["kv_cache_dtype"] = value
    elif str(value).startswith(("fp8", "int8", "nvfp4", "turboquant")):
        settings.notice(
            name, f"{value} accepted; this version of Octavo keeps the cache in the model's format."
        )
    else:
        raise bad_value(name, value, "one of " + ", ".join(_KV_DTYPES))


def _tensor_parallel(settings: Settings, value: Any, name: str) -> None:
    if value < 1:
        raise bad_value(name, value, "a whole number from 1")
    settings.engine["tensor_parallel_size"] = 1
    if value > 1:
        settings.notice(
            name,
            f"{value} reduced to 1: this CPU is one device; its cores share the work (--threads).",
        )


def _lora_modules(settings: Settings, value: Any, name: str) -> None:
    """Who names adapters wants them: --enable-lora need not be said."""
    parse_modules(value)
    settings.engine["lora_modules"] = value
    settings.engine.setdefault("enable_lora", True)


def _logits_processors(settings: Settings, value: Any, name: str) -> None:
    """vLLM's classes over whole batches of tensors change what is sampled: never left out silently."""
    raise ConfigError(
        f"{name}: {', '.join(value)} cannot be used; Octavo's sampler has no classes over whole batches.",
        hint="Give functions over one sequence's logits in SamplingParams(logits_processors=[...]).",
        param=name,
    )


RULES: dict[str, Rule] = {
    "hf_token": _hf_token,
    "load_format": _load_format,
    "hf_overrides": _hf_overrides,
    "rope_scaling": _rope_scaling,
    "rope_theta": _rope_theta,
    "device": _device,
    "task": _task,
    "memory_share": _memory_share,
    "gpu_memory": _gpu_memory,
    "kv_cache_dtype": _kv_cache_dtype,
    "tensor_parallel": _tensor_parallel,
    "lora_modules": _lora_modules,
    "logits_processors": _logits_processors,
}
