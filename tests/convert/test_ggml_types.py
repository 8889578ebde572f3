"""Quantizers against the gguf package: the same bits where it has one, a small error everywhere."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.convert.ggml_types import _BLOCKS, MIXES, encode, mix_of, tensor_type
from octavo.errors import ConfigError
from octavo.weights.ggml import NAMED, TYPES

BIT_EQUAL = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32")
ERRORS = {"IQ4_NL": 0.09, "Q4_K": 0.08, "Q5_K": 0.045, "Q6_K": 0.025}
"""Largest relative root mean square error on normal numbers."""


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
def test_error_is_small(name: str) -> None:
    values = rows(1)
    back = gguf.dequantize(encode(values, NAMED[name]), gguf.GGMLQuantizationType[name])
    for row, found in zip(values, back, strict=True):
        assert np.sqrt(np.square(found - row).mean()) <= ERRORS[name] * max(
            np.sqrt(np.square(row).mean()), 1e-9
        )


def test_sizes_are_those_of_the_gguf_package() -> None:
    for number, kind in TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.block, kind.nbytes)
    assert set(_BLOCKS) <= set(NAMED)


def test_mixes() -> None:
    def kinds(outtype: str, cols: int = 512, *, tied: bool = False) -> list[str]:
        names = ("token_embd", "blk.0.attn_v", "blk.5.attn_v", "blk.0.ffn_down", "blk.0.ffn_up", "output")
        mix = mix_of(outtype)
        return [tensor_type(mix, f"{n}.weight", (64, cols), 32, tied=tied).name for n in names]

    assert kinds("q4_0") == ["Q4_0", "Q4_0", "Q4_0", "Q4_0", "Q4_0", "Q6_K"]
    assert kinds("q4_k_m") == ["Q4_K", "Q6_K", "Q4_K", "Q6_K", "Q4_K", "Q6_K"]
    assert kinds("q4_k_s") == ["Q4_K", "Q5_K", "Q4_K", "Q5_K", "Q4_K", "Q6_K"]
    assert kinds("q4_k_m", tied=True)[0] == "Q6_K"
    assert kinds("q4_k_m", 96) == ["Q5_0", "Q8_0", "Q5_0", "Q8_0", "Q5_0", "Q8_0"]
    assert kinds("q8_0", 40) == ["F16"] * 6
    assert tensor_type(mix_of("q4_0"), "blk.0.attn_norm.weight", (64,), 32, tied=False).name == "F32"
    with pytest.raises(ConfigError, match=r"there is no 'q9'.*q8_0"):
        mix_of("q9")


def test_file_types_are_llama_cpps() -> None:
    for name, mix in MIXES.items():
        assert gguf.LlamaFileType(mix.file_type).name in ("ALL_F32", f"MOSTLY_{name.upper()}")
