"""Small models whose matrices are rounded while they are loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.build.bind import bind
from octavo.build.declare import declare
from octavo.build.load import load
from octavo.build.quantize import roundings
from octavo.config.arch import read_arch
from octavo.ops.contract import Precision, Runnable
from octavo.ops.reference import settled
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.dummy import DummyWeights

sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import LIMITS, tiny


@pytest.fixture
def dummy() -> Callable[..., Runnable]:
    """dummy(method, backend, precision): the tiny model with random weights."""

    def bound(method: str | None, backend: str = "native", precision: Precision | None = None) -> Runnable:
        model = tiny(tie_word_embeddings=True)
        weights = DummyWeights("bfloat16", 3)
        # Rounded by one hand: of two scales that are as good, each backend may choose another.
        tensors = [
            (param, settled(layout))
            for param, layout in load(model, weights, "bfloat16", roundings=roundings(model, method))
        ]
        return bind(model, tensors, precision or Precision("bfloat16", "float32"), LIMITS, backend, threads=2)

    return bound


@pytest.fixture
def checkpoint() -> Callable[..., Runnable]:
    """checkpoint(folder, method): a folder's model in float32, its matrices rounded."""

    def bound(folder: Path, method: str | None, precision: Precision | None = None) -> Runnable:
        model = declare(read_arch(json.loads((folder / "config.json").read_text())))
        files = open_checkpoint(folder)
        tensors = load(model, files, "float32", roundings=roundings(model, method))
        return bind(model, tensors, precision or Precision(), LIMITS, "native", threads=2)

    return bound
