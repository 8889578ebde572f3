"""Other engines that are installed already, each behind one call: tokens per second of one figure.

What an engine needs is said plainly when it is missing; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError, OctavoError

PEERS = {
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "openvino": "OpenVINO GenAI",
    "transformers": "transformers",
}
"""Name on the command line to the name in the report."""
_SLOWEST_S = 600
"""An engine that says nothing for so long is taken for dead."""
_PAGE = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this."""


@dataclass(frozen=True)
class Figure:
    """One speed: of computing a prompt (`output` 0), or of decoding after it, total over the batch."""

    prompt: int
    batch: int
    output: int
    word: str = ""
    """As it was asked for; empty: its usual name."""

    @property
    def name(self) -> str:
        """As on the command line: pp512, b8."""
        return self.word or (f"b{self.batch}" if self.output else f"pp{self.prompt}")

    @staticmethod
    def read(word: str, prompt: int, output: int) -> Figure:
        """``pp512``, ``b8`` or ``b1@2048``: decoding takes `output` tokens after prompts of `prompt`
        tokens, or of as many as stand after the @ (0: one). ConfigError.
        """
        found = _FIGURE.fullmatch(word)
        if found is None:
            raise ConfigError(f"--figures: {word!r} is not like pp512, b8 or b1@2048.")
        if found["prompt"]:
            return Figure(int(found["prompt"]), 1, 0, word)
        context = prompt if found["context"] is None else max(int(found["context"]), 1)
        return Figure(context, int(found["batch"]), output, word)


_FIGURE = re.compile(r"pp(?P<prompt>[1-9]\d{0,7})|b(?P<batch>[1-9]\d{0,7})(@(?P<context>\d{1,8}))?")


@dataclass(frozen=True)
class Work:
    """What both sides run."""

    model: Path
    """The folder of the checkpoint."""
    dtype: str
    bits: int
    """Of a weight: 32, 16, 8 or 4."""
    threads: int
    vocab: int
    commands: Mapping[str, str] = field(default_factory=dict)
    """Peer to its program, where it was named."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Peer to the model in its own form, where it was named."""


Measure = Callable[[Figure], float]
"""Tokens per second. Raises OctavoError."""


@contextlib.contextmanager
def peer(name: str, work: Work) -> Iterator[tuple[str, Measure]]:
    """(name, version and format, what measures). ConfigError says plainly when the peer is missing."""
    from octavo.bench.forms import form

    if name not in PEERS:
        raise ConfigError(f"--against: there is no {name!r}.", hint=f"There are: {', '.join(PEERS)}.")
    if name == "llamacpp":
        command = _llama_bench(work.commands.get(name))
        model, kind = form(name, work)
        yield f"llama.cpp {kind}".strip(), lambda figure: _llama(command, str(model), work.threads, figure)
        return
    python = _python(name, work.commands.get(name))
    model, kind = form(name, work)
    asked = {"engine": name, "model": str(model), "dtype": work.dtype, "threads": work.threads}
    with _worker(name, python, {**asked, "vocab": work.vocab}) as (version, measure):
        yield f"{PEERS[name]} {version} {kind}".strip(), measure


def executable(name: str, title: str) -> str:
    """The path of a program. ConfigError when it is not there."""
    found = shutil.which(str(Path(name).expanduser()))
    if found is None:
        raise ConfigError(
            f"{title} is not here: there is no program {name!r}.",
            hint="Name it with --peer-command; benchmarks/README.md tells how to install it.",
        )
    return found


# ---- engines that stay loaded in a Python process of their own --------------------------------------------


def _python(name: str, command: str | None) -> str:
    """The Python that has the engine: the one that was named, vLLM's beside its command, or this one."""
    if name == "vllm" and (command or shutil.which("vllm")) and Path(command or "vllm").name == "vllm":
        return str(Path(executable(command or "vllm", "vLLM")).with_name("python"))
    return executable(command or sys.executable, PEERS[name])


