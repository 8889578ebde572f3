"""The tree of layers, and published models by their number of weights."""

from __future__ import annotations

import math
from typing import Any

import pytest

from octavo.build.declare import declare
from octavo.config.arch import read_arch
from octavo.layers.attention import alibi_slopes
from octavo.layers.base import Layer
from octavo.layers.linear import Embedding, Linear, TiedHead
from octavo.layers.norm import RMSNorm

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2": (
        124_439_808,
        {"architectures": ["GPT2LMHeadModel"], "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_window_layers": 21,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
    ),
    "Llama-3.1-8B": (
        8_030_261_248,
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "vocab_size": 128256,
        },
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "architectures": ["MistralForCausalLM"],
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "vocab_size": 32000,
        },
    ),
    "gemma-2-2b": (
        2_614_341_888,
        {
            "architectures": ["Gemma2ForCausalLM"],
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
        },
    ),
    "gemma-3-1b": (
        999_885_952,
        {
            "architectures": ["Gemma3ForCausalLM"],
            "head_dim": 256,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "rope_local_base_freq": 10000,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
    ),
    "Phi-3-mini-4k": (
        3_821_079_552,
        {
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rope_scaling": None,
            "sliding_window": 2047,
            "vocab_size": 32064,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_number_of_weights(name: str) -> None:
    weights, config = PUBLISHED[name]
    model = declare(read_arch(config))
    assert sum(math.prod(param.shape) for _, param in model.named_params()) == weights


def test_a_tree_is_walked_in_the_order_it_was_written() -> None:
    class Pair(Layer):
        def __init__(self) -> None:
            self.first = RMSNorm(4, 1e-6)
            self.rest = [Linear(4, (3, 2), bias=True), Linear(4, 1)]

    tree = Pair()
    paths = [path for path, _ in tree.named_params()]
    assert paths == ["first.weight", "rest.0.weight", "rest.0.bias", "rest.1.weight"]
    assert [path for path, _ in tree.walk()] == ["", "first", "rest.0", "rest.1"]


def test_a_shared_param_is_met_once() -> None:
    class Tied(Layer):
        def __init__(self) -> None:
            self.embed = Embedding(8, 4)
            self.head = TiedHead(self.embed)

    tree = Tied()
    ((path, param),) = tree.named_params()
    assert (path, param.kind) == ("embed.weight", "matrix")


def test_matrices_that_read_one_input_stand_in_one_param() -> None:
    linear = Linear(4, (3, 2), bias=True)
    assert (linear.weight.shape, linear.weight.parts, linear.weight.axis) == ((5, 4), (3, 2), 0)
    assert linear.bias is not None
    assert (linear.bias.shape, linear.bias.axis) == ((5,), 0)
    inward = Linear(4, 3, bias=True, axis=1)
    assert inward.bias is not None
    assert inward.bias.axis is None


def test_a_layer_that_computes_nothing_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Layer"):
        Layer()(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("architecture", "dtype", "scale"),
    [
        ("Gemma2ForCausalLM", "float32", 59.866518),
        ("Gemma2ForCausalLM", "bfloat16", 59.75),
        ("Gemma3ForCausalLM", "float16", 59.875),
        ("GraniteForCausalLM", "bfloat16", 12.3),
    ],
)
def test_gemmas_embedding_factor_is_rounded_like_its_weights(
    architecture: str, dtype: str, scale: float
) -> None:
    config = {"architectures": [architecture], "hidden_size": 3584, "embedding_multiplier": 12.3}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    assert declare(read_arch(config), dtype).embed_scale == pytest.approx(scale, rel=1e-7)


def test_alibi_slopes_of_any_number_of_heads() -> None:
    assert alibi_slopes(4) == (2**-2, 2**-4, 2**-6, 2**-8)
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert alibi_slopes(2, 16.0) == (2**-8, 2**-16)
