"""config.json into an Arch: both spellings, transformers' defaults, and errors that name the key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.config.arch import ACTIVATIONS, FULL, SLIDING, Arch, read_arch
from octavo.config.families import FAMILY_CONFIGS
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.models import registry

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


def test_every_family_has_defaults_and_a_declaration() -> None:
    assert set(FAMILY_CONFIGS) == set(registry.supported())


@pytest.mark.parametrize("architecture", sorted(FAMILY_CONFIGS))
def test_what_config_json_leaves_out_is_what_transformers_takes(architecture: str) -> None:
    transformers = pytest.importorskip("transformers")
    family = FAMILY_CONFIGS[architecture]
    theirs = transformers.AutoConfig.for_model(family.model_type)
    config: dict[str, Any] = {"architectures": [architecture]}
    if family.wrapped:
        config["text_config"] = {}
        theirs = theirs.text_config
    ours = read_arch(config)
    assert ours.vocab == theirs.vocab_size
    assert ours.hidden == theirs.hidden_size
    assert ours.layers == theirs.num_hidden_layers
    assert ours.heads == theirs.num_attention_heads
    assert ours.kv_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.tied == theirs.tie_word_embeddings
    spelled = {ours: family.spelling.get(ours, ours) for ours in family.defaults}
    assert ours.act == ACTIVATIONS[getattr(theirs, spelled["hidden_act"])]
    assert ours.eps == getattr(theirs, spelled["rms_norm_eps"])
    ffn = getattr(theirs, spelled["intermediate_size"])
    assert ours.ffn == (4 * theirs.hidden_size if ffn is None else ffn)
    for key in family.defaults:
        if key in vars(theirs) and key != "sliding_window":
            assert ours.config[key] is None or ours.config[key] == getattr(theirs, key), key
    check_windows_and_ropes(ours, theirs)


def check_windows_and_ropes(ours: Arch, theirs: Any) -> None:
    types = getattr(theirs, "layer_types", None)
    for i in range(ours.layers):
        local = types is None or types[i] == SLIDING
        expected = getattr(theirs, "sliding_window", None) if local else None
        assert ours.window(i) == expected
    parameters = getattr(theirs, "rope_parameters", None) or {}
    for kind in ours.rope_by_type:
        flat = parameters.get(kind, parameters)
        for key in ("rope_theta", "partial_rotary_factor"):
            assert ours.rope_by_type[kind].get(key, 1.0) == flat.get(key, 1.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "bfloat16"},
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
                "dtype": "bfloat16",
            },
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float16"},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "float16"},
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        ),
    ],
)
def test_both_spellings_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    from octavo.layers.rope import rope

    one, other = read_arch({**LLAMA, **old}), read_arch({**LLAMA, **new})
    assert rope(one, 0) == rope(other, 0)
    assert one.dtype == other.dtype


def test_gemma3_two_ropes_in_both_spellings() -> None:
    published = {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "rope_theta": 2e6,
        "rope_local_base_freq": 7e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    arch = read_arch(published)
    assert arch.layer_types == (SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING)
    assert arch.rope_values(0) == {"rope_type": "default", "rope_theta": 7e3}
    assert arch.rope_values(2) == {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6}
    nested = {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 2,
        "layer_types": [FULL, SLIDING],
        "rope_parameters": {FULL: {"rope_type": "linear", "factor": 8.0}, SLIDING: {"rope_type": "default"}},
    }
    arch = read_arch(nested)
    assert arch.rope_values(0) == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert arch.rope_values(1) == {"rope_type": "default", "rope_theta": 1e4}
    assert (arch.window(0), arch.window(1)) == (None, 4096)


def test_qwen2_windows_begin_at_max_window_layers() -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "max_window_layers": 2,
    }
    assert [read_arch(config).window(i) for i in range(4)] == [None] * 4
    used = read_arch(config, {"use_sliding_window": True})
    assert [used.window(i) for i in range(4)] == [None, None, 8, 8]


def test_a_wrapper_is_read_through_its_text_config() -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {"hidden_size": 128, "num_hidden_layers": 3, "sliding_window": 16},
        "vision_config": {"hidden_size": 7},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
    }
    arch = read_arch(config)
    assert arch.config["eos_token_id"] == [1, 106]
    assert (arch.hidden, arch.layers, arch.dtype, arch.tied) == (128, 3, "bfloat16", True)
    assert read_arch(config, {"text_config": {"hidden_size": 256}}).hidden == 256
    assert read_arch(config, {"hidden_size": 512}).hidden == 512
    with pytest.raises(CheckpointError, match="text_config"):
        read_arch({"architectures": ["Gemma3ForConditionalGeneration"]})


def test_overrides_replace_keys_and_the_other_spelling() -> None:
    config = {**LLAMA, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    arch = read_arch(config, {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}})
    assert arch.rope_values(0) == {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    assert read_arch(config, {"num_hidden_layers": 1}).layers == 1
    new = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    scaled = read_arch(new, {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert scaled.rope_values(0) == {"type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert read_arch(new, {"rope_theta": 7e5}).rope_values(0)["rope_theta"] == 7e5
    assert read_arch(config, {"rope_theta": 7e5}).rope_values(0)["rope_theta"] == 7e5


def test_architecture_from_model_type_alone() -> None:
    assert read_arch({"model_type": "qwen2"}).architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    "config", [{"architectures": ["MambaForCausalLM"]}, {"model_type": "t5"}, {}, {"architectures": "Llama"}]
)
def test_an_unknown_architecture_lists_the_known(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"LlamaForCausalLM.*Qwen3ForCausalLM"):
        read_arch(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 66}, "hidden_size 66 .*num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 .*num_key_value_heads 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"vocab_size": [3]}, "vocab_size"),
        ({"head_dim": 0}, "head_dim"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "swoosh"}, "hidden_act"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_bad_value_names_its_key(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_arch({**LLAMA, **change})


def test_layers_without_rope() -> None:
    config = {"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 4}
    assert [read_arch(config).uses_rope(i) for i in range(4)] == [True, True, True, False]
    listed = read_arch(config, {"no_rope_layers": [0, 1, 1, 0]})
    assert [listed.uses_rope(i) for i in range(4)] == [False, True, True, False]
    with pytest.raises(CheckpointError, match="no_rope_layers"):
        read_arch(config, {"no_rope_layers": [2]}).uses_rope(0)


@pytest.mark.parametrize(
    ("types", "error"),
    [([FULL], CheckpointError), ([FULL, "linear_attention"], UnsupportedModel), ("full", CheckpointError)],
)
def test_layer_types_must_fit(types: Any, error: type[Exception]) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "layer_types": types}
    with pytest.raises(error, match="layer_types"):
        read_arch(config)


def test_family_keys_are_checked_when_read() -> None:
    arch = read_arch({**LLAMA, "attention_bias": "no", "query": -3})
    with pytest.raises(CheckpointError, match="attention_bias"):
        arch.flag("attention_bias")
    with pytest.raises(CheckpointError, match="query"):
        arch.number("query")
    with pytest.raises(CheckpointError, match="nothing is missing"):
        arch.number("nothing")
    assert arch.optional("nothing") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_embd": -1}, "n_embd"),
        ({"n_head": 5}, "n_embd 768 .*n_head 5"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
        ({"activation_function": "tanhh"}, "activation_function"),
    ],
)
def test_an_error_names_the_key_as_config_json_spells_it(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_arch({"architectures": ["GPT2LMHeadModel"], **change})


def test_a_config_that_is_no_object() -> None:
    with pytest.raises(CheckpointError, match="object, not list"):
        read_arch([])  # type: ignore[arg-type]


def test_an_arch_is_plain_data() -> None:
    arch = read_arch(LLAMA)
    assert json.loads(json.dumps(arch.config)) == arch.config
    with pytest.raises(AttributeError):
        arch.hidden = 3  # type: ignore[misc]
