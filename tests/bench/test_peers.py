"""Other engines in turns with Octavo: fakes that speak as they do, what is missing, transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.bench import peers
from octavo.bench.cli import main
from octavo.errors import ConfigError, OctavoError

POCKET = Path(__file__).parents[2] / "octavo/assets/pocket"


def work(command: Path | str | None = None, **changes) -> peers.Work:
    """What both sides do, for a small model."""
    usual = {"batch": 1, "input_len": 10, "output_len": 6, "threads": 1, "peer_model": "m.gguf"}
    return peers.Work(
        model=str(POCKET),
        dtype="float32",
        random=False,
        command=command and str(command),
        **{**usual, **changes},
    )


def program(folder: Path, text: str) -> Path:
    """An executable shell script."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_resident_peer(tmp_path: Path) -> None:
    lines = """echo noise; echo '{"version": "9.9"}'
    while read line; do echo '{"prefill_s": 0.5, "decode_s": 0.25}'; done"""
    with peers.peer("transformers", work(program(tmp_path, lines), batch=2)) as (name, turn):
        assert name == "transformers 9.9"
        assert turn() == turn() == peers.Speeds(40.0, 40.0, 0.75)


def test_llama_bench(tmp_path: Path) -> None:
    rows = [{"n_prompt": 10, "n_gen": 0, "avg_ts": 90.5}, {"n_prompt": 0, "n_gen": 6, "avg_ts": 30.25}]
    command = program(tmp_path, f"echo \"$@\" > {tmp_path}/words; echo '{json.dumps(rows)}'")
    with peers.peer("llamacpp", work(command)) as (_, turn):
        assert turn() == peers.Speeds(90.5, 30.25)
    assert (tmp_path / "words").read_text() == "-m m.gguf -p 10 -n 6 -t 1 -r 1 -o json\n"


def test_vllm_bench(tmp_path: Path) -> None:
    command = program(
        tmp_path, 'while [ "$1" != --output-json ]; do shift; done; echo \'{"avg_latency": 1.5}\' > "$2"'
    )
    with peers.peer("vllm", work(command)) as (_, turn):
        assert turn() == peers.Speeds(latency_s=1.5)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ollama", {}, "There are: transformers, llamacpp, vllm"),
        ("llamacpp", {"command": "/no/llama-bench"}, "llama.cpp is not here"),
        ("vllm", {"command": "/no/vllm"}, "vLLM is not here"),
        ("transformers", {"command": "/no/python"}, "Python is not here"),
        ("transformers", {"command": "false"}, "transformers is not here"),
        ("llamacpp", {"command": "true", "peer_model": None}, "GGUF files only"),
        ("llamacpp", {"command": "true", "batch": 2}, "runs one sequence"),
    ],
)
def test_what_is_missing_is_said(name: str, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said), peers.peer(name, work(**changes)):
        pass


def test_a_peer_that_fails(tmp_path: Path) -> None:
    command = program(tmp_path, "echo trouble ahead >&2; exit 3")
    with peers.peer("vllm", work(command)) as (_, turn), pytest.raises(OctavoError, match="code 3: trouble"):
        turn()
    short = program(tmp_path, 'echo \'{"version": "1"}\'')
    with (
        peers.peer("transformers", work(short)) as (_, turn),
        pytest.raises(OctavoError, match="in the middle"),
    ):
        turn()


def test_ratios_compare_within_a_round() -> None:
    ours = iter([peers.Speeds(1.0, 1.0, 1.0), peers.Speeds(20.0, None, 2.0), peers.Speeds(40.0, None, 4.0)])
    theirs = iter([peers.Speeds(9.0, 9.0, 9.0), peers.Speeds(10.0, 5.0, 6.0), peers.Speeds(10.0, 5.0, 4.0)])
    found = peers.compare(lambda: next(ours), "peer 1", lambda: next(theirs), 2)
    assert found["ratio"] == {
        "prefill_tokens_per_s": {"median": 3.0, "min": 2.0, "max": 4.0},
        "latency_s": {"median": 2.0, "min": 1.0, "max": 3.0},
    }
    assert "3.00x" in peers.text(found)


def test_latency_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    command = program(
        tmp_path, 'while [ "$1" != --output-json ]; do shift; done; echo \'{"avg_latency": 9}\' > "$2"'
    )
    words = ["latency", "--input-len", "8", "--output-len", "4", "--batch-size", "1", "--num-iters", "1"]
    words += ["--num-iters-warmup", "0", "--max-model-len", "64", "--rounds", "2", "--threads", "1"]
    assert main([*words, "--against", "vllm", "--peer-command", str(command)]) == 0
    assert "2 rounds in turns" in capsys.readouterr().out


def test_transformers_itself() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from octavo.bench import peer_transformers

    asked = {
        "model": str(POCKET),
        "dtype": "float32",
        "random": False,
        "batch": 2,
        "input_len": 5,
        "output_len": 3,
    }
    model = peer_transformers._load(asked, torch, transformers)
    found = peer_transformers._run(asked, torch, model)
    assert min(found["prefill_s"], found["decode_s"]) > 0
