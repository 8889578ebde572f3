"""What config.json leaves out, family by family.

The values are the defaults of transformers' config classes (a test compares them), written in the spelling of
published checkpoints. A key that the table does not name has no default: config.json must give it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo.config.encoders import ENCODERS


@dataclass(frozen=True)
class FamilyConfig:
    """How to read one family's config.json."""

    model_type: str
    defaults: dict[str, Any]
    spelling: dict[str, str] = field(default_factory=dict)
    """Our key -> the family's own key, read in its stead."""
    layers: str = "full"
    """Which layers look through a window when `layer_types` is absent: `full` none, `window` all, `qwen`
    those from `max_window_layers` on if `use_sliding_window`, `pattern` all but every
    `sliding_window_pattern`-th, `every` all but each `global_attn_every_n_layers`-th, from 0 on.
    """
    typed_layers: bool = True
    """Whether `layer_types` is obeyed when present."""
    rope: bool = True
    local_theta: float | None = None
    """The rope base of window layers, when it is another than that of the others."""
    stretched_positions: bool = False
    """`max_position_embeddings` is the length after rope scaling, whatever the rope type."""
    aliases: dict[str, str] = field(default_factory=dict)
    """A second key that checkpoints use -> ours, read where ours is absent."""
    default_rope: dict[str, Any] | None = None
    """The rope parameters of a config.json that has none."""
    encoder: bool = False
    """Every token sees the whole sequence: a model of vectors and labels, not of text."""
    wrapped: bool = False
    """The text model's configuration stands in `text_config`."""


_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

_LLAMA = {
    **_COMMON,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}

_QWEN2 = {
    **_COMMON,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_MISTRAL = {
    **_COMMON,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}

_GEMMA2 = {
    **_COMMON,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}

_GEMMA3 = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1_000_000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}

_PHI3 = {
    **_COMMON,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
}

_GPT2 = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "intermediate_size": None,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}

_GEMMA = {
    **_COMMON,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

_GRANITE = {
    **_LLAMA,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}

_OLMO2 = {**_LLAMA, "vocab_size": 50304, "rms_norm_eps": 1e-5}

_SMOLLM3 = {
    **_COMMON,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "rope_theta": 2_000_000.0,
}

_STARCODER2 = {
    **_COMMON,
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
}

_STABLELM = {
    **_COMMON,
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}

_PHI = {
    **_COMMON,
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}

_COHERE = {
    **_COMMON,
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "logit_scale": 0.0625,
    "rope_theta": 500_000.0,
    "use_qk_norm": False,
}

_MIXTRAL = {
    **_MISTRAL,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}

_QWEN2_MOE = {
    **_QWEN2,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
    "qkv_bias": True,
}

_QWEN3_MOE = {
    **_QWEN2_MOE,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}

_OLMOE = {
    **_COMMON,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "clip_qkv": None,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}

_GPT_OSS = {
    **_COMMON,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "attention_bias": True,
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}

_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

_LOCAL_EXPERTS = {"num_local_experts": "num_experts"}

_GPT2_SPELLING = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
}

_GEMMA_SPELLING = {"hidden_act": "hidden_activation"}
_LAYER_NORM_SPELLING = {"rms_norm_eps": "layer_norm_eps"}


FAMILY_CONFIGS: dict[str, FamilyConfig] = {
    "LlamaForCausalLM": FamilyConfig("llama", _LLAMA, typed_layers=False),
    "Qwen2ForCausalLM": FamilyConfig("qwen2", _QWEN2, layers="qwen"),
    "Qwen3ForCausalLM": FamilyConfig("qwen3", {**_QWEN2, "head_dim": 128}, layers="qwen"),
    "MistralForCausalLM": FamilyConfig("mistral", _MISTRAL, layers="window", typed_layers=False),
    "Gemma2ForCausalLM": FamilyConfig("gemma2", _GEMMA2, _GEMMA_SPELLING, layers="pattern"),
    "Gemma3ForCausalLM": FamilyConfig(
        "gemma3_text",
        _GEMMA3,
        _GEMMA_SPELLING,
        layers="pattern",
        local_theta=10000.0,
        stretched_positions=True,
    ),
    "Gemma3ForConditionalGeneration": FamilyConfig(
        "gemma3",
        _GEMMA3,
        _GEMMA_SPELLING,
        layers="pattern",
        local_theta=10000.0,
        stretched_positions=True,
        wrapped=True,
    ),
    "Phi3ForCausalLM": FamilyConfig("phi3", _PHI3, layers="window", typed_layers=False),
    "GemmaForCausalLM": FamilyConfig("gemma", _GEMMA, typed_layers=False),
    "GraniteForCausalLM": FamilyConfig("granite", _GRANITE, typed_layers=False),
    "Olmo2ForCausalLM": FamilyConfig("olmo2", _OLMO2, typed_layers=False),
    "SmolLM3ForCausalLM": FamilyConfig("smollm3", _SMOLLM3, layers="no_rope"),
    "Starcoder2ForCausalLM": FamilyConfig(
        "starcoder2", _STARCODER2, {"rms_norm_eps": "norm_epsilon"}, layers="window", typed_layers=False
    ),
    "StableLmForCausalLM": FamilyConfig("stablelm", _STABLELM, _LAYER_NORM_SPELLING, typed_layers=False),
    "PhiForCausalLM": FamilyConfig("phi", _PHI, _LAYER_NORM_SPELLING, typed_layers=False),
    "CohereForCausalLM": FamilyConfig("cohere", _COHERE, _LAYER_NORM_SPELLING, typed_layers=False),
    "MixtralForCausalLM": FamilyConfig(
        "mixtral", _MIXTRAL, layers="window", typed_layers=False, aliases=_LOCAL_EXPERTS
    ),
    "Qwen2MoeForCausalLM": FamilyConfig("qwen2_moe", _QWEN2_MOE, layers="qwen", aliases=_LOCAL_EXPERTS),
    "Qwen3MoeForCausalLM": FamilyConfig(
        "qwen3_moe", _QWEN3_MOE, layers="window", typed_layers=False, aliases=_LOCAL_EXPERTS
    ),
    "OlmoeForCausalLM": FamilyConfig("olmoe", _OLMOE, typed_layers=False, aliases=_LOCAL_EXPERTS),
    "GptOssForCausalLM": FamilyConfig(
        "gpt_oss",
        _GPT_OSS,
        layers="pattern",
        aliases={**_LOCAL_EXPERTS, "experts_per_token": "num_experts_per_tok"},
        default_rope=_GPT_OSS_ROPE,
    ),
    "GPT2LMHeadModel": FamilyConfig("gpt2", _GPT2, _GPT2_SPELLING, rope=False),
    **{name: FamilyConfig(**known, encoder=True) for name, known in ENCODERS.items()},
}
