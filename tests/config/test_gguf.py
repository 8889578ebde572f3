"""Hyper-parameters of GGUF files: what llama.cpp's files say, what they leave out, and what cannot be."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config.arch import Arch, read_arch
from octavo.config.families import FAMILY_CONFIGS
from octavo.config.gguf import ARCHITECTURES, config_of
from octavo.errors import CheckpointError, OctavoError, UnsupportedModel
from octavo.models.registry import lookup

SHAPES = {"token_embd.weight": (100, 64), "output.weight": (100, 64), "blk.0.ffn_norm.weight": (64,)}


def metadata(name: str = "llama", **keys: Any) -> dict[str, Any]:
    found = {
        "embedding_length": 64, "feed_forward_length": 128, "block_count": 4, "context_length": 512,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), **keys,
    }  # fmt: skip
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in found.items()}}


def arch(found: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> Arch:
    return read_arch(config_of(found, shapes or SHAPES, lambda _: [1.0, 2.0] * 4, "x.gguf"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_family(name: str) -> None:
    extra: dict[str, Any] = {"logit_scale": 2.0} if name in ("granite", "command-r") else {}
    if name.endswith("moe") or name == "gpt-oss":
        extra = {"expert_count": 8, "expert_used_count": 2}
    found = arch(metadata(name, **extra))
    assert (found.vocab, found.hidden, found.layers, found.heads, found.kv_heads) == (100, 64, 4, 4, 4)
    assert found.architecture in FAMILY_CONFIGS
    assert lookup(found.architecture).gguf == name
    assert found.eps == 1e-5
    assert not found.tied


def test_what_a_file_may_say() -> None:
    found = arch(
        metadata(**{"attention.head_count_kv": 2, "attention.key_length": 32, "rope.freq_base": 5e5}),
        {"token_embd.weight": (100, 64), "rope_freqs.weight": (16,), "blk.0.attn_output.bias": (64,)},
    )
    assert (found.kv_heads, found.head_dim, found.tied) == (2, 32, True)
    assert found.rope_values(0)["rope_type"] == "factors"
    assert found.rope_values(0)["rope_theta"] == 5e5
    assert found.flag("attention_bias")
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "attn_factor": 2.0}
    values = arch(metadata("qwen2", **{f"rope.scaling.{k}": v for k, v in yarn.items()})).rope_values(0)
    assert (values["rope_type"], values["original_max_position_embeddings"]) == ("yarn", 128)
    assert values["attention_factor"] == pytest.approx(2 * (0.1 * np.log(4) + 1))
    old = arch(metadata(**{"rope.scale_linear": 2.0})).rope_values(0)
    assert (old["rope_type"], old["factor"]) == ("linear", 2.0)
    per_layer = arch(metadata(**{"attention.head_count_kv": np.array([2, 2, 2, 2], np.int32)}))
    assert per_layer.kv_heads == 2


def test_gemma() -> None:
    found = arch(metadata("gemma3", **{"attention.sliding_window": 8, "rope.scaling.factor": 8.0}))
    assert found.layer_types == ("sliding_attention",) * 4
    assert found.rope_by_type["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert found.rope_by_type["full_attention"]["factor"] == 8.0
    assert found.number("query_pre_attn_scalar") == 16
    listed = {"attention.sliding_window": 8, "attention.sliding_window_pattern": np.array([True, False] * 2)}
    assert arch(metadata("gemma2", **listed)).layer_types == ("sliding_attention", "full_attention") * 2


@pytest.mark.parametrize(
    ("found", "kind", "pattern"),
    [
        ({"general.architecture": "rwkv"}, UnsupportedModel, "'rwkv' is not supported.*llama"),
        ({}, UnsupportedModel, "None is not supported"),
        ({"general.architecture": []}, UnsupportedModel, r"\[\] is not supported"),
        (metadata(block_count="4"), CheckpointError, r"llama\.block_count is '4'"),
        (metadata(block_count=None), CheckpointError, "block_count is missing"),
        (metadata(expert_count=8), CheckpointError, "expert_used_count is missing"),
        (metadata("qwen3moe"), CheckpointError, "expert_count is missing"),
        (metadata("gemma2", expert_count=8, expert_used_count=2), UnsupportedModel, "gemma2 with experts"),
        (
            metadata("olmoe", expert_count=8, expert_used_count=2, expert_weights_scale=2.5),
            UnsupportedModel,
            r"expert_weights_scale 2\.5",
        ),
        (metadata(feed_forward_length=np.array([1, 2], np.int32)), UnsupportedModel, "layer to layer"),
        (metadata(**{"rope.freq_base": float("nan")}), CheckpointError, "freq_base is nan"),
        (metadata(**{"attention.key_length": 8, "attention.value_length": 9}), UnsupportedModel, "lengths"),
        (metadata(**{"attention.head_count": 0}), CheckpointError, "head_count is 0, expected at least 1"),
    ],
)
def test_what_cannot_be(found: dict[str, Any], kind: type[OctavoError], pattern: str) -> None:
    with pytest.raises(kind, match=pattern):
        arch(found)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3).map(lambda x: np.array(x, np.int32)),
    st.lists(st.text(max_size=3), max_size=3),
)  # fmt: skip
KEYS = ("block_count", "expert_count", "expert_used_count", "expert_feed_forward_length",
         "embedding_length", "attention.head_count", "attention.head_count_kv",
        "rope.freq_base", "attention.key_length", "rope.dimension_count",
        "rope.scaling.type", "rope.scaling.factor",
        "attention.sliding_window", "attention.sliding_window_pattern", "attention.scale",
        "attention.layer_norm_rms_epsilon", "context_length")  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
)
def test_fuzz(name: str, changes: dict[str, Any]) -> None:
    """Any value under any key: an Arch or one clear error."""
    with contextlib.suppress(OctavoError):
        arch(metadata(name, **changes))
