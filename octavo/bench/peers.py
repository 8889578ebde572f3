"""``--against NAME``: Octavo and another engine in turns (A B A B ...), compared within each round.

A machine's memory and clocks swing; turns a moment apart see the same weather, so the ratio holds where the
figures do not. A peer is an engine that is installed already: nothing is downloaded or converted here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.bench import report
from octavo.bench.stats import median
from octavo.errors import ConfigError, OctavoError

PEERS = ("transformers", "llamacpp", "vllm")
METRICS = {
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "latency_s": "latency s",
}


@dataclass(frozen=True)
class Speeds:
    """One turn of one engine; None for what it does not say."""

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    model: str
    """Folder or hub id."""
    dtype: str
    random: bool
    """Random weights: the folder holds a configuration only."""
    batch: int
    input_len: int
    output_len: int
    threads: int
    command: str | None = None
    """The peer's executable; None: found in PATH."""
    peer_model: str | None = None
    """The model in the peer's own form (a GGUF file); None: the same one."""


Turn = Callable[[], Speeds]


@contextlib.contextmanager
def peer(name: str, work: Work) -> Iterator[tuple[str, Turn]]:
    """(name and version, what runs one turn). ConfigError says plainly when the peer is missing."""
    if name not in PEERS:
        raise ConfigError(f"--against: there is no {name!r}.", hint=f"There are: {', '.join(PEERS)}.")
    if name == "transformers":
        with _transformers(work) as found:
            yield found
    elif name == "llamacpp":
        command = executable(work.command or "llama-bench", "llama.cpp")
        _check_llama(work)
        yield "llama.cpp", lambda: _llama_turn(command, work)
    else:
        command = executable(work.command or "vllm", "vLLM")
        yield "vLLM", lambda: _vllm_turn(command, work)


def executable(name: str, title: str) -> str:
    """The path of a program. ConfigError when it is not there."""
    found = shutil.which(str(Path(name).expanduser()))
    if found is None:
        raise ConfigError(
            f"{title} is not here: there is no program {name!r}.",
            hint="Name it with --peer-command; benchmarks/README.md tells how to install it.",
        )
    return found


# ---- transformers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _transformers(work: Work) -> Iterator[tuple[str, Turn]]:
    """A Python process that keeps the model loaded; it has no thread awake while it is not its turn."""
    command = executable(work.command or sys.executable, "Python")
    script = Path(__file__).with_name("peer_transformers.py")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [command, str(script), json.dumps(asdict(work))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(work.threads)},
        )
        try:
            hello = _line(process)
            if hello is None:
                log.seek(0)
                raise ConfigError(
                    f"transformers is not here, or does not run the model ({_last_line(log.read())}).",
                    hint=f"Name a Python that has torch and transformers with --peer-command, not {command}.",
                )
            yield f"transformers {hello['version']}", lambda: _transformers_turn(process, work)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def _line(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The next message of the process; None when it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            message: dict[str, Any] = json.loads(line)
            return message
    return None


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _transformers_turn(process: subprocess.Popen[str], work: Work) -> Speeds:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    found = _line(process)
    if found is None:
        raise OctavoError("transformers ended in the middle of the comparison.")
    tokens = work.batch * (work.output_len - 1)
    return Speeds(
        work.batch * work.input_len / found["prefill_s"],
        tokens / found["decode_s"] if tokens else None,
        found["prefill_s"] + found["decode_s"],
    )


# ---- llama.cpp and vLLM ---------------------------------------------------------------------------------


def _check_llama(work: Work) -> None:
    if work.peer_model is None:
        raise ConfigError(
            "llama.cpp reads GGUF files only.", hint="Name one of the same model with --peer-model."
        )
    if work.batch != 1:
        raise ConfigError(f"llama-bench runs one sequence, and --batch-size is {work.batch}.", hint="Give 1.")


def _llama_turn(command: str, work: Work) -> Speeds:
    """llama-bench: prompt processing and text generation of one sequence, each by itself."""
    words = ["-m", str(work.peer_model), "-p", str(work.input_len), "-n", str(work.output_len)]
    said = _output([command, *words, "-t", str(work.threads), "-r", "1", "-o", "json"])
    rows = json.loads(said)
    speeds = {bool(row["n_gen"]): float(row["avg_ts"]) for row in rows}
    return Speeds(speeds.get(False), speeds.get(True))


def _vllm_turn(command: str, work: Work) -> Speeds:
    """One ``vllm bench latency`` process: the latency of a batch after its own warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latency.json"
        words = ["bench", "latency", "--model", work.peer_model or work.model, "--dtype", work.dtype]
        words += ["--input-len", str(work.input_len), "--output-len", str(work.output_len)]
        words += ["--batch-size", str(work.batch), "--num-iters-warmup", "1", "--num-iters", "2"]
        words += ["--load-format", "dummy"] if work.random else []
        _output([command, *words, "--output-json", str(out)])
        return Speeds(latency_s=float(json.loads(out.read_text())["avg_latency"]))


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = _last_line((done.stderr or done.stdout).encode())
        raise OctavoError(f"{words[0]} ended with exit code {done.returncode}: {said}")
    return done.stdout


# ---- the comparison -------------------------------------------------------------------------------------


def compare(ours: Turn, name: str, theirs: Turn, rounds: int) -> dict[str, Any]:
    """`rounds` rounds, after one that does not count; ratios above 1 mean that Octavo is faster."""
    ours()
    theirs()
    taken = [{"octavo": asdict(ours()), "peer": asdict(theirs())} for _ in range(rounds)]
    ratios: dict[str, Any] = {}
    for metric in METRICS:
        pairs = [(one["octavo"][metric], one["peer"][metric]) for one in taken]
        found = [_ratio(metric, own, other) for own, other in pairs if own and other]
        if found:
            ratios[metric] = {"median": median(found), "min": min(found), "max": max(found)}
    return {"peer": name, "rounds": taken, "ratio": ratios}


def _ratio(metric: str, own: float, other: float) -> float:
    return other / own if metric == "latency_s" else own / other


def text(found: Mapping[str, Any]) -> str:
    """The comparison for people."""
    rows = []
    for metric, ratio in found["ratio"].items():
        own, other = (
            median([one[side][metric] for one in found["rounds"] if one[side][metric]])
            for side in ("octavo", "peer")
        )
        spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
        rows.append(
            (METRICS[metric], report.number(own), report.number(other), f"{ratio['median']:.2f}x", spread)
        )
    head = (f"{len(found['rounds'])} rounds in turns", "octavo", found["peer"], "octavo is", "spread")
    return report.table(head, rows)
