"""The command: dispatch, help that starts at once, errors in one sentence, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo import __version__
from octavo.cli.main import run

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "starlette", "uvicorn", "jinja2", "tokenizers", "sentencepiece", "msgspec", "yaml", "torch")


def imported_by(*words: str) -> set[str]:
    """Top-level modules that ``python -m octavo WORDS`` loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "octavo", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=True,
    )  # fmt: skip
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("serve", "--help"), ("help", "serve")])
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    assert imported_by(*words).isdisjoint(HEAVY)


def test_help_is_fast() -> None:
    """The best of three, against the promise of 0.5 s."""
    best = 9.0
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "octavo", "--help"], cwd=ROOT, capture_output=True, check=True)
        best = min(best, time.perf_counter() - begun)
    assert best < 0.5


def test_importing_the_package_is_light() -> None:
    code = "import sys, octavo; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out = capsys.readouterr().out
    for command in (
        "serve",
        "chat",
        "complete",
        "run",
        "bench",
        "convert",
        "quantize",
        "inspect",
        "collect-env",
    ):
        assert f"  {command} " in out


@pytest.mark.parametrize(
    ("words", "text", "absent"),
    [
        (["serve", "--help"], "--max-model-len N", "--enforce-eager"),
        (["serve", "-h"], "--help=GROUP", "--enforce-eager"),
        (["serve", "--help=all"], "--enforce-eager", "--quick"),
        (["serve", "--help=gpu"], "--enforce-eager", "--port"),
        (["serve", "--help=log"], "--uvicorn-log-level", "--port"),
        (["serve", "--help=max-model-len"], "Longest prompt plus answer", "--port"),
        (["serve", "--help", "tensor_parallel_size"], "-tp, --tensor-parallel-size", "--port"),
        (["serve", "--help=prefix"], "--enable-prefix-caching", "--port"),
        (["--help=server"], "--port", "--dtype"),
        (["help", "max-num-seqs"], "Requests that run at the same time", "--port"),
        (["chat", "--help"], "-q, --quick TEXT", "--port"),
        (["complete", "--help"], "--system-prompt", "--port"),
        (["help", "bench"], "throughput", "--port"),
        (["help", "collect-env"], "octavo collect-env", "--port"),
    ],
)
def test_help_pages(words: list[str], text: str, absent: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out = capsys.readouterr().out
    assert text in out
    assert absent not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sreve"], "Unknown command 'sreve'. Did you mean serve?"),
        (["xyzzy"], "Unknown command 'xyzzy'. See octavo --help."),
        (["launch", "render"], "Unknown command 'launch'. There are no frontends apart from engines"),
        (["pull"], "Unknown command 'pull'. serve, chat and run download a model that is not here yet."),
        (["--port", "1"], "'--port' is no command. One comes first: octavo serve --port 1"),
        (["a/b"], "'a/b' is no command. One comes first: octavo serve a/b"),
        (["serve", "--prot", "1"], "Unknown flag --prot. Did you mean --port?"),
        (["serve", "a", "b"], "Unexpected word 'b' after the model."),
        (["serve", "a", "--model", "b"], "Two models named: a and b."),
        (["serve", "--help=nonsuch"], "there is no group or flag 'nonsuch'"),
        (["serve", "m", "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["chat", "--url", "ftp://x"], "--url: 'ftp://x' is not accepted"),
        (["serve", "m", "-pp", "2"], "-pp: 2 is not possible here"),
    ],
)
def test_usage_errors_are_one_sentence_and_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("octavo: ")
    assert seen.err.count("\n") == 1
    assert message in seen.err


def test_a_missing_model_is_1_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["complete", str(tmp_path / "no-such-model"), "-q", "x"]
    assert run(words) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    with pytest.raises(Exception, match="no-such-model"):
        run([*words, "--debug"])


def test_config_file_gives_way_to_the_line(tmp_path: Path) -> None:
    from octavo.cli.common import read_words

    file = tmp_path / "c.yaml"
    file.write_text("model: from-file\nport: 1\nmax-num-seqs: 3\nenforce_eager: true\n")
    settings = read_words(["mine", "--config", str(file), "--port", "2"])
    assert settings.engine == {"model": "mine", "max_num_seqs": 3}
    assert settings.server == {"port": 2}
    assert read_words(["--config", str(file)]).engine["model"] == "from-file"


def test_collect_env_hides_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OCTAVO_API_KEY", "canary")
    assert run(["collect-env"]) == 0
    out = capsys.readouterr().out
    assert "canary" not in out
    for name in ("octavo", "python", "cpu", "memory", "native", "numpy", "VLLM_CPU_KVCACHE_SPACE"):
        assert any(line.startswith(name) for line in out.splitlines()), name
