"""octavo top: reading /metrics, the frame, and servers that are not there."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import run
from octavo.cli.scrape import look, quantiles, rate
from octavo.errors import OctavoError
from octavo.server.metrics import Metrics
from octavo.types.stats import EngineStats, RequestTimes

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from fake_service import FakeService
from running import Running


def text(prefix: str = "vllm:", **stats: Any) -> str:
    """/metrics of a server whose engine says this, after a request of 0.2 s to its first token."""
    service = FakeService()
    service.stats = lambda: EngineStats(**stats)  # type: ignore[method-assign]
    metrics = Metrics(prefix)
    metrics.watch(service, "tuned")
    metrics.on_finish(
        RequestTimes(
            arrival_s=0.0, first_token_s=0.2, last_token_s=3.0, prompt_tokens=9, output_tokens=3,
            finish_reason="length",
        )
    )  # fmt: skip
    return metrics.render().decode()


@pytest.mark.parametrize("prefix", ["vllm:", "octavo_"])
def test_a_look(prefix: str) -> None:
    before = look(text(prefix, generation_tokens_total=100), 10.0)
    now = look(text(prefix, generation_tokens_total=350, running=3, waiting=1), 15.0)
    assert now.total("num_requests_running") == 3
    assert now.labels("num_requests_running", "model_name") == ["tuned"]
    assert rate(before, now, "generation_tokens_total") == 50.0
    assert rate(now, before, "generation_tokens_total") == 0.0, "a restart is no negative rate"
    assert now.by("request_success_total", "finished_reason")["length"] == 1


def test_quantiles_are_prometheus_own() -> None:
    def histogram(*counts: int) -> str:
        edges = ("0.1", "0.5", "1.0", "+Inf")
        lines = [f'vllm:t_bucket{{le="{edge}"}} {count}' for edge, count in zip(edges, counts, strict=True)]
        return "\n".join(["# TYPE vllm:t histogram", *lines, "vllm:num_requests_running 0", ""])

    nothing, some = look(histogram(0, 0, 0, 0), 0.0), look(histogram(0, 4, 8, 8), 1.0)
    assert quantiles(nothing, some, "t", (0.25, 0.5, 0.75)) == pytest.approx([0.3, 0.5, 0.75])
    assert quantiles(some, look(histogram(2, 6, 10, 10), 2.0), "t", (0.5,)) == pytest.approx([0.05])
    assert quantiles(some, some, "t", (0.5,)) == pytest.approx([0.5]), "nothing new: all that there is"
    assert quantiles(nothing, nothing, "t", (0.5,)) == [None]
    assert quantiles(nothing, look(histogram(0, 0, 0, 3), 1.0), "t", (0.5,)) == [1.0], "above the last edge"


def test_what_is_no_metrics_page() -> None:
    with pytest.raises(OctavoError, match="names no requests"):
        look("process_cpu_seconds_total 1.0\n", 0.0)
    with pytest.raises(OctavoError, match="not in Prometheus"):
        look("<html> hello {\n", 0.0)


def test_one_frame_of_a_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "100")
    with Running(FakeService(), api_keys=("secret",)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert run(["top", server.url, "--once", "--interval", "0.05"]) == 0
        shown = capsys.readouterr().out
        assert run(["top", "--url", f"{server.url}/v1", "--once", "--interval", "0.05"]) == 0
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert run(["top", server.url, "--once"]) == 1
    assert "pocket at http://127.0.0.1" in shown
    assert "0 running, 0 waiting" in shown
    assert "50.0%" in shown
    assert "First token" in shown
    assert "(401)" in capsys.readouterr().err


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run(["top", f"127.0.0.1:{port}"]) == 1
    assert "No server answers at" in capsys.readouterr().err


def test_without_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run(["top"]) == 1
    assert "octavo[top]" in capsys.readouterr().err
