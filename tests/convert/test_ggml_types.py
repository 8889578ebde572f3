"""Quantizers against the gguf package: the same bits where it has one, a small error everywhere."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.convert.ggml_types import _BLOCKS, MIXES, Traits, encode, mix_of, tensor_type
from octavo.errors import ConfigError
from octavo.weights.ggml import NAMED, TYPES

BIT_EQUAL = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32")
ERRORS = {
    "Q2_K": 0.21413,
    "Q3_K": 0.10861,
    "IQ4_XS": 0.06468,
    "IQ4_NL": 0.06418,
    "MXFP4": 0.13045,
    "Q4_K": 0.05374,
    "Q5_K": 0.02827,
    "Q6_K": 0.01371,
}
"""Relative root mean square error of ggml's own quantizers (July 2026) on rows(1)."""


def rows(seed: int = 0) -> np.ndarray:
    """Normal rows of many sizes, with constant and zero blocks among them."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((24, 1024)) * np.exp(random.standard_normal((24, 1)))
    values[3] = 0
    values[5, :256] = 1.5
    values[6, :256] = -2
    values[7, 5] = 300
    return values.astype(np.float32)


@pytest.mark.parametrize("name", BIT_EQUAL)
def test_bits_are_those_of_the_gguf_package(name: str) -> None:
    theirs = gguf.quantize(rows(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(encode(rows(), NAMED[name]), theirs.view(np.uint8))


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_are_ggmls(name: str) -> None:
    values = rows(1)
    back = gguf.dequantize(encode(values, NAMED[name]), gguf.GGMLQuantizationType[name])
    assert np.sqrt(np.square(back - values).mean() / np.square(values).mean()) <= 1.01 * ERRORS[name]
    for row, found in zip(values, back, strict=True):
        assert np.sqrt(np.square(found - row).mean()) <= 1.5 * ERRORS[name] * max(
            np.sqrt(np.square(row).mean()), 1e-9
        )


def test_values_that_stand_exactly() -> None:
    """MXFP4's own numbers come back; so do zeros, from every type."""
    random = np.random.default_rng(5)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = table[random.integers(0, 8, (50, 32))] * random.choice([-1, 1], (50, 32))
    values[:, 7] = 6
    values *= np.exp2(random.integers(-100, 100, (50, 1)))
    back = gguf.dequantize(encode(values, NAMED["MXFP4"]), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(back, values)
    for name in ERRORS:
        kind = gguf.GGMLQuantizationType[name]
        assert not gguf.dequantize(encode(np.zeros((2, 256), np.float32), NAMED[name]), kind).any()


def test_sizes_are_those_of_the_gguf_package() -> None:
    for number, kind in TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.block, kind.nbytes)
    assert set(_BLOCKS) <= set(NAMED)


def test_mixes() -> None:
    parts = ("attn_v", "ffn_down", "attn_output", "ffn_up")
    names = ("token_embd", *(f"blk.{i}.{part}" for i in (0, 5) for part in parts), "output")

    def kinds(outtype: str, cols: int = 512, layers: int = 32, **traits: int) -> list[str]:
        model = Traits(layers, **{"tied": False, **traits})
        return [tensor_type(mix_of(outtype), f"{name}.weight", (64, cols), model).name for name in names]

    assert kinds("q4_0") == ["Q4_0"] * 9 + ["Q6_K"]
    four = ["Q4_K", "Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K"]
    assert kinds("q4_k_m") == four
    assert kinds("q4_k_s") == [
        "Q5_K" if i in (1, 2) else kind for i, kind in enumerate(["Q4_K"] * 9 + ["Q6_K"])
    ]
    assert kinds("q4_k_m", tied=True)[0] == "Q6_K"
    smaller = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
    assert kinds("q4_k_m", 96) == [smaller[kind] for kind in four]
    assert kinds("q8_0", 40) == ["F16"] * 10
    two = ["Q2_K", "Q3_K", "Q3_K", "Q3_K", "Q2_K", "Q3_K", "Q3_K", "Q3_K", "Q2_K", "Q6_K"]
    assert kinds("q2_k") == two
    assert kinds("q2_k", shared=4) == [two[0], "Q4_K", *two[2:5], "Q4_K", *two[6:]]
    assert kinds("q2_k", 96) == ["Q4_0"] * 9 + ["Q8_0"]
    three = ["Q3_K", "Q5_K", "Q5_K", "Q4_K", "Q3_K", "Q4_K", "Q4_K", "Q4_K", "Q3_K", "Q6_K"]
    assert kinds("q3_k_m") == three
    assert kinds("q3_k_s") == ["Q3_K"] * 9 + ["Q6_K"]
    assert kinds("q3_k_l")[1:4] == ["Q5_K"] * 3
    eight = kinds("q3_k_m", experts=8)
    assert eight[1:4] == ["Q8_0", "Q5_K", "Q5_K"]
    nl = ["IQ4_XS", "IQ4_XS", "Q5_K", *["IQ4_XS"] * 6, "Q6_K"]
    assert kinds("iq4_xs") == nl
    assert kinds("iq4_xs", shared=8) == [nl[0], "Q5_K", *nl[2:5], "Q5_K", *nl[6:]]
    plain = Traits(32, tied=False)
    assert tensor_type(mix_of("q4_0"), "blk.0.attn_norm.weight", (64,), plain).name == "F32"
    assert tensor_type(mix_of("mxfp4_moe"), "blk.0.ffn_up_exps.weight", (8, 64, 64), plain).name == "MXFP4"
    assert tensor_type(mix_of("mxfp4_moe"), "blk.0.attn_q.weight", (64, 64), plain).name == "Q8_0"
    with pytest.raises(ConfigError, match=r"there is no 'q9'.*q8_0"):
        mix_of("q9")


def test_file_types_are_llama_cpps() -> None:
    for name, mix in MIXES.items():
        assert gguf.LlamaFileType(mix.file_type).name in ("ALL_F32", f"MOSTLY_{name.upper()}")
