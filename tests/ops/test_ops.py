"""Every op on every backend against the NumPy reference.

Tolerance: float32 sums in another order, 1e-5 of the largest result; where an input is rounded to a smaller
float first, both sides round the same number, so the bound stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from op_cases import BLOCKS, CASES, LIMITS, OpCase

from octavo.ops.contract import Runnable
from octavo.ops.reference import NumpyRunnable


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_op_equals_the_reference(case: OpCase, runnable: Callable[..., Runnable]) -> None:
    model = case.build()
    tested = runnable(model, case.precision, LIMITS)
    reference = NumpyRunnable(model, model.tensors, case.precision, LIMITS)
    tested.allocate_cache(BLOCKS)
    reference.allocate_cache(BLOCKS)
    for batch in case.steps:
        expected = reference.forward(batch)
        got = np.array(tested.forward(batch))
        assert got.dtype == np.float32
        assert got.shape == expected.shape
        assert np.isfinite(got).all()
        bound = 1e-5 * max(1.0, float(np.abs(expected).max(initial=0)))
        assert np.abs(got - expected).max(initial=0) <= bound


def test_a_new_cache_forgets(runnable: Callable[..., Runnable]) -> None:
    case = next(c for c in CASES if c.name == "attention-gqa")
    model = case.build()
    tested = runnable(model, case.precision, LIMITS)
    tested.allocate_cache(BLOCKS)
    first = [np.array(tested.forward(batch)) for batch in case.steps]
    tested.allocate_cache(BLOCKS)
    again = [np.array(tested.forward(batch)) for batch in case.steps]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
