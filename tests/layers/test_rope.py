"""Frequencies and magnitudes against transformers' modeling_rope_utils."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.rope import make_rope
from octavo.ops.reference import inverse_frequencies

HEAD_DIM, MAX_POSITIONS = 32, 256
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "short_factor": [1.0 + 0.05 * i for i in range(16)],
    "long_factor": [1.5 + 0.7 * i for i in range(16)],
    "original_max_position_embeddings": 64,
}
CASES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "yarn", **YARN},
    {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", **YARN, "truncate": False},
    {"rope_type": "yarn", **YARN, "attention_factor": 1.25},
    {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", **YARN, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64},
    {"rope_type": "longrope", **LONG},
    {"rope_type": "longrope", **LONG, "factor": 16.0},
    {"rope_type": "longrope", **LONG, "attention_factor": 1.19},
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("length", [1, 64, 65, 256, 257, 900])
@pytest.mark.parametrize(
    "values", CASES, ids=lambda v: "-".join(str(x) for x in v.values() if not isinstance(x, list))
)
def test_equals_transformers(values: dict[str, Any], length: int, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={**values, "rope_theta": theta},
    )
    theirs, their_magnitude = ROPE_INIT_FUNCTIONS[values["rope_type"]](config, "cpu", seq_len=length)
    rope = make_rope({**values, "rope_theta": theta}, HEAD_DIM, MAX_POSITIONS)
    ours, magnitude = inverse_frequencies(rope, length)
    # One rounding of a float32 power apart, and for the dynamic base one more.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    assert magnitude == pytest.approx(their_magnitude, rel=1e-12)


def test_default_is_the_plain_one() -> None:
    rope = make_rope({"rope_theta": 100.0}, 8, 64)
    np.testing.assert_allclose(rope.inv_freq, [1.0, 100**-0.25, 0.1, 100**-0.75], rtol=1e-6)
    assert (rope.rotary_dim, rope.magnitude, rope.switch_tokens) == (8, 1.0, None)


def test_the_old_word_type_and_an_outer_original_length() -> None:
    inner = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert make_rope(inner, 32, 256, 64) == make_rope(
        {**inner, "original_max_position_embeddings": 64}, 32, 256
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "longrope", **LONG, "long_factor": [1.0]}, "long_factor .* 16"),
        ({"rope_type": "default", "rope_theta": -1.0}, "rope_theta"),
        ({"rope_type": "default", "partial_rotary_factor": 2.0}, "rotary dimension"),
        ({"rope_type": "yarn", **YARN, "original_max_position_embeddings": 1.5}, "original_max"),
        ({"rope_type": "yarn", **YARN, "rope_theta": 1.0}, "no angles"),
        ({"rope_type": "longrope", **LONG, "original_max_position_embeddings": 1}, "no angles"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 2 / 32}, "above 2"),
    ],
)
def test_a_bad_parameter_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        make_rope(values, HEAD_DIM, MAX_POSITIONS)


def test_an_unknown_type_lists_the_known() -> None:
    with pytest.raises(UnsupportedModel, match="yarn"):
        make_rope({"rope_type": ["spiral"]}, HEAD_DIM, MAX_POSITIONS)
