"""octavo bench sweep: every combination, a table, a plot; and the plots themselves."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from fake_server import fake_server

from octavo.bench import plots, sweep
from octavo.bench.cli import main
from octavo.errors import ConfigError


def test_combinations() -> None:
    names, values = sweep.varied(["batch-size=1,2", "--input-len=8,16"])
    assert names == ["batch-size", "input-len"]
    assert values == [("1", "8"), ("1", "16"), ("2", "8"), ("2", "16")]
    for bad in ([], ["batch-size"], ["batch-size="], ["=1"]):
        with pytest.raises(ConfigError):
            sweep.varied(bad)


def test_a_sweep_over_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "s.json", tmp_path / "s.svg"
    with fake_server() as server:
        words = ["sweep", "serve", "--base-url", server.url, "--num-prompts", "3", "--disable-tqdm"]
        words += [
            "--vary",
            "max-concurrency=1,2",
            "output-len=2,4",
            "--output-json",
            str(out),
            "--plot",
            str(plot),
        ]
        assert main(words) == 0
        assert {body["max_tokens"] for body in server.bodies} == {2, 4}
    result = json.loads(out.read_text())
    assert [run["varied"]["max-concurrency"] for run in result["runs"]] == ["1", "1", "2", "2"]
    assert [run["result"]["total_output_tokens"] for run in result["runs"]] == [6, 12, 6, 12]
    assert "TTFT p99 ms" in capsys.readouterr().out
    root = xml.etree.ElementTree.fromstring(plot.read_text())
    assert len(root.findall("{*}polyline")) == 2


def test_a_sweep_over_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    words = ["sweep", "latency", "--vary", "batch-size=1,3", "--input-len", "8", "--output-len", "4"]
    words += ["--num-iters", "1", "--num-iters-warmup", "0", "--max-model-len", "64", "--threads", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "batch-size=3:" in out
    assert "decode tok/s" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep"], "needs a benchmark to repeat"),
        (["sweep", "kernels"], "needs a benchmark to repeat"),
        (["sweep", "latency", "--batchsize", "1"], "Did you mean --batch-size"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_charts_hold_any_numbers() -> None:
    lines = [
        plots.Line("a < b & c", [(1.0, 2.0), (1000.0, 5.0), (float("nan"), 1.0)]),
        plots.Line("flat", [(1.0, 0.0)]),
        plots.Line("none", []),
    ]
    for log_x in (False, True):
        root = xml.etree.ElementTree.fromstring(plots.svg(plots.chart("t", "x", "y", lines, log_x=log_x)))
        curve = root.findall("{*}polyline")[0]
        points = [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
        assert len(points) == 2
        assert all(0 <= x <= 720 and 0 <= y <= 420 for x, y in points)
        assert points[0][0] < points[1][0]
        assert points[0][1] > points[1][1]
    assert "<svg" in plots.svg(plots.chart("t", "x", "y", []))


def test_a_png(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "c.png"
    lines = [plots.Line("one", [(1.0, 2.0), (3.0, 4.0)]), plots.Line("none", [])]
    plots.check_name(str(path))
    plots.save(str(path), plots.chart("title", "x", "y", lines))
    with image.open(path) as drawn:
        assert drawn.size == (1440, 840)
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    assert {(255, 255, 255), (0x1F, 0x77, 0xB4)} <= colours


def test_plots_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="SVG or PNG"):
        plots.check_name("x.pdf")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.ImageFont", None)
    with pytest.raises(ConfigError, match="Pillow") as error:
        plots.check_name("x.png")
    assert "octavo[plot]" in str(error.value)
    plots.check_name("x.SVG")
