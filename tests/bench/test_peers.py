"""Other engines in turns with Octavo: fakes that speak as they do, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.bench import against, peer_worker, peers
from octavo.bench.cli import main
from octavo.bench.peers import Figure
from octavo.errors import ConfigError, OctavoError

POCKET = Path(__file__).parents[2] / "octavo/assets/pocket"
PP, B1, B8 = Figure(512, 1, 0), Figure(128, 1, 32), Figure(128, 8, 32)


def work(name: str, command: Path | str | None = None, **changes) -> peers.Work:
    """What both sides run, for a small model in a form that is there."""
    usual = {"bits": 16, "models": {name: "m.gguf"}, "commands": {name: str(command)} if command else {}}
    return peers.Work(POCKET, "bfloat16", threads=1, vocab=3584, **{**usual, **changes})


def program(folder: Path, text: str, name: str = "program") -> Path:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_figures_are_read() -> None:
    assert Figure.read("pp512", 128, 32) == Figure(512, 1, 0, "pp512")
    assert Figure.read("b8", 128, 32) == Figure(128, 8, 32, "b8")
    assert Figure.read("b2@4096", 128, 32) == Figure(4096, 2, 32, "b2@4096")
    assert Figure.read("b1@0", 128, 32).prompt == 1
    assert (PP.name, B8.name) == ("pp512", "b8")
    for word in ("b", "pp", "x8", "b0", "b8x", "pb8", "pp8@2", "b8@"):
        with pytest.raises(ConfigError, match="not like pp512, b8 or b1@2048"):
            Figure.read(word, 128, 32)


def test_a_resident_peer(tmp_path: Path) -> None:
    lines = f"""echo noise; echo '{{"version": "9.9"}}'
    while read line; do echo "$line" >> {tmp_path}/asked; echo '{{"tokens_per_s": 12.5}}'; done"""
    with peers.peer("openvino", work("openvino", program(tmp_path, lines))) as (name, measure):
        assert name == "OpenVINO GenAI 9.9"
        assert measure(PP) == measure(B8) == 12.5
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == [{"prompt": 512, "batch": 1, "output": 0}, {"prompt": 128, "batch": 8, "output": 32}]


def test_llama_bench(tmp_path: Path) -> None:
    program(tmp_path, f'echo "$@" >> {tmp_path}/words; echo \'[{{"avg_ts": 90.5}}]\'', "llama-bench")
    rows = '{"speed_tg": 1.0}\n{"speed_tg": 70.25}'
    program(tmp_path, f"echo \"$@\" >> {tmp_path}/words; echo; echo '{rows}'; echo", "llama-batched-bench")
    with peers.peer("llamacpp", work("llamacpp", tmp_path)) as (_, measure):
        assert [measure(PP), measure(B1), measure(B8)] == [90.5, 90.5, 70.25]
    assert (tmp_path / "words").read_text().splitlines() == [
        "-m m.gguf -t 1 -p 512 -n 0 -r 1 -o json",
        "-m m.gguf -t 1 -p 0 -n 32 -r 1 -o json -d 128",
        "-m m.gguf -t 1 -npp 128 -ntg 32 -npl 8 -pps -c 2048 --output-format jsonl",
    ]


def test_vllm_is_run_at_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libiomp5.so").touch()
    found = peers.environment("vllm", str(tmp_path / "bin/python"), 2)
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["LD_PRELOAD"].split()[0] == str(tmp_path / "lib/libiomp5.so")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "4-5")
    assert peers.environment("vllm", "/bin/python", 2)["VLLM_CPU_OMP_THREADS_BIND"] == "4-5"
    (tmp_path / "bin").mkdir()
    command, python = program(tmp_path / "bin", "", "vllm"), program(tmp_path / "bin", "", "python")
    assert peers._python("vllm", str(command)) == str(python)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ollama", {}, "There are: llamacpp, vllm, openvino, transformers"),
        ("llamacpp", {"command": "/no/llama-bench"}, "llama.cpp is not here"),
        ("vllm", {"command": "/no/vllm"}, "vLLM is not here"),
        ("openvino", {"command": "/no/python"}, "OpenVINO GenAI is not here"),
        ("transformers", {"command": "false"}, "transformers is not here"),
    ],
)
def test_what_is_missing_is_said(name: str, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said), peers.peer(name, work(name, **changes)):
        pass


def test_a_peer_that_fails(tmp_path: Path) -> None:
    command = program(tmp_path, "echo trouble ahead >&2; exit 3")
    fails = pytest.raises(OctavoError, match="code 3: trouble")
    with peers.peer("llamacpp", work("llamacpp", command)) as (_, measure), fails:
        measure(PP)
    short = program(tmp_path, 'echo \'{"version": "1"}\'')
    fails = pytest.raises(OctavoError, match="in the middle of b8")
    with peers.peer("vllm", work("vllm", short)) as (_, measure), fails:
        measure(B8)


class _Steps(peer_worker.Stepped):
    """Every step gives each queued prompt a token; a prompt that was never seen takes a step more."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.ran: list[tuple[int, int]] = []

    def add(self, ids: list[int], tokens: int) -> None:
        self.left.append(tokens)
        self.ran.append((len(ids), tokens))

    def step(self) -> bool:
        self.left = [left - 1 for left in self.left if left > 1]
        return bool(self.left)


