"""Which backends the op cases run on; the reference is NumPy's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.ops.contract import Runnable
from octavo.ops.torch_ops import TorchRunnable

sys.path.insert(0, str(Path(__file__).parent))

BACKENDS: dict[str, Callable[..., Runnable]] = {"torch": TorchRunnable}


@pytest.fixture(params=sorted(BACKENDS))
def runnable(request: pytest.FixtureRequest) -> Callable[..., Runnable]:
    """runnable(model, tensors, precision, limits) of the backend under test."""
    return BACKENDS[request.param]
