"""What a model is: one frozen value, made once from config.json and never changed.

Reads the spelling of published checkpoints (`rope_theta`, `rope_scaling`, `torch_dtype`, no `layer_types`)
and that of transformers 5 (`rope_parameters`, flat or by layer type, `dtype`). What a key means when it is
absent stands in :mod:`octavo.config.families`.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from octavo.config.encoders import family_name
from octavo.config.families import FAMILY_CONFIGS, FamilyConfig
from octavo.errors import CheckpointError, UnsupportedModel

FULL, SLIDING = "full_attention", "sliding_attention"

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}
"""config.json's names of activations -> ops.contract.ACTIVATIONS."""

_LIMITS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "num_experts": 4096,
    "num_experts_per_tok": 4096,
    "moe_intermediate_size": 1 << 20,
    "shared_expert_intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 28,
    "sliding_window": 1 << 28,
}
"""Counts beyond these are damage, not models: refuse them before anything is allocated."""


class Arch(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's shape and constants. Family functions read it; nothing writes it."""

    architecture: str
    """config.json's `architectures[0]`, e.g. Qwen2ForCausalLM."""
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    act: str
    """One of ops.contract.ACTIVATIONS."""
    eps: float
    max_positions: int
    """The context length in tokens that the checkpoint states."""
    original_max_positions: int | None
    """Before rope scaling, when config.json says so outside the rope parameters."""
    tied: bool
    """The output matrix is the embedding table."""
    dtype: str | None
    """The checkpoint's own word: float32, float16, bfloat16; None when it does not say."""
    layer_types: tuple[str, ...]
    """full_attention or sliding_attention, one per layer."""
    sliding_window: int | None
    rope_by_type: dict[str, dict[str, Any]]
    """Rope parameters by layer type, in transformers 5's spelling; empty without rotary embedding."""
    quantization: dict[str, Any] | None
    """config.json's quantization_config, or what a quantizer wrote beside it."""
    config: dict[str, Any]
    """All keys with defaults filled in, in our spelling: for what only one family knows."""

    def window(self, layer: int) -> int | None:
        """How many keys layer `layer` looks back on, itself included; None for all."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    def rope_values(self, layer: int) -> dict[str, Any]:
        """The rope parameters of one layer."""
        return self.rope_by_type[self.layer_types[layer]]

    def uses_rope(self, layer: int) -> bool:
        """False for the layers that `no_rope_layers` (1 where there is one) leaves without rotary
        embedding.
        """
        return layer not in _without_rope(self.config, self.layers)

    def flag(self, key: str) -> bool:
        """A family's own true/false key; CheckpointError when it is something else."""
        return _flag(self.config, key)

    def integer(self, key: str, least: int = 1) -> int:
        """A family's own whole number; CheckpointError when it is something else."""
        return _integer(self.config, key, least)

    def integers(self, key: str) -> tuple[int, ...]:
        """A family's own list of whole numbers, empty for none; CheckpointError when it is something else."""
        value = self.config.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(n) is int for n in value):
            raise CheckpointError(f"config.json: {key} must be a list of whole numbers, not {value!r:.60}.")
        return tuple(value)

    def experts(self) -> tuple[int, int]:
        """(experts of a layer, how many of them a token goes to)."""
        count, top_k = self.integer("num_experts"), self.integer("num_experts_per_tok")
        if top_k > count:
            raise CheckpointError(
                f"config.json: num_experts_per_tok {top_k} is more than num_experts {count}."
            )
        return count, top_k

    def number(self, key: str) -> float:
        """A family's own positive number; CheckpointError when it is something else."""
        value = self.optional(key)
        if value is None:
            raise CheckpointError(f"config.json: {key} is missing.")
        return value

    def optional(self, key: str) -> float | None:
        """A family's own positive number, or None when config.json gives none."""
        value = self.config.get(key)
        return None if value is None else _positive(key, value)