def test_decoding_is_timed_after_cached_prompts() -> None:
    engine = _Steps()
    work = {"prompt": 5, "batch": 2, "output": 3}
    assert peer_worker.rate(engine, 100, work) > 0
    assert engine.ran == [(5, 1), (5, 1), (5, 4), (5, 4)]
    assert peer_worker.rate(engine, 100, work) > 0
    assert engine.ran[4:] == [(5, 4), (5, 4)]
    assert (
        peer_worker.prompts(50, 2, 3, 1)
        == peer_worker.prompts(50, 2, 3, 1)
        != peer_worker.prompts(50, 2, 3, 2)
    )


class _Rates:
    """Octavo with given rates."""

    def __init__(self, *rates: float) -> None:
        self.rates = iter(rates)

    def turn(self, figure: Figure) -> tuple[float, float | None]:
        return next(self.rates), 0.5


def test_ratios_compare_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "_SETTLE_S", 0.0)
    slow, fast = iter([9.0, 10.0, 10.0]), iter([9.0, 10.0, 40.0])
    sides = {"a": lambda _: next(slow), "b": lambda _: next(fast)}
    (found,) = against.compare(_Rates(1.0, 20.0, 40.0), sides, [B8], 2)
    assert found["ratio"]["a"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["ratio"]["b"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert found["best_peer"] == "b"
    assert found["fraction_of_limit"] == 0.5
    said = against.text({"against": [found], "missing": {"vllm": "vLLM is not here"}})
    assert "3.00x" in said
    assert "b *" in said
    assert "Missing: vllm: vLLM is not here" in said


def test_latency_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    lines = """echo '{"version": "1"}'; while read line; do echo '{"tokens_per_s": 2.0}'; done"""
    command, out = program(tmp_path, lines), tmp_path / "r.json"
    words = ["latency", "--figures", "pp16,b2", "--input-len", "8", "--output-len", "4", "--rounds", "1"]
    words += ["--max-model-len", "64", "--threads", "1", "--output-json", str(out)]
    words += ["--against", "transformers,llamacpp", "--peer-command", f"transformers={command}"]
    assert main([*words, "llamacpp=/no/llama-bench"]) == 0
    said = capsys.readouterr().out
    assert "Missing: llamacpp: llama.cpp is not here" in said
    result = json.loads(out.read_text())
    assert [one["figure"] for one in result["against"]] == ["pp16", "b2"]
    for one in result["against"]:
        assert one["fraction_of_limit"] > 0
        (name,) = one["ratio"]
        assert one["ratio"][name]["median"] == pytest.approx(one["tokens_per_s"]["octavo"] / 2)
    with pytest.raises(ConfigError, match="names no peer"):
        main([*words, "--peer-model", "m.gguf"])


def test_transformers_itself() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    engine = peer_worker.Transformers({"model": str(POCKET), "dtype": "float32", "threads": 1})
    for output in (0, 2):
        assert peer_worker.rate(engine, 3584, {"prompt": 5, "batch": 2, "output": output}) > 0
