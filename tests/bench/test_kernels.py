"""octavo bench kernels: shapes of a model, and that a timed kernel computes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

pytest.importorskip("octavo._native", reason="the C++ extension is not built")

from octavo.bench import kernel_cases, kernels
from octavo.bench.cli import main
from octavo.bench.formats import FORMATS
from octavo.bench.shapes import SHAPES
from octavo.config.arch import read_arch
from octavo.errors import ConfigError
from octavo.ops.contract import AttentionSpec
from octavo.ops.layouts import Experts, Layout, Stack


def test_shapes_of_a_model() -> None:
    shapes, spec = kernels.shapes_of(read_arch(SHAPES["qwen2.5-0.5b"], {}))
    assert shapes == [(1152, 896), (896, 896), (9728, 896), (896, 4864), (151936, 896)]
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (14, 2, 64)


def test_a_product_is_timed_over_its_matrices() -> None:
    bench = kernel_cases.Bench("float32", 1, 1)
    one, few, many = bench.linear(32, 48, [1, 3, 65], cold_bytes=3 * 32 * 48 * 4)
    assert one.operations == 2 * 32 * 48
    assert one.nbytes == few.nbytes == many.nbytes == 32 * 48 * 4
    assert few.operations == 2 * 32 * 48 * 3
    assert min(one.seconds(), few.seconds(), many.seconds()) > 0
    assert one.arithmetic == "float32"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_its_product(kind: str) -> None:
    """The plan's answer is the product with the numbers that the layout stands for."""
    layout = FORMATS[kind](np.random.default_rng(1), 32, 256)
    assert np.isfinite(layout.dequantize()).all()
    bench = kernel_cases.Bench("bfloat16", 1, 1)
    (case,) = bench.linear(32, 256, [2], cold_bytes=1, kind=kind)
    assert case.seconds() > 0
    assert case.format == kind
    assert case.nbytes <= 32 * 256 * 4
    assert case.arithmetic in ("float32", "bfloat16", "int8")


def test_every_layout_is_timed() -> None:
    made = {type(make(np.random.default_rng(0), 16, 256)) for make in FORMATS.values()}
    # A stack and a set of experts are several matrices of the others.
    assert set(get_args(Layout)) - {Stack, Experts} <= made


@pytest.mark.parametrize(("sequences", "rows", "context"), [(1, 1, 33), (3, 1, 20), (1, 40, 40)])
def test_attention_runs_and_is_counted(sequences: int, rows: int, context: int) -> None:
    bench = kernel_cases.Bench("bfloat16", 1, 2)
    spec = AttentionSpec(0, 4, 2, 16, 0.25)
    case = bench.attention(spec, sequences, rows, context)
    found = bench.run(case)
    assert found["seconds"] > 0
    assert case.nbytes == 2 * 2 * 16 * 2 * context * sequences
    seen = sum(context - rows + at + 1 for at in range(rows)) * sequences
    assert case.operations == 4 * 4 * 16 * seen
    assert found["bytes_per_s"] == pytest.approx(case.nbytes / found["seconds"])


def test_what_stands_between() -> None:
    bench = kernel_cases.Bench("bfloat16", 1, 1)
    for ffn in (64, 16):
        cases = bench.between(32, ffn, AttentionSpec(0, 4, 2, 16, 0.25), 3)
        assert [case.name for case in cases] == [
            f"{op}, 3 rows" for op in ("embedding", "rms_norm", "add", "rotate", "gated")
        ]
        assert all(case.seconds() > 0 for case in cases)
    case = bench.sampler(500, 2, "greedy", temperature=0.0)
    assert case.nbytes == 4000
    assert case.seconds() > 0


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cases, "COLD_BYTES", 1 << 20)
    out = tmp_path / "k.json"
    words = ["kernels", "--rows", "1,2", "--contexts", "64", "--num-iters", "2", "--formats", "bfloat16,int4"]
    assert main([*words, "--output-json", str(out), "--threads", "1"]) == 0
    result = json.loads(out.read_text())
    assert len(result["kernels"]) == 2 * 5 * 2 + 3 + 2 * 5 + 2 * 3
    assert result["read_bytes_per_s"] > 0
    assert min(result["peak_ops_per_s"].values()) > 0
    said = capsys.readouterr().out
    assert "linear 3584x256, 2 rows" in said
    assert "sampler 3584, greedy, 1 row" in said
    for wrong in (["--rows", "x"], ["--formats", "int3"], ["--parts", "tea"]):
        with pytest.raises(ConfigError, match=wrong[1]):
            main(["kernels", *wrong])
