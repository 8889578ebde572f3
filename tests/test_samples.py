"""What the pages tell people to type works as it is written: their `sh` and `python` blocks run, in order.

A block that cannot run here (another machine's paths, minutes of work) has no language, or is indented.
The hub ids of the samples are folders with the bundled model, port 8000 is the page's own server.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ollama
import openai
import pytest
from safetensors.numpy import save_file

pytest.importorskip("octavo._native", reason="the extension is not built")

from octavo import launch
from octavo.bench import cli as bench
from octavo.bench import flags as bench_flags
from octavo.cli import batch_flags, convert_flags, inspect_flags, talk_flags, top_flags
from octavo.cli.common import read_words
from octavo.cli.main import COMMANDS, run
from octavo.cli.serve import server_settings
from octavo.config.environment import VARIABLES, read_environment
from octavo.config.flags import Table
from octavo.config.start import engine_config
from octavo.launch import POCKET
from tests.server.running import Running

ROOT = Path(__file__).resolve().parents[1]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [README, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]
QUOTING = "adding-"
"""Pages whose blocks are quotations of the source; tools/docs.py checks those."""
NOT_RUN = ("pip",)
"""Commands that would change the environment."""
PLACEHOLDERS = {"--help", "--flag", "--x", "--no-x"}
NOT_OURS = ("No CMAKE_CXX_COMPILER", "... requires a different Python")
"""What other programs say."""
TESTS_OWN = {"OCTAVO_LLAMA_CPP"}
LIMIT_S = 30
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PORT = re.compile(r"(localhost|127\.0\.0\.1):(?:8000|11434)\b")
_MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "home/models/qwen",
)
_POOLING = ("sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-reranker-v2-m3")
_SCRIPT = """\
from vllm import LLM, SamplingParams

print(LLM("Qwen/Qwen2.5-0.5B-Instruct").generate(["Once"], SamplingParams(max_tokens=4))[0].outputs[0].text)
"""
_REQUEST = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
}


def samples(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks that run."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command; one may go over several lines."""
    held = ""
    for line in block.replace("\\\n", " ").splitlines():
        held += line + "\n"
        with contextlib.suppress(ValueError):  # a quotation mark is open
            words = shlex.split(held, comments=True)
            held = ""
            if words:
                yield words
    assert not held.strip(), f"no whole command: {held}"