def read_arch(config: dict[str, Any], overrides: dict[str, Any] | None = None) -> Arch:
    """The Arch of a parsed config.json. `overrides` replace its keys first (`text_config` is merged).

    Raises UnsupportedModel for an architecture without a family and CheckpointError for a missing, mistyped
    or impossible value; both name the key.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json must hold an object, not {type(config).__name__}.")
    config = _overridden(config, overrides or {})
    architecture = _architecture(config)
    family = FAMILY_CONFIGS[architecture]
    outer = config
    if family.wrapped and isinstance(config.get("text_config"), dict):
        config = {
            **{k: v for k, v in (overrides or {}).items() if k != "text_config"},
            **config["text_config"],
        }
        if "tie_word_embeddings" in outer:
            config["tie_word_embeddings"] = outer["tie_word_embeddings"]
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            config.setdefault(key, outer.get(key))
    elif family.wrapped:
        raise CheckpointError(f"config.json: {architecture} needs text_config, which is missing.")
    values = _with_defaults(config, family)
    shape = _shape(values)
    types = _layer_types(values, family, shape["layers"])
    window = values.get("sliding_window")
    if values.get("use_bidirectional_attention"):
        raise UnsupportedModel(
            "config.json: use_bidirectional_attention is not supported: Octavo's models are causal."
        )
    return Arch(
        architecture=architecture,
        **shape,
        act=_activation(_word(values, "hidden_act"), values["hidden_act"]),
        eps=_positive(_word(values, "rms_norm_eps"), values["rms_norm_eps"]),
        original_max_positions=_optional_int(values, "original_max_position_embeddings"),
        tied=_flag(values, "tie_word_embeddings"),
        dtype=_dtype(config, outer),
        layer_types=types,
        sliding_window=None if window is None else _integer(values, "sliding_window"),
        rope_by_type=_ropes(values, family) if family.rope else {},
        quantization=_quantization(config) or _quantization(outer),
        config=values,
    )


def _overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The config with overrides in place; a rope given in one spelling removes the other."""
    result = dict(config)
    for key, value in overrides.items():
        if key == "text_config" and isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _overridden(result[key], value)
            continue
        result[key] = value
        if isinstance(result.get("text_config"), dict) and key in result["text_config"]:
            result["text_config"] = {**result["text_config"], key: value}
    if "rope_parameters" in overrides and "rope_scaling" not in overrides:
        result.pop("rope_scaling", None)
    return _with_new_base(result, overrides)


