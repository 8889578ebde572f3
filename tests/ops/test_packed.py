"""Packed weights of every layout in a file: read back to the last bit, damage found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quant_cases import CASES, QuantCase

from octavo import _native
from octavo.ops.contract import Param
from octavo.ops.layouts import Fp8
from octavo.ops.native import pack
from octavo.ops.packed import PackedFile


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_weight_comes_back_as_it_was(case: QuantCase, tmp_path: Path) -> None:
    layout = case.make(np.random.default_rng(0), 33, 257)
    pool = _native.Pool(1)
    weight = pack(pool, _native.Arena(), Param((33, 257), kind="matrix", name="w"), layout, _native.isas()[0])
    file = PackedFile(tmp_path / "weights")
    file.write({"w": weight}, file.path)
    found = file.read(pool, {"w"})
    assert found is not None
    assert _native.weight_form(found["w"]) == _native.weight_form(weight)
    np.testing.assert_array_equal(_native.weight_bytes(found["w"]), _native.weight_bytes(weight))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert file.read(pool, {"w"}) is None


@pytest.mark.parametrize(("kind", "code"), [("e4m3", 0x7F), ("e4m3", 0xFF), ("e5m2", 0x7C), ("e5m2", 0xFE)])
def test_floats_that_are_no_numbers_are_refused(kind: str, code: int) -> None:
    codes = np.zeros((3, 40), np.uint8)
    codes[2, 39] = code
    layout = Fp8(codes, kind, np.ones((3, 1), np.float32), 40)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a number"):
        pack(
            _native.Pool(1),
            _native.Arena(),
            Param((3, 40), kind="matrix", name="w"),
            layout,
            _native.isas()[0],
        )
