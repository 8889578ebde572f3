"""What config.json leaves out of encoders: see octavo.config.families, which makes FamilyConfigs of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.config.arch import Arch

_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "rms_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
_ROBERTA = {**_BERT, "vocab_size": 50265, "pad_token_id": 1}
_MODERNBERT = {
    **_BERT,
    "vocab_size": 50368,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 50283,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "cls",
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "rope_theta": 160_000.0,
}
_NOMIC = {
    **_BERT,
    "vocab_size": 30528,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 1000.0,
}
_GTE = {
    **_BERT,
    "vocab_size": 250048,
    "max_position_embeddings": 8192,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "rope_theta": 160_000.0,
}
_EPS = {"rms_norm_eps": "layer_norm_eps"}

ENCODERS: dict[str, dict[str, Any]] = {
    "BertModel": {"model_type": "bert", "defaults": _BERT, "spelling": _EPS, "rope": False},
    "RobertaModel": {"model_type": "roberta", "defaults": _ROBERTA, "spelling": _EPS, "rope": False},
    "XLMRobertaModel": {
        "model_type": "xlm-roberta",
        "defaults": {**_ROBERTA, "vocab_size": 30522},
        "spelling": _EPS,
        "rope": False,
    },
    "ModernBertModel": {
        "model_type": "modernbert",
        "defaults": _MODERNBERT,
        "spelling": {"rms_norm_eps": "norm_eps", "hidden_act": "hidden_activation"},
        "layers": "every",
        "local_theta": 10000.0,
        "aliases": {"global_rope_theta": "rope_theta", "local_rope_theta": "rope_local_base_freq"},
    },
    "NomicBertModel": {
        "model_type": "nomic_bert",
        "defaults": _NOMIC,
        "spelling": _EPS,
        "aliases": {
            "layer_norm_epsilon": "rms_norm_eps",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_inner": "intermediate_size",
            "max_trained_positions": "max_position_embeddings",
            "n_positions": "max_position_embeddings",
            "rotary_emb_base": "rope_theta",
            "rotary_emb_fraction": "partial_rotary_factor",
            "activation_function": "hidden_act",
        },
    },
    "GteModel": {"model_type": "gte", "defaults": _GTE, "spelling": _EPS},
}
"""Keyword arguments of FamilyConfig by the bare model's architecture."""


def position_offset(arch: Arch) -> int:
    """The row of the table of learned positions where the first one stands."""
    return (
        arch.integer("pad_token_id", 0) + 1 if arch.architecture in ("RobertaModel", "XLMRobertaModel") else 0
    )


_KINDS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "Model")
_STEMS = {"New": "Gte"}
"""Names under which a family was published first."""
_BARE = ("Model", "ForCausalLM", "LMHeadModel")


def family_name(architecture: str, known: dict[str, Any]) -> str | None:
    """The name in `known` under which the family of an architecture stands: BertForTokenClassification is
    BertModel's, Qwen3Model is Qwen3ForCausalLM's. None for none.
    """
    if architecture in known:
        return architecture
    for kind in _KINDS:
        if architecture.endswith(kind):
            stem = architecture.removesuffix(kind)
            stem = _STEMS.get(stem, stem)
            return next((stem + bare for bare in _BARE if stem + bare in known), None)
    return None