def _with_new_base(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """An overridden `rope_theta` counts in the spelling of transformers 5 too."""
    parameters = config.get("rope_parameters")
    if "rope_theta" not in overrides or "rope_parameters" in overrides or not isinstance(parameters, dict):
        return config
    base = {"rope_theta": overrides["rope_theta"]}
    inner = parameters.get(FULL)
    changed = {**parameters, FULL: {**inner, **base}} if isinstance(inner, dict) else {**parameters, **base}
    return {**config, "rope_parameters": changed}


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    names = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    for name in names:
        if found := family_name(name, FAMILY_CONFIGS):
            return found
    model_type = config.get("model_type")
    if not names:
        for name, family in FAMILY_CONFIGS.items():
            if family.model_type == model_type:
                return name
    what = f"The architecture {names[0]}" if names else f"The model_type {model_type!r:.60}"
    raise UnsupportedModel(
        f"{what} is not supported.", hint=f"Supported: {', '.join(sorted(FAMILY_CONFIGS))}."
    )


class _Values(dict[str, Any]):
    """Keys in our spelling, and how config.json spells them: an error names what stands there."""

    spelling: dict[str, str]


def _word(values: dict[str, Any], key: str) -> str:
    return values.spelling.get(key, key) if isinstance(values, _Values) else key


def _with_defaults(config: dict[str, Any], family: FamilyConfig) -> dict[str, Any]:
    """The family's keys in our spelling with defaults, and every other key as it stands."""
    values = _Values(config)
    values.spelling = family.spelling
    for ours, theirs in family.spelling.items():
        values.pop(ours, None)
        if theirs in config:
            values[ours] = config[theirs]
    for theirs, ours in family.aliases.items():
        if theirs in config:
            values.setdefault(ours, config[theirs])
    if values.get("sliding_window") == 0:  # what transformers writes for none
        values["sliding_window"] = None
    if "local_attention" in family.defaults:  # ModernBERT's, of both sides together
        both = values.get("local_attention", family.defaults["local_attention"])
        values.setdefault("sliding_window", both // 2 if isinstance(both, int) else both)
    for key, default in family.defaults.items():
        if key not in values or (values[key] is None and key not in _NULLABLE):
            values[key] = default
    return values


_NULLABLE = (
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "sliding_window",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "no_rope_layers",
    "clip_qkv",
    "mlp_only_layers",
)
"""Keys whose null says something ("none", "as many as heads"); elsewhere null is the same as absent."""


def _shape(values: dict[str, Any]) -> dict[str, int]:
    """The sizes, checked against one another."""
    hidden, heads = _integer(values, "hidden_size"), _integer(values, "num_attention_heads")
    kv_heads = heads if values.get("num_key_value_heads") is None else _integer(values, "num_key_value_heads")
    if values.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"config.json: {_word(values, 'hidden_size')} {hidden} is not a multiple of "
            f"{_word(values, 'num_attention_heads')} {heads}."
        )
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
        )
    given_ffn = values.get("intermediate_size") is not None
    return {
        "vocab": _integer(values, "vocab_size"),
        "hidden": hidden,
        "layers": _integer(values, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": hidden // heads if values.get("head_dim") is None else _integer(values, "head_dim"),
        "ffn": _integer(values, "intermediate_size") if given_ffn else 4 * hidden,
        "max_positions": _integer(values, "max_position_embeddings"),
    }


def _layer_types(values: dict[str, Any], family: FamilyConfig, layers: int) -> tuple[str, ...]:
    """What each layer sees: config.json's own list, or the family's rule."""
    given = values.get("layer_types")
    windowed = values.get("sliding_window") is not None and values.get("use_sliding_window") is not False
    if family.typed_layers and given is not None:
        if not isinstance(given, list) or len(given) != layers:
            raise CheckpointError(
                f"config.json: layer_types must be a list of {layers} names, one per layer."
            )
        unknown = [t for t in given if t not in (FULL, SLIDING)]
        if unknown:
            raise UnsupportedModel(
                f"config.json: layer_types has {unknown[0]!r:.60}.", hint=f"Supported: {FULL}, {SLIDING}."
            )
        return tuple(t if windowed or family.local_theta else FULL for t in given)
    return tuple(SLIDING if _is_local(values, family, windowed, i) else FULL for i in range(layers))


def _is_local(values: dict[str, Any], family: FamilyConfig, windowed: bool, layer: int) -> bool:
    if family.layers == "window":
        return windowed
    if family.layers == "qwen":
        return windowed and layer >= _integer(values, "max_window_layers", least=0)
    if family.layers == "pattern":
        return (layer + 1) % _integer(values, "sliding_window_pattern") != 0
    if family.layers == "every":
        return layer % _integer(values, "global_attn_every_n_layers") != 0
    if family.layers == "no_rope":
        return windowed and layer in _without_rope(values, layer + 1)
    return False


def _without_rope(values: dict[str, Any], layers: int) -> set[int]:
    given = values.get("no_rope_layers")
    if given is not None:
        if not isinstance(given, list) or len(given) < layers or not all(x in (0, 1) for x in given):
            raise CheckpointError("config.json: no_rope_layers must be a list of 0 and 1, one per layer.")
        return {i for i in range(layers) if not given[i]}
    if values.get("no_rope_layer_interval") is None:
        return set()
    every = _integer(values, "no_rope_layer_interval")
    return {i for i in range(layers) if (i + 1) % every == 0}


def _ropes(values: dict[str, Any], family: FamilyConfig) -> dict[str, dict[str, Any]]:
    """Rope parameters by layer type, whatever the spelling."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    if not new and not old:
        old = family.default_rope
    for key, given in (("rope_parameters", new), ("rope_scaling", old)):
        if given is not None and not isinstance(given, dict):
            raise CheckpointError(f"config.json: {key} must be an object, not {given!r:.60}.")
    shared = {k: values[k] for k in ("rope_theta", "partial_rotary_factor") if values.get(k) is not None}
    given = _both_ropes(new, old)
    nested = {t: given[t] for t in (FULL, SLIDING) if isinstance(given.get(t), dict)}
    result = {t: {**shared, **(nested.get(t) or ({} if nested else given))} for t in (FULL, SLIDING)}
    if family.local_theta is not None:
        local = values.get("rope_local_base_freq") or family.local_theta
        result[SLIDING] = {"rope_type": "default", "rope_theta": local, **nested.get(SLIDING, {})}
    if family.model_type == "phi3":
        # Phi-3's own names for longrope in its earlier releases.
        for params in result.values():
            kind = params.pop("type", None) if "rope_type" not in params else params["rope_type"]
            params["rope_type"] = "longrope" if kind in ("su", "yarn") else kind or "default"
    return result


def _both_ropes(new: dict[str, Any] | None, old: dict[str, Any] | None) -> dict[str, Any]:
    """`rope_parameters` with `rope_scaling` over them, which scales full attention and keeps the base."""
    if not new or not old:
        return new or old or {}
    if isinstance(new.get(FULL), dict):
        return {**new, FULL: {**new[FULL], **old}}
    return {**{k: new[k] for k in ("rope_theta", "partial_rotary_factor") if k in new}, **old}


def _activation(key: str, name: object) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"config.json: {key} {name!r:.60} is not supported.",
            hint=f"Supported: {', '.join(ACTIVATIONS)}.",
        )
    return ACTIVATIONS[name]


def _dtype(config: dict[str, Any], outer: dict[str, Any]) -> str | None:
    for source in (config, outer):
        for key in ("dtype", "torch_dtype"):
            value = source.get(key)
            if isinstance(value, str):
                return value.removeprefix("torch.")
    return None


def _quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    value = config.get("quantization_config") or config.get("compression_config")
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"config.json: quantization_config must be an object, not {value!r:.60}.")
    return value


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {_word(values, key)} must be true or false, not {value!r:.60}.")
    return value


def _integer(values: dict[str, Any], key: str, least: int = 1) -> int:
    value = values.get(key)
    if value is None:
        raise CheckpointError(f"config.json: {_word(values, key)} is missing.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    limit = _LIMITS.get(key, 1 << 31)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
        raise CheckpointError(
            f"config.json: {_word(values, key)} must be a whole number from {least} to {limit}, "
            f"not {value!r:.60}."
        )
    return value


def _optional_int(values: dict[str, Any], key: str) -> int | None:
    return None if values.get(key) is None else _integer(values, key)


def _positive(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json: {key} must be a positive number, not {value!r:.60}.")
    return float(value)
