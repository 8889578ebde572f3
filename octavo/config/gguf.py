"""GGUF's metadata as a config.json: architecture and hyper-parameters, in the spelling of published files.

The keys are those of llama.cpp's files (`{architecture}.block_count` and so on). What a file leaves out is
what llama.cpp takes instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from octavo.config.arch import FULL, SLIDING
from octavo.config.families import FAMILY_CONFIGS
from octavo.config.gguf_encoders import ENCODERS, encoder_keys
from octavo.errors import CheckpointError, UnsupportedModel

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, the row last."""

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi2": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "command-r": "CohereForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    **ENCODERS,
}
"""general.architecture -> config.json's architecture."""

RENORMALISED = {"qwen2moe": False, "qwen3moe": True, "olmoe": False}
"""Whether llama.cpp divides the chosen experts' shares by their sum, where config.json has a word for it."""

_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose attention is scaled by hidden size over heads."""


_LEAST = 1e-30
"""Numbers beyond this (or its inverse) are damage."""


class _Keys:
    """A file's metadata under one architecture."""

    def __init__(self, metadata: Mapping[str, Any], name: str, where: str) -> None:
        self.metadata = metadata
        self.name = name
        self.where = where

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.name}.{key}")

    def count(self, key: str) -> int | None:
        """A whole number, or a list of the same one for every layer; None when the file has none."""
        value = self.get(key)
        if hasattr(value, "tolist"):
            kinds = set(value.tolist())
            if len(kinds) > 1:
                raise UnsupportedModel(f"{self.where}: {self.name}.{key} differs from layer to layer.")
            value = next(iter(kinds), None)
        if value is not None and type(value) is not int:
            raise CheckpointError(
                f"{self.where}: {self.name}.{key} is {value!r:.60}, expected a whole number."
            )
        return value

    def number(self, key: str) -> float | None:
        """A number of a sane size, None when the file has none."""
        value = self.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not (value == 0 or _LEAST <= abs(value) <= 1 / _LEAST):
            raise CheckpointError(f"{self.where}: {self.name}.{key} is {value!r:.60}, expected a number.")
        # The file's float32 0.1 is the config's 0.1.
        return float(f"{value:.7g}") if isinstance(value, float) else value

    def word(self, key: str) -> str | None:
        """A text, None when the file has none."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.where}: {self.name}.{key} is {value!r:.60}, expected a text.")
        return value

    def needed(self, key: str) -> int:
        value = self.count(key)
        if value is None:
            raise CheckpointError(f"{self.where}: {self.name}.{key} is missing.")
        if value < 1:
            raise CheckpointError(f"{self.where}: {self.name}.{key} is {value}, expected at least 1.")
        return value


def config_of(
    metadata: Mapping[str, Any],
    shapes: Shapes,
    values: Callable[[str], list[float]],
    where: str,
) -> dict[str, Any]:
    """The config.json that a GGUF file stands for.

    `values` reads a small tensor; `where` names the file in errors. Raises UnsupportedModel for an
    architecture without a family, CheckpointError for a key that is missing or mistyped.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{where}: the GGUF architecture {name!r:.60} is not supported.",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    keys = _Keys(metadata, name, where)
    config = _common(keys, shapes)
    config.update(_attention(keys, shapes))
    config.update(_rope(keys, shapes, values, config))
    config.update(_own(keys, shapes, config))
    config.update(_experts(keys, shapes))
    return _spelled(config)


def _common(keys: _Keys, shapes: Shapes) -> dict[str, Any]:
    table = shapes.get("token_embd.weight")
    if table is None or len(table) != 2:
        raise CheckpointError(f"{keys.where}: the tensor token_embd.weight is missing.")
    heads = keys.needed("attention.head_count")
    eps = keys.number("attention.layer_norm_rms_epsilon") or keys.number("attention.layer_norm_epsilon")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[keys.name]],
        "vocab_size": table[0],
        "hidden_size": keys.needed("embedding_length"),
        "intermediate_size": keys.needed("feed_forward_length"),
        "num_hidden_layers": keys.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv") or heads,
        "max_position_embeddings": keys.needed("context_length"),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if eps is not None:
        config["rms_norm_eps"] = eps
    if (head_dim := keys.count("attention.key_length")) is not None:
        config["head_dim"] = head_dim
        if keys.count("attention.value_length") not in (None, head_dim):
            raise UnsupportedModel(f"{keys.where}: keys and values of different lengths are not supported.")
    ends = [keys.metadata.get(f"tokenizer.ggml.{word}_token_id") for word in ("eos", "eot", "eom")]
    if wanted := list(dict.fromkeys(end for end in ends if type(end) is int)):
        config["eos_token_id"] = wanted
    return config


def _attention(keys: _Keys, shapes: Shapes) -> dict[str, Any]:
    """Biases as the tensors show them, and the window."""
    config: dict[str, Any] = {
        "attention_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in shapes,
    }
    window = keys.count("attention.sliding_window")
    if window is None or keys.name in ENCODERS:
        return config
    config["sliding_window"] = window or None
    pattern = keys.get("attention.sliding_window_pattern")
    if hasattr(pattern, "tolist"):
        config["layer_types"] = [SLIDING if local else FULL for local in pattern.tolist()]
    elif type(pattern) is int:
        config["sliding_window_pattern"] = pattern
    if keys.name == "llama" and window:
        config["architectures"] = ["MistralForCausalLM"]
    if keys.name in ("qwen2", "qwen2moe", "qwen3moe") and window:
        config["use_sliding_window"] = True
    return config


