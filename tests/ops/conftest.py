"""Which backends the op cases run on; the reference is NumPy's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import _native
from octavo.build.bind import bind
from octavo.ops.contract import Limits, Precision, Runnable

sys.path.insert(0, str(Path(__file__).parent))


KINDS = [*(f"native-{isa}" for isa in _native.isas()), "torch"]
"""The native kernels of every instruction set that this machine has, and the other twin."""


@pytest.fixture(params=KINDS)
def runnable(request: pytest.FixtureRequest) -> Callable[..., Runnable]:
    """runnable(model, precision, limits): a model of op_cases bound to the backend under test."""
    backend, _, isa = request.param.partition("-")

    def bound(model: Any, precision: Precision, limits: Limits) -> Runnable:
        tensors = [(param, model.tensors[param.name]) for _, param in model.named_params()]
        return bind(model, tensors, precision, limits, backend, threads=2, isa=isa or None)

    return bound
