"""octavo bench serve against a fake server: what it sends, what it measures, what it says of failures."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import xml.etree.ElementTree
from pathlib import Path

import pytest
from fake_server import fake_server

from octavo.bench import serve, serving
from octavo.bench.cli import main
from octavo.bench.client import Answer, Target, ask
from octavo.bench.data import Sample
from octavo.errors import ConfigError, OctavoError


def bench(url: str, *words: str) -> int:
    """One run against `url`."""
    return main(["serve", "--base-url", url, "--disable-tqdm", *words])


@pytest.mark.parametrize("mode", ["well", "until close", "no usage"])
def test_counts_and_vllms_names(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "r.json", tmp_path / "r.svg"
    words = ["--num-prompts", "6", "--random-input-len", "11", "--random-output-len", "5"]
    words += ["--max-concurrency", "2", "--save-result", "--save-detailed", "--result-filename", str(out)]
    words += [
        "--goodput",
        "ttft:60000",
        "--metric-percentiles",
        "50,99",
        "--metadata",
        "a=b",
        "--plot",
        str(plot),
    ]
    with fake_server(mode) as server:
        assert bench(server.url, *words) == 0
        assert server.peak <= 2
        assert len(server.bodies) == 7
        body = server.bodies[-1]
    assert body["path"] == "/v1/completions"
    assert (body["model"], body["max_tokens"], body["ignore_eos"], body["stream"]) == ("fake", 5, True, True)
    assert len(body["prompt"]) == 11
    result = json.loads(out.read_text())
    assert (result["completed"], result["failed"], result["num_prompts"]) == (6, 0, 6)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (66, 30)
    assert result["output_throughput"] == pytest.approx(30 / result["duration"])
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["max_concurrent_requests"] <= 2
    assert result["a"] == "b"
    assert 0 < result["mean_ttft_ms"] <= result["p99_ttft_ms"] <= result["p99_e2el_ms"]
    assert [len(gaps) for gaps in result["itls"]] == [4] * 6
    assert result["generated_texts"] == ["word " * 5] * 6
    shown = capsys.readouterr().out
    for line in ("Successful requests:", "Median TPOT (ms):", "P99 ITL (ms):", "Request goodput"):
        assert line in shown
    assert xml.etree.ElementTree.fromstring(plot.read_text()).tag.endswith("svg")


def test_chat_and_headers(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("Hello\nGoodbye\n")
    words = ["--backend", "openai-chat", "--dataset-name", "file", "--dataset-path", str(prompts)]
    words += [
        "--output-len",
        "3",
        "--model",
        "second",
        "--api-key",
        "k",
        "--header",
        "X-A=1",
        "--no-ignore-eos",
    ]
    words += ["--extra-body", '{"top_k": 4}', "--num-warmups", "0"]
    with fake_server() as server:
        assert bench(server.url, *words) == 0
        assert {body["path"] for body in server.bodies} == {"/v1/chat/completions"}
        said = {body["messages"][0]["content"] for body in server.bodies}
        assert said == {"Hello", "Goodbye"}
        body, headers = server.bodies[0], server.headers[0]
    assert "ignore_eos" not in body
    assert (body["model"], body["top_k"]) == ("second", 4)
    assert (headers["Authorization"], headers["X-A"]) == ("Bearer k", "1")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("refuses", "400: .*no such thing"),
        ("fails", "the engine died"),
        ("breaks off", "IncompleteReadError|Error"),
    ],
)
def test_failures_are_answers(mode: str, said: str) -> None:
    with fake_server(mode) as server:
        body = {"prompt": "x", "max_tokens": 4}
        answer = asyncio.run(ask(Target(server.url), "/v1/completions", body))
        assert not answer.ok
        with pytest.raises(OctavoError, match=f"first request.*({said})"):
            bench(server.url, "--num-prompts", "1")


def test_a_run_without_one_good_answer_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server("fails") as server:
        assert bench(server.url, "--num-prompts", "3", "--num-warmups", "0", "--output-len", "4") == 1
    seen = capsys.readouterr()
    assert "Failed requests:                        3" in seen.out
    assert "the engine died" in seen.err


def test_nobody_there() -> None:
    with pytest.raises(OctavoError, match=r"No server answers at http://127\.0\.0\.1:9"):
        bench("http://127.0.0.1:9", "--ready-check-timeout-sec", "0")
    with pytest.raises(ConfigError, match="--base-url"):
        bench("ftp://x")


def test_arrivals() -> None:
    items = [Sample("x", 1) for _ in range(4001)]
    for burstiness in (1.0, 0.3):
        options = serve.Options(request_rate="20", burstiness=burstiness)
        times = serve.arrivals(items, options, random.Random(1))
        gaps = [b - a for a, b in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean
        assert mean == pytest.approx(1 / 20, rel=0.1)
        assert spread == pytest.approx(burstiness**-0.5, rel=0.1)
    assert set(serve.arrivals(items, serve.Options(), random.Random(1))) == {0.0}
    trace = [Sample("x", 1, 0.0), Sample("x", 1, 6.0)]
    assert serve.arrivals(trace, serve.Options(trace_speed=3), random.Random(1)) == [0.0, 2.0]


def test_figures_by_hand() -> None:
    one = Answer(10, 3, 100.0, 0.5, [0.1, 0.3], 0.9)
    two = Answer(20, 1, 100.2, 0.2, [], 0.2)
    bad = Answer(error="x")
    shown = serving.read_shown("ttft", "50", ["ttft:400", "tpot:100"])
    found = serving.figures([one, two, bad], 2.0, shown)
    assert (found["completed"], found["failed"]) == (2, 1)
    assert found["mean_ttft_ms"] == pytest.approx(350)
    assert found["median_tpot_ms"] == pytest.approx(200)
    assert found["mean_itl_ms"] == pytest.approx(200)
    assert found["p50_e2el_ms"] == pytest.approx(550)
    assert found["request_goodput"] == pytest.approx(0.5)
    assert found["total_token_throughput"] == pytest.approx(34 / 2)
    assert found["max_output_tokens_per_s"] == 4
    assert found["max_concurrent_requests"] == 2


@pytest.mark.parametrize(
    ("metrics", "percentiles", "goodput", "said"),
    [
        ("ttft,speed", "99", [], "'speed'"),
        ("ttft", "p99", [], "--metric-percentiles"),
        ("ttft", "101", [], "0 to 100"),
        ("ttft", "99", ["ttft=5"], "--goodput"),
        ("ttft", "99", ["itl:5"], "'itl' has no bound"),
    ],
)
def test_bad_reports(metrics: str, percentiles: str, goodput: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        serving.read_shown(metrics, percentiles, goodput)


def test_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server's name one is started, and ended."""
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    words = ["serve", "--num-prompts", "4", "--input-len", "8", "--output-len", "6", "--disable-tqdm"]
    assert main([*words, "--max-model-len", "128", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "Total generated tokens:                 24" in out
    with pytest.raises(OctavoError, match=r"did not start .*exit code 1.*no-such-model"):
        main([*words, "./no-such-model"])