def _rope(
    keys: _Keys, shapes: Shapes, values: Callable[[str], list[float]], config: dict[str, Any]
) -> dict[str, Any]:
    if keys.name in ("gpt2", "bert"):
        return {}
    head_dim = config.get("head_dim") or config["hidden_size"] // max(config["num_attention_heads"], 1)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base") or 10000.0}
    turned = keys.count("rope.dimension_count")
    if turned is not None and turned != head_dim:
        rope["partial_rotary_factor"] = turned / max(head_dim, 1)
    kind = keys.word("rope.scaling.type")
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear")
    original = keys.count("rope.scaling.original_context_length")
    if "rope_freqs.weight" in shapes:
        rope.update(rope_type="factors", factors=values("rope_freqs.weight"))
    elif "rope_factors_long.weight" in shapes:
        rope.update(
            rope_type="longrope",
            long_factor=values("rope_factors_long.weight"),
            short_factor=values("rope_factors_short.weight"),
            attention_factor=keys.number("rope.scaling.attn_factor") or 1.0,
        )
    elif kind == "yarn" and factor:
        rope.update(rope_type="yarn", factor=factor, **_yarn(keys, factor))
        if keys.name == "gpt-oss":
            rope["truncate"] = False
    elif kind != "none" and factor and factor != 1:
        rope.update(rope_type="linear", factor=factor)
    if original and rope["rope_type"] in ("yarn", "longrope"):
        rope["original_max_position_embeddings"] = original
    found = {"rope_parameters": rope, "rope_theta": rope["rope_theta"]}
    return (
        {**found, "original_max_position_embeddings": original} if keys.name == "phi3" and original else found
    )


def _yarn(keys: _Keys, factor: float) -> dict[str, float]:
    found = {}
    for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if (value := keys.number(f"rope.scaling.{theirs}")) is not None:
            found[ours] = value
    own = keys.number("rope.scaling.attn_factor") or keys.number("rope.scaling.yarn_attn_factor")
    if own is not None and own != 1:
        found["attention_factor"] = own * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0)
    return found


def _own(keys: _Keys, shapes: Shapes, config: dict[str, Any]) -> dict[str, Any]:
    """What only some families have."""
    if keys.name in ENCODERS:
        return encoder_keys(keys.name, keys.where, shapes, keys.count, keys.number)
    if keys.name in ("gemma2", "gemma3"):
        return _gemma(keys, config)
    factors: dict[str, tuple[tuple[str, str], ...]] = {
        "granite": (
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ),
        "command-r": (("logit_scale", "logit_scale"),),
    }
    found: dict[str, Any] = {}
    for theirs, ours in factors.get(keys.name, ()):
        if value := keys.number(theirs):
            found[ours] = value
    if keys.name == "granite" and "attention_multiplier" not in found:
        found["attention_multiplier"] = (config["hidden_size"] / config["num_attention_heads"]) ** -0.5
    if keys.name == "stablelm":
        found["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in shapes
        found["use_qkv_bias"] = "blk.0.attn_q.bias" in shapes
    if keys.name == "starcoder2":
        found["use_bias"] = "blk.0.attn_output.bias" in shapes
    return found


def _experts(keys: _Keys, shapes: Shapes) -> dict[str, Any]:
    """Of a mixture of experts: how many, how large, how many of them a token goes to."""
    count = keys.count("expert_count")
    if not count:
        if keys.name in (*RENORMALISED, "gpt-oss"):
            raise CheckpointError(f"{keys.where}: {keys.name}.expert_count is missing.")
        return {}
    found: dict[str, Any] = {"num_experts_per_tok": keys.needed("expert_used_count")}
    if keys.name not in ("llama", *RENORMALISED, "gpt-oss"):
        raise UnsupportedModel(f"{keys.where}: {keys.name} with experts is not supported.")
    if (scale := keys.number("expert_weights_scale")) not in (None, 0, 1):
        raise UnsupportedModel(f"{keys.where}: {keys.name}.expert_weights_scale {scale} is not supported.")
    found["num_experts" if keys.name in RENORMALISED else "num_local_experts"] = count
    if keys.name == "llama":
        found["architectures"] = ["MixtralForCausalLM"]
    if keys.name in RENORMALISED:
        found["norm_topk_prob"] = RENORMALISED[keys.name]
    wide = keys.count("expert_feed_forward_length")
    if keys.name in ("qwen2moe", "qwen3moe"):
        ffn = keys.needed("feed_forward_length")
        found["moe_intermediate_size"] = wide or ffn // found["num_experts_per_tok"]
        found["shared_expert_intermediate_size"] = keys.count("expert_shared_feed_forward_length") or ffn
        found["qkv_bias"] = "blk.0.attn_q.bias" in shapes
    elif wide:
        found["intermediate_size"] = wide
    return found


def _gemma(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    scale = keys.number("attention.scale")
    per_head = config["hidden_size"] / config["num_attention_heads"]
    largest = config["num_hidden_layers"] == _LARGEST_GEMMA[keys.name]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": scale**-2 if scale else (per_head if largest else head_dim),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
    }
    if keys.name == "gemma3":
        found["rope_local_base_freq"] = keys.number("rope.freq_base_swa") or 10000.0
        if "sliding_window" not in config:
            found["layer_types"] = [FULL] * config["num_hidden_layers"]
        if config["rope_parameters"]["rope_type"] != "default":
            # Only the global layers' rope is scaled.
            found["rope_parameters"] = {FULL: config["rope_parameters"]}
    return found


def _spelled(config: dict[str, Any]) -> dict[str, Any]:
    """The keys as the family's own config.json has them."""
    spelling = FAMILY_CONFIGS[config["architectures"][0]].spelling
    return {spelling.get(key, key): value for key, value in config.items()}
