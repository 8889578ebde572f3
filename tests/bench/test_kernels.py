"""octavo bench kernels: shapes of a model, and that a timed kernel computes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("octavo._native", reason="the C++ extension is not built")

from octavo.bench import kernels
from octavo.bench.cli import main
from octavo.bench.shapes import SHAPES
from octavo.config.arch import read_arch
from octavo.errors import ConfigError
from octavo.ops.contract import AttentionSpec


def test_shapes_of_a_model() -> None:
    shapes, spec = kernels.shapes_of(read_arch(SHAPES["qwen2.5-0.5b"], {}))
    assert shapes == [(1152, 896), (896, 896), (9728, 896), (896, 4864), (151936, 896)]
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (14, 2, 64)


def test_a_product_is_the_sum_over_its_matrices() -> None:
    bench = kernels.Bench("float32", 1, 1)
    one, case = bench.linear(32, 48, [1, 3], cold_bytes=3 * 32 * 48 * 4)
    assert one.operations == 2 * 32 * 48
    assert case.copies == 3
    assert case.nbytes == 32 * 48 * 4
    assert case.operations == 2 * 32 * 48 * 3
    from octavo.ops.contract import Param
    from octavo.weights.dummy import DummyWeights

    make = DummyWeights("float32").make
    table = make(Param((16, 48), kind="table", name="table")).dequantize()
    whole = 3 * make(Param((32, 48), kind="matrix", name="w0")).dequantize()
    np.testing.assert_allclose(case.model.forward(case.batch), table[2:3] @ whole.T, rtol=1e-4, atol=1e-5)
    names = [name for name, _ in case.model.plan.profile()]
    assert names.count(case.op) == 3


@pytest.mark.parametrize(("sequences", "rows", "context"), [(1, 1, 33), (3, 1, 20), (1, 40, 40)])
def test_attention_runs_and_is_counted(sequences: int, rows: int, context: int) -> None:
    bench = kernels.Bench("bfloat16", 1, 2)
    spec = AttentionSpec(0, 4, 2, 16, 0.25)
    case = bench.attention(spec, sequences, rows, context)
    found = bench.run(case)
    assert found["seconds"] > 0
    assert case.nbytes == 2 * 2 * 16 * 2 * context * sequences
    seen = sum(context - rows + at + 1 for at in range(rows)) * sequences
    assert case.operations == 4 * 4 * 16 * seen
    assert found["bytes_per_s"] == pytest.approx(case.nbytes / found["seconds"])


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_COLD_BYTES", 1 << 20)
    out = tmp_path / "k.json"
    words = ["kernels", "--rows", "1,2", "--contexts", "64", "--num-iters", "2", "--dtype", "float32"]
    assert main([*words, "--output-json", str(out), "--threads", "1"]) == 0
    result = json.loads(out.read_text())
    assert len(result["kernels"]) == 5 * 2 + 2
    assert result["read_bytes_per_s"] > 0
    assert result["peak_ops_per_s"] > 0
    assert "linear 3584x256, 2 rows" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--rows: 'x' is not"):
        main(["kernels", "--rows", "x"])
