"""``octavo bench startup``: a fresh process until its first token, and what it then holds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.bench import report
from octavo.bench.client import Target, ask
from octavo.bench.options import Asked, at_least
from octavo.bench.server import started
from octavo.bench.stats import mean, median, percentile
from octavo.errors import ConfigError, OctavoError

_IDLE_S = 2.0
_SETTLE_S = 0.5


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags; vLLM's names where it has them."""

    num_iters_cold: int = 0
    num_iters_warm: int = 5
    input_len: int = 16
    idle: bool = True
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        at_least("--num-iters-warm", self.num_iters_warm, 0)
        at_least("--num-iters-cold", self.num_iters_cold, 0)
        at_least("--input-len", self.input_len, 1)
        at_least(
            "--num-iters-warm and --num-iters-cold together", self.num_iters_warm + self.num_iters_cold, 1
        )


def run(asked: Asked) -> dict[str, Any]:
    """Start servers one after another; the figures as the JSON holds them."""
    options = Options(**asked.own)
    files = weight_files(asked.model)
    if options.num_iters_cold and not files:
        raise ConfigError(
            "--num-iters-cold needs a model in a local folder, whose files can be put out of memory."
        )
    result: dict[str, Any] = {
        "date": report.stamp(),
        "model": options.dummy or asked.model or "pocket",
        "input_len": options.input_len,
        "import_s": _median_of(["-c", "import octavo"]),
        "help_s": _median_of(["-m", "octavo", "--help"]),
    }
    for kind, count in (("cold", options.num_iters_cold), ("warm", options.num_iters_warm)):
        runs = []
        for at in range(count):
            if kind == "cold":
                forget(files)
            runs.append(_once(asked.server_words, options, idle=options.idle and at == 0))
        if runs:
            result[kind] = {name: _summary([one[name] for one in runs if name in one]) for name in runs[0]}
    return {**result, "machine": report.this_machine()}


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": median(values),
        "mean": mean(values),
        "p10": percentile(values, 10),
        "p90": percentile(values, 90),
        "runs": len(values),
    }


def _median_of(words: Sequence[str]) -> float:
    """Seconds of a Python process with these words, the median of five."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - begun)
    return median(times)


def weight_files(model: str | None) -> list[Path]:
    """The files of a model in a local folder."""
    folder = Path(model).expanduser() if model else None
    return [path for path in sorted(folder.iterdir()) if path.is_file()] if folder and folder.is_dir() else []


def forget(files: Sequence[Path]) -> None:
    """Ask the kernel to drop files from memory, so that the next start reads the disk (Linux)."""
    if not hasattr(os, "posix_fadvise"):
        raise ConfigError("--num-iters-cold: this system cannot put a file out of memory.")
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _once(words: Sequence[str], options: Options, *, idle: bool) -> dict[str, float]:
    """One server: seconds until ready and until the first token, both since the process began; memory in
    bytes; processor share while it has nothing to do.
    """
    with started(words) as server:
        target = Target(f"http://127.0.0.1:{server.port}")
        body = {
            "prompt": [3 + at % 400 for at in range(options.input_len)],
            "max_tokens": 2,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        answer = asyncio.run(ask(target, "/v1/completions", body))
        if answer.error:
            raise OctavoError(f"The first request failed: {answer.error}")
        found = {
            "ready_s": server.ready_s,
            "first_token_s": answer.started_s + answer.ttft_s - server.begun_s,
            "request_s": answer.ttft_s,
            **_memory(server.process.pid),
        }
        if idle and (share := _idle_share(server.process.pid)) is not None:
            found["idle_cpu"] = share
        return found


def _memory(pid: int) -> dict[str, float]:
    """Resident memory now and at its peak (Linux), in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = {line.split(":")[0]: line.split() for line in lines}
    names = {"resident_bytes": "VmRSS", "peak_resident_bytes": "VmHWM"}
    return {name: 1024.0 * int(fields[own][1]) for name, own in names.items() if own in fields}


def _idle_share(pid: int) -> float | None:
    """Processor seconds per second while nothing is asked (Linux)."""
    try:
        time.sleep(_SETTLE_S)
        before = _cpu_s(pid)
        time.sleep(_IDLE_S)
        return (_cpu_s(pid) - before) / _IDLE_S
    except OSError:
        return None


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text(result: dict[str, Any]) -> str:
    """The report for people."""
    rows = [("import octavo", f"{result['import_s']:.3f} s"), ("octavo --help", f"{result['help_s']:.3f} s")]
    for kind in ("cold", "warm"):
        found = result.get(kind, {})
        runs = f"median of {found['ready_s']['runs']} {kind}" if found else ""
        for name, title in (
            ("ready_s", "Ready"),
            ("first_token_s", "First token"),
            ("request_s", "First request, to its first token"),
        ):
            if name in found:
                rows.append((f"{title} ({runs})", f"{found[name]['median']:.3f} s"))
        for name, title in (("resident_bytes", "Resident"), ("peak_resident_bytes", "Peak resident")):
            if name in found:
                rows.append((f"{title} memory ({kind})", report.size(found[name]["median"])))
        if "idle_cpu" in found:
            rows.append((f"Idle CPU ({kind})", f"{found['idle_cpu']['median']:.2%}"))
    return report.pairs(rows)
