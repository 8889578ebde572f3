"""Which backends a model test runs on, and how a checkpoint becomes a bound model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.build.bind import BACKENDS
from octavo.build.bind import bind as bind_model
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.build.quantize import quantize
from octavo.build.shard import shard
from octavo.config.arch import read_arch
from octavo.ops.contract import Limits, Precision, Runnable
from octavo.weights.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).parent))

FLOAT32 = Precision()
LIMITS = Limits(tokens=256, sequences=8, logit_rows=256, block_size=16, max_model_len=256)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bind(backend: str) -> Callable[..., Runnable]:
    """bind(folder, precision=..., overrides=...) -> the folder's checkpoint, bound to this test's backend."""

    def bound(
        folder: Path, precision: Precision = FLOAT32, overrides: dict[str, Any] | None = None
    ) -> Runnable:
        arch = read_arch(json.loads((folder / "config.json").read_text()), overrides)
        model = shard(declare(arch))
        tensors = load(model, open_checkpoint(folder), "float32", stored=quantize(arch))
        return bind_model(model, tensors, precision, LIMITS, backend)

    return bound