@contextlib.contextmanager
def _worker(name: str, python: str, asked: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    """(version, what measures); no thread of the process is awake while it is not its turn."""
    script = Path(__file__).with_name("peer_worker.py")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, str(script), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(name, python, asked["threads"]),
        )
        try:
            hello = _line(process)
            if hello is None:
                raise ConfigError(
                    f"{PEERS[name]} is not here, or does not run the model ({_last_line(_read(log))}).",
                    hint=f"Name a Python that has it with --peer-command, not {python}.",
                )
            yield hello["version"], lambda figure: _turn(name, process, log, figure)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def environment(name: str, python: str, threads: int) -> dict[str, str]:
    """What the engine needs to run at its best; what is set already stays.

    vLLM takes all cores only when it is bound to them and OpenMP and the allocator are loaded before it.
    """
    found = {"OMP_NUM_THREADS": str(threads)}
    if name == "transformers":
        found["OMP_WAIT_POLICY"] = "passive"
    if name == "vllm":
        cores = (
            sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else range(threads)
        )
        found |= {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "LD_PRELOAD": " ".join(preloads(Path(python).parent.parent / "lib")),
        }
    return {**found, **os.environ}


def preloads(folder: Path) -> list[str]:
    """Intel's OpenMP of an environment whose libraries are in `folder`, and tcmalloc, where they are."""
    openmp = folder / "libiomp5.so"
    tcmalloc = find_library("tcmalloc_minimal")
    return [*([str(openmp)] if openmp.exists() else []), *([tcmalloc] if tcmalloc else [])]


def _line(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The next message of the process; None when it has ended or says nothing for too long."""
    assert process.stdout is not None
    timer = threading.Timer(_SLOWEST_S, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                message: dict[str, Any] = json.loads(line)
                return message
        return None
    finally:
        timer.cancel()


def _read(log: Any) -> bytes:
    log.seek(0)
    said: bytes = log.read()
    return said


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _turn(name: str, process: subprocess.Popen[str], log: Any, figure: Figure) -> float:
    assert process.stdin is not None
    asked = {"prompt": figure.prompt, "batch": figure.batch, "output": figure.output}
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    found = _line(process)
    if found is None:
        raise OctavoError(f"{PEERS[name]} ended in the middle of {figure.name} ({_last_line(_read(log))}).")
    return float(found["tokens_per_s"])


# ---- llama.cpp ------------------------------------------------------------------------------------------


def _llama_bench(command: str | None) -> str:
    """llama-bench: named by itself or by its folder, or in PATH."""
    folder = command is not None and Path(command).expanduser().is_dir()
    return executable(
        str(Path(command or "") / "llama-bench") if folder or not command else command, "llama.cpp"
    )


def _llama(command: str, model: str, threads: int, figure: Figure) -> float:
    """One process a turn. llama-bench for one sequence, llama-batched-bench (beside it) for several."""
    words = ["-m", model, "-t", str(threads)]
    if figure.batch == 1:
        pair = ("0", str(figure.output)) if figure.output else (str(figure.prompt), "0")
        words += ["-p", pair[0], "-n", pair[1], "-r", "1", "-o", "json"]
        words += ["-d", str(figure.prompt)] if figure.output else []
        return float(json.loads(_output([command, *words]))[0]["avg_ts"])
    beside = executable(str(Path(command).with_name("llama-batched-bench")), "llama.cpp")
    context = -(-(figure.prompt + figure.output + 1) // _PAGE) * _PAGE * figure.batch
    # -pps: the prompt is computed once and copied to every sequence; decoding is the same.
    words += ["-npp", str(figure.prompt), "-ntg", str(figure.output), "-npl", str(figure.batch), "-pps"]
    said = _output([beside, *words, "-c", str(context), "--output-format", "jsonl"])
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if not rows:
        raise OctavoError(f"{beside} gave no figure for {figure.name}.")
    return float(rows[-1]["speed_tg"])


def _output(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SLOWEST_S)
    except subprocess.TimeoutExpired:
        raise OctavoError(f"{words[0]} did not end within {_SLOWEST_S} s.") from None
    if done.returncode:
        said = _last_line((done.stderr or done.stdout).encode())
        raise OctavoError(f"{words[0]} ended with exit code {done.returncode}: {said}")
    return done.stdout
