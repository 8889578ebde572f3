"""Every GGUF tensor type against the gguf package: the same bits, on random blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.errors import UnsupportedModel
from octavo.weights import ggml_decode
from octavo.weights.ggml import NAMED, TYPES
from octavo.weights.ggml_decode import DECODED, decode
from octavo.weights.iq_grids import grid, sizes

THEIRS = sorted(kind.name for kind in gguf.quants._type_traits if kind.name in NAMED)


def random_blocks(name: str, rows: int = 24, blocks: int = 4) -> np.ndarray:
    random = np.random.default_rng(len(name))
    return random.integers(0, 256, (rows, blocks * NAMED[name].nbytes), np.uint8)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit; one NaN is as good as another."""
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.array_equal(np.where(nan, 0, a).view(np.uint32), np.where(nan, 0, b).view(np.uint32)))


def test_nothing_is_forgotten() -> None:
    assert set(THEIRS) <= DECODED
    assert {"F32", "F16", "F64"} <= DECODED <= set(NAMED)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_bits_are_those_of_the_gguf_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks(name)
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[name]).astype(np.float32)
    shape = (len(raw), theirs.shape[1])
    layout = decode(raw, NAMED[name], shape)
    assert layout.shape == shape
    assert same_bits(layout.dequantize(), theirs)
    order = np.random.default_rng(1).permutation(len(raw))
    assert same_bits(layout.take(order).dequantize(), theirs[order])
    # In pieces, as a large tensor is decoded.
    monkeypatch.setattr(ggml_decode, "_CHUNK_ELEMENTS", 5 * shape[1])
    assert same_bits(decode(raw, NAMED[name], shape).dequantize(), theirs)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_grids(name: str) -> None:
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    found = np.array(sizes(name), np.float32)[grid(name)]
    assert np.array_equal(found, theirs.grid.reshape(theirs.grid_shape))


def test_floats_are_views() -> None:
    values = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    layout = decode(values.view(np.uint8), NAMED["F32"], (3, 8))
    assert np.shares_memory(layout.dequantize(), values)
    wide = decode(values.astype(np.float64).view(np.uint8), NAMED["F64"], (3, 8))
    assert np.array_equal(wide.dequantize(), values)
    odd = np.concatenate([np.zeros(1, np.uint8), values.view(np.uint8).reshape(-1)])[1:].reshape(3, -1)
    assert np.array_equal(decode(odd, NAMED["F32"], (3, 8)).dequantize(), values)


def test_types_without_a_decoder() -> None:
    unknown = [kind for kind in TYPES.values() if kind.name not in DECODED]
    for kind in unknown:
        with pytest.raises(UnsupportedModel, match=kind.name):
            decode(np.zeros((1, kind.nbytes), np.uint8), kind, (1, kind.block))
