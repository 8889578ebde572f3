"""bitsandbytes modules, written by the packers beside this file, become exactly their numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import packers
import pytest
from held import Held

from octavo.errors import CheckpointError
from octavo.ops.layouts import Dense, Int8, Layout, Lut4
from octavo.quant.bitsandbytes import BitsAndBytes
from octavo.quant.format import Tensors

STATE = "weight.quant_state.bitsandbytes__nf4"


def read(tensors: dict[str, Any], rows: int, cols: int) -> Layout:
    held, format = Held(**tensors), BitsAndBytes({"load_in_4bit": True})
    return format.read(Tensors("m", format.suffixes("m", held.tensors), held), rows, cols)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("fp4", [False, True])
@pytest.mark.parametrize(
    ("rows", "cols", "block", "kind"),
    [(24, 128, 64, Lut4), (24, 32, 64, Lut4), (24, 96, 64, Lut4), (10, 80, 64, Lut4), (7, 33, 64, Dense)],
)
def test_four_bits(rows: int, cols: int, block: int, kind: type, fp4: bool, nested: bool) -> None:
    """Blocks in a row, over several, over their edges, and where nothing divides anything."""
    tensors, values = packers.bnb4(np.random.default_rng(1), rows, cols, block=block, nested=nested, fp4=fp4)
    layout = read(tensors, rows, cols)
    assert isinstance(layout, kind)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32"])
def test_codes_seen_as_floats(dtype: str) -> None:
    """bnb_4bit_quant_storage, as fine-tuning on several machines has it."""
    tensors, values = packers.bnb4(np.random.default_rng(1), 24, 128, nested=True)
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    tensors["weight"] = (tensors["weight"].reshape(-1).view(kind).reshape(-1, 1), dtype)
    np.testing.assert_allclose(read(tensors, 24, 128).dequantize(), values, rtol=1e-6, atol=1e-8)


def test_both_parts_of_nested_sizes_are_asked_for() -> None:
    for left in ("weight.nested_absmax", "weight.nested_quant_map"):
        words = BitsAndBytes({}).suffixes("m", {"m.weight", "m.weight.absmax", f"m.{left}", f"m.{STATE}"})
        assert {"weight.nested_absmax", "weight.nested_quant_map"} <= set(words)


def test_eight_bits() -> None:
    tensors, values = packers.bnb8(np.random.default_rng(1), 24, 80)
    layout = read(tensors, 24, 80)
    assert isinstance(layout, Int8)
    np.testing.assert_allclose(layout.dequantize(), values, rtol=1e-6)


def state(**changes: Any) -> np.ndarray[Any, Any]:
    said = {"blocksize": 64, "shape": [24, 128], "nested_blocksize": 256, "nested_offset": 0.125, **changes}
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({STATE: state(shape=[24, 129])}, r"nf4 .* gives the shape \[24, 129\], expected \[24, 128\]"),
        ({STATE: state(blocksize=0)}, "gives blocksize 0"),
        ({STATE: state(nested_offset="x")}, "gives nested_offset 'x'"),
        ({STATE: state(nested_offset=float("nan"))}, "gives nested_offset nan"),
        ({STATE: state(nested_offset=None)}, "gives nested_offset None"),
        ({"weight": np.zeros((769, 1), np.float16)}, r"m.weight .* shape \[769, 1\], expected \[768, 1\]"),
        ({STATE: np.frombuffer(b"{no}", np.uint8)}, "is not JSON"),
        ({STATE: np.frombuffer(b"[]", np.uint8)}, "is no JSON object"),
        ({"weight.absmax": np.zeros(3, np.uint8)}, r"absmax .* shape \[3\], expected \[48\]"),
        ({"weight.quant_map": np.full(16, np.nan, np.float32)}, "quant_map .* holds nan"),
        ({"weight": np.zeros((5, 1), np.uint8)}, r"m.weight .* shape \[5, 1\], expected \[1536, 1\]"),
    ],
)
def test_a_damaged_module_is_named(change: dict[str, Any], said: str) -> None:
    tensors, _ = packers.bnb4(np.random.default_rng(1), 24, 128, nested=True)
    with pytest.raises(CheckpointError, match=said):
        read({**tensors, **change}, 24, 128)


def test_a_state_must_be_there_and_each_row_has_its_size() -> None:
    tensors, _ = packers.bnb4(np.random.default_rng(1), 24, 128)
    del tensors[STATE]
    with pytest.raises(CheckpointError, match=r"m.weight.absmax .* has no weight.quant_state"):
        read(tensors, 24, 128)
    tensors, _ = packers.bnb8(np.random.default_rng(1), 24, 80)
    with pytest.raises(CheckpointError, match=r"m.SCB .* shape \[23\], expected \[24\]"):
        read({**tensors, "SCB": tensors["SCB"][1:]}, 24, 80)