def adapter(folder: Path) -> None:
    """A LoRA adapter of the bundled model."""
    config = json.loads((POCKET / "config.json").read_text())
    width, rank = config["hidden_size"], 2
    rng = np.random.default_rng(0)
    root = "base_model.model.model.layers.0.self_attn.o_proj"
    folder.mkdir(parents=True)
    tensors = {
        f"{root}.lora_A.weight": rng.standard_normal((rank, width)).astype(np.float32),
        f"{root}.lora_B.weight": rng.standard_normal((width, rank)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(said))


def embedder(folder: Path) -> None:
    """The bundled model with sentence-transformers' files, which make vectors of it."""
    shutil.copytree(POCKET, folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "path": p, "type": f"sentence_transformers.models.{k}"} for i, (p, k) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the samples name, as the place where they run; the home is in it."""
    folder = tmp_path
    for name in _MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(POCKET)
    for name in _POOLING:
        embedder(folder / name)
    for name in ("sql", "poem"):
        adapter(folder / "adapters" / name)
    (folder / "script.py").write_text(_SCRIPT)
    (folder / "requests.jsonl").write_text(json.dumps(_REQUEST) + "\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("OCTAVO_CACHE", "off")
    monkeypatch.setattr("octavo.log.setup", lambda level=None: None)


class Page:
    """One page at work, and the server that its last `octavo serve` started."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._server: Running | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def serve(self, words: list[str]) -> None:
        """`octavo serve WORDS`, on a free port, in place of the server before."""
        self._stack.close()
        settings = read_words(words)
        config, server = engine_config(settings), server_settings(settings, read_environment())
        import msgspec

        def load(metrics: Any) -> Any:
            return launch.service(launch.build(config, server.served_names), metrics)

        said = {**msgspec.structs.asdict(server), "port": 0, "disable_access_log": True}
        self._server = self._stack.enter_context(Running(load, **said))

    def here(self, text: str) -> str:
        """`text` with the page's server in place of the one on port 8000."""
        if self._server is None and _PORT.search(text):
            self.serve([])
        return _PORT.sub(lambda found: f"{found[1]}:{self._server.port if self._server else 0}", text)

    def python(self, code: str) -> None:
        """A block by itself. Raises what it raises."""
        names: dict[str, Any] = {"__name__": "__main__"}
        try:
            exec(compile(self.here(code), "sample", "exec"), names)
        finally:
            for made in names.values():
                if isinstance(made, (openai.OpenAI, ollama.Client)):
                    made.close()

    def shell(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """One command. Raises AssertionError with what it said when it fails."""
        words = [self.here(word) for word in words]
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            self._patch.setenv(name, value)
        if words[:2] == ["octavo", "serve"]:
            self.serve(words[2:])
        elif words[0] == "octavo":
            if self._server is not None:
                self._patch.setattr("octavo.cli.talk.DEFAULT_URL", f"{self._server.url}/v1")
            capsys.readouterr()
            assert run([os.path.expanduser(word) for word in words[1:]]) == 0, capsys.readouterr().err
        elif words[0] in ("curl", "python"):
            command = [sys.executable, *words[1:]] if words[0] == "python" else [*words, "-sS"]
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip(), "no answer"
            assert '"error":{' not in done.stdout.replace(" ", ""), done.stdout
        else:
            assert words[0] in NOT_RUN, f"{words[0]}: no command that a sample may have"


RUNNING = [p for p in PAGES if samples(p) and not p.name.startswith(QUOTING) and p != CHINESE]


@pytest.mark.parametrize("page", RUNNING, ids=lambda p: p.name)
def test_samples_run(
    page: Path, workplace: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with Page(monkeypatch) as at_work:
        for language, block in samples(page):
            if language == "python":
                at_work.python(block)
                continue
            for words in commands(block):
                at_work.shell(words, capsys)


def bones(page: Path) -> tuple[list[tuple[str, str]], int, int]:
    """A page's samples without comments and texts (with a space, or in Chinese); its headings and rows."""

    def unsaid(found: re.Match[str]) -> str:
        return '"..."' if re.search(r"[^!-~]", found[1]) else found[0]

    whole = page.read_text(encoding="utf-8")
    plain = [(kind, re.sub(r" +#.*", "", block)) for kind, block in samples(page)]
    blocks = [(kind, re.sub(r'"([^"\n]*)"', unsaid, block)) for kind, block in plain]
    return blocks, len(re.findall("^## ", whole, re.MULTILINE)), len(re.findall(r"^\| ", whole, re.MULTILINE))


def test_the_readmes_are_in_step() -> None:
    """Which is why one of the two runs."""
    assert bones(README) == bones(CHINESE)
    assert len(bones(README)[0]) >= 5


def test_no_request_escapes() -> None:
    """A block with curl or Python in it is one that runs."""
    for page in PAGES:
        if not page.name.startswith(QUOTING):
            rest = _BLOCK.sub("", page.read_text(encoding="utf-8"))
            blocks = re.findall(r"^```.*?^```$|^    .*$", rest, re.DOTALL | re.MULTILINE)
            found = [
                line
                for block in blocks
                for line in block.splitlines()
                if re.match(r" *(curl |from octavo )", line)
            ]
            assert not found, f"{page.name}: {found}"


def bench_lines() -> list[list[str]]:
    pages = (ROOT / "docs/benchmarks.md", ROOT / "benchmarks/README.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    lines = re.findall(r"^    octavo bench (.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("[MODEL]", "MODEL"), comments=True) for line in lines]


@pytest.mark.parametrize("words", bench_lines(), ids=" ".join)
def test_lines_of_the_benchmarks_can_be_read(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stub = SimpleNamespace(run=lambda asked: {}, text=lambda result: "")
    monkeypatch.setattr(bench, "importlib", SimpleNamespace(import_module=lambda name: stub))
    monkeypatch.setattr("octavo.bench.report.write_json", lambda path, result: None)
    assert bench.main(words) == 0


def test_what_is_named_exists() -> None:
    """Flags, variables and commands in backticks."""
    extra = (talk_flags.TALK, batch_flags.BATCH, convert_flags.CONVERT, convert_flags.QUANTIZE)
    own = (*extra, inspect_flags.INSPECT, top_flags.TOP, bench_flags.SWEEP, *bench_flags.OWN.values())
    tables = [Table(), *(Table(flags) for flags in own)]
    variables = {name for variable in VARIABLES for name in variable.names}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "octavo").rglob("*.py"))
    wrong = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        flags = set(re.findall(r"`(?:octavo [^`]*)?(--[a-z][a-z0-9_-]*)", text)) - PLACEHOLDERS
        wrong += [f"{page.name}: {flag}" for flag in flags if not any(table.find(flag) for table in tables)]
        names = set(re.findall(r"\b(?:OCTAVO|VLLM)_[A-Z_]+[A-Z]\b", text)) - variables
        wrong += [
            f"{page.name}: {name}" for name in names if f'"{name}"' not in source and name not in TESTS_OWN
        ]
        words = set(re.findall(r"`octavo ([a-z][a-z-]*)", text))
        wrong += [f"{page.name}: octavo {word}" for word in words - COMMANDS.keys()]
    assert wrong == []


def test_messages_are_quoted_as_they_are() -> None:
    """Each part of a message in bold quotation marks, between what differs from case to case."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "octavo").rglob("*.py"))
    source = re.sub(r'"\s*f?r?"', "", source)
    source += os.strerror(errno.EADDRINUSE)
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r'\*\*"(.+?)"\*\*', text)
    assert len(quoted) > 10
    wrong = []
    for message in quoted:
        parts = [part.strip(" .") for part in re.split(r"\.\.\.|\b[NM]\b|\d[\d.:]*", message)]
        wrong += [f"{message}: {part}" for part in parts if len(part) > 3 and part not in source]
    assert [line for line in wrong if not line.startswith(NOT_OURS)] == []
