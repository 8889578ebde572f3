"""Where Params stand in checkpoints: spellings, concatenation, transposition, and what may be left over."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.build.declare import declare
from octavo.build.shard import shard
from octavo.config.arch import read_arch
from octavo.config.families import FAMILY_CONFIGS
from octavo.errors import CheckpointError, ConfigError
from octavo.layers.decoder import Decoder
from octavo.models import registry
from octavo.models.names import may_be_unused, sources
from octavo.ops.contract import Param

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 64,
}


def declared(architecture: str, **more: Any) -> tuple[Decoder, dict[str, Param]]:
    text = {**SMALL, **more}
    config = {"architectures": [architecture], **text}
    if architecture.endswith("ConditionalGeneration"):
        config = {"architectures": [architecture], "text_config": text}
    model = declare(read_arch(config))
    return model, dict(model.named_params())


def test_pieces_are_named_in_order() -> None:
    model, params = declared("Qwen2ForCausalLM")
    source = sources(model, params["blocks.1.attention.qkv.weight"])
    assert [names[0] for names in source.names] == [
        f"model.layers.1.self_attn.{p}_proj.weight" for p in ("q", "k", "v")
    ]
    assert source.rows == (32, 16, 16)
    assert source.shape(1, params["blocks.1.attention.qkv.weight"]) == (16, 32)
    bias = sources(model, params["blocks.1.attention.qkv.bias"])
    assert bias.names[2][0] == "model.layers.1.self_attn.v_proj.bias"
    assert bias.shape(0, params["blocks.1.attention.qkv.bias"]) == (32,)


def test_a_fused_tensor_is_one_piece() -> None:
    model, params = declared("Phi3ForCausalLM")
    source = sources(model, params["blocks.0.mlp.gate_up.weight"])
    assert [names[0] for names in source.names] == ["model.layers.0.mlp.gate_up_proj.weight"]
    assert source.rows == (96,)


def test_conv1d_is_turned_round_but_its_bias_is_not() -> None:
    model = declare(
        read_arch({"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_head": 4, "n_layer": 1})
    )
    params = dict(model.named_params())
    weight = sources(model, params["blocks.0.attention.qkv.weight"])
    assert weight.transpose
    assert weight.shape(0, params["blocks.0.attention.qkv.weight"]) == (32, 96)
    assert weight.names == (("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),)
    assert not sources(model, params["blocks.0.attention.qkv.bias"]).transpose
    assert not sources(model, params["positions.weight"]).transpose


def test_a_wrapper_and_a_bare_model_are_other_spellings() -> None:
    model, params = declared("Gemma3ForConditionalGeneration")
    (names,) = sources(model, params["blocks.0.mlp_post_norm.weight"]).names
    rest = "layers.0.post_feedforward_layernorm.weight"
    assert set(names) == {
        f"{p}{rest}" for p in ("", "model.", "language_model.model.", "model.language_model.")
    }


def test_a_tied_table_is_one_param_and_may_stand_under_the_heads_name() -> None:
    model, params = declared("Qwen2ForCausalLM", tie_word_embeddings=True)
    assert "head.weight" not in params
    assert model.head.weight is model.embed.weight
    names = sources(model, params["embed.weight"]).names[0]
    assert names[0] == "model.embed_tokens.weight"
    assert "lm_head.weight" in names
    assert may_be_unused(model, "lm_head.weight")
    untied, params = declared("Qwen2ForCausalLM")
    assert "lm_head.weight" not in sources(untied, params["embed.weight"]).names[0]
    assert not may_be_unused(untied, "lm_head.weight")


@pytest.mark.parametrize(
    ("architecture", "name", "unused"),
    [
        ("LlamaForCausalLM", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("LlamaForCausalLM", "model.layers.0.self_attn.q_proj.weight_scale", False),
        ("Gemma3ForConditionalGeneration", "vision_tower.vision_model.post_layernorm.weight", True),
        ("Gemma3ForConditionalGeneration", "model.multi_modal_projector.mm_soft_emb_norm.weight", True),
        ("Gemma3ForCausalLM", "vision_tower.vision_model.post_layernorm.weight", False),
        ("GPT2LMHeadModel", "h.0.attn.bias", True),
        ("GPT2LMHeadModel", "transformer.h.3.attn.masked_bias", True),
        ("GPT2LMHeadModel", "h.0.attn.c_attn.bias", False),
    ],
)
def test_what_may_be_left_over(architecture: str, name: str, unused: bool) -> None:
    model = declare(read_arch({"architectures": [architecture], "text_config": {}}))
    assert may_be_unused(model, name) is unused


@pytest.mark.parametrize("architecture", registry.supported())
def test_every_param_of_every_family_has_a_source(architecture: str) -> None:
    biased = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
    model, params = declared(architecture, **biased)
    seen: set[str] = set()
    for path, param in params.items():
        assert param.name == path
        source = sources(model, param)
        assert sum(source.rows) == param.shape[0]
        firsts = {names[0] for names in source.names}
        assert not firsts & seen, "two Params read one tensor"
        seen |= firsts
    specs = model.attention_specs()
    # Layers that see the whole text keep nothing from step to step: they take turns in one place.
    layers = range(model.arch.layers) if all(spec.causal for spec in specs) else range(1)
    assert [spec.layer for spec in specs] == list(layers)


def test_one_rank_is_the_model_and_more_are_refused() -> None:
    model, _ = declared("LlamaForCausalLM")
    assert shard(model, 0, 1) is model
    with pytest.raises(ConfigError, match="size of 2"):
        shard(model, 0, 2)
    with pytest.raises(ConfigError, match="Rank 1 of 1"):
        shard(model, 1, 1)


JUNK: list[Any] = [
    *(None, "x", "", -1, 0, 1, 3, 1.5, True, False, 1e99, float("nan"), float("inf"), 10**30, "9" * 1000),
    *([], [1], [None, None], ["sliding_attention", "full_attention"]),
    *({}, {"a": 1}, {"full_attention": 3}, {"full_attention": {}}),
]
ROPE = {
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}
OPTIONAL = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "rope_theta",
)


def refusal(config: dict[str, Any]) -> str:
    """The error of declaring a config, empty when there is none; anything but a CheckpointError is a bug."""
    try:
        declare(read_arch(config))
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("architecture", registry.supported())
def test_junk_in_any_key_is_refused_or_harmless(architecture: str) -> None:
    family = FAMILY_CONFIGS[architecture]
    small = {family.spelling.get(key, key): value for key, value in SMALL.items()}
    others = (
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "original_max_position_embeddings",
        "architectures",
    )
    more = ("text_config", "quantization_config", "torch_dtype", "rope_local_base_freq", "model_type")
    for key in (*(family.spelling.get(k, k) for k in family.defaults), *others, *more):
        for junk in JUNK:
            config = {"architectures": [architecture], **small, key: junk}
            if family.wrapped:
                config = {"architectures": [architecture], "text_config": config}
            assert len(refusal(config)) < 900


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn", "longrope"])
def test_junk_in_rope_parameters_is_refused_or_harmless(kind: str) -> None:
    for key in (*ROPE, *OPTIONAL, "rope_theta", "partial_rotary_factor", "rope_type", "type"):
        for junk in JUNK:
            scaling = {"rope_type": kind, **ROPE, key: junk}
            config = {"architectures": ["LlamaForCausalLM"], **SMALL, "rope_scaling": scaling}
            assert len(refusal(config)) < 900
