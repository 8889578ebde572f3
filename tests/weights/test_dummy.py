from __future__ import annotations

import numpy as np
import pytest

from octavo.ops.contract import Param
from octavo.weights.dummy import DummyWeights


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_matrices_have_the_scale_of_trained_ones(dtype: str) -> None:
    param = Param((512, 900), kind="matrix", name="blocks.0.mlp.up.weight")
    made = DummyWeights(dtype).make(param)
    assert (made.dtype, made.shape) == (dtype, (512, 900))
    values = made.dequantize()
    assert abs(values.std() * 30 - 1) < 0.02
    assert abs(values.mean()) < 1e-3
    assert len(np.unique(values[:, 0])) > 300


def test_a_matrix_larger_than_the_block_repeats_no_row() -> None:
    values = DummyWeights("bfloat16").make(Param((3000, 896), kind="table", name="embed.weight")).dequantize()
    assert len(np.unique(values, axis=0)) == 3000
    assert abs(values.std() / 0.02 - 1) < 0.02


def test_vectors() -> None:
    dummy = DummyWeights("bfloat16")
    norm = dummy.make(Param((64,), name="norm.weight"))
    assert norm.dtype == "float32"
    assert abs(norm.data.mean() - 1) < 0.02
    assert abs(dummy.make(Param((64,), name="q.bias")).data.mean()) < 0.02


def test_the_same_seed_gives_the_same_weights_and_names_differ() -> None:
    a, b = Param((8, 8), kind="matrix", name="a"), Param((8, 8), kind="matrix", name="b")
    one, two = DummyWeights("float32"), DummyWeights("float32")
    assert np.array_equal(one.make(b).data, two.make(b).data)
    assert not np.array_equal(one.make(a).data, one.make(b).data)
    assert not np.array_equal(one.make(a).data, DummyWeights("float32", seed=1).make(a).data)
