"""A soak: mixed good, bad and abandoned requests against a server of its own, whose resources are watched.

    python benchmarks/soak.py --seconds 120 --clients 16 --json soak.json [-- flags of octavo serve]

Loopback only. Exit code 0 when no good request failed, every KV block came back, and memory, threads and open
files did not grow beyond the limits at the end of this file; else 1, with the reasons on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

WORDS = (
    "why",
    "is",
    "the",
    "sky",
    "blue",
    "bread",
    "water",
    "天空",
    "为什么",
    "serving",
    "tokens",
    "é",
    "🙂",
)
BAD: tuple[dict[str, Any], ...] = (
    {"n": 0},
    {"prompt": [10**7]},
    {"prompt": "x " * 100_000},
    {"temperature": -1},
    {"logit_bias": {"99999999": 1}},
    {"max_tokens": 10**9},
    {"stop": [""]},
    {"top_p": 2},
    {"response_format": {"type": "json_schema"}},
)
MAX_GROWTH = 0.05
"""Of resident memory, from the end of the warm-up (the first third) to the end: steps are the allocator
meeting a new worst case, as when several of the largest prompts come at once. Over hours it must be flat."""
MAX_MORE_FILES = 4
MAX_MORE_THREADS = 2


class Soak:
    """The clients and what they saw."""

    def __init__(self, url: str, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self.tokens = 0
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))

    async def run(self, clients: int, end_s: float) -> None:
        """`clients` people send one request after another until `end_s` (time.monotonic())."""
        async with self._http:
            await asyncio.gather(*(self._client(end_s) for _ in range(clients)))

    async def _client(self, end_s: float) -> None:
        kinds = (self._stream, self._whole, self._leave, self._leave_early, self._bad)
        while time.monotonic() < end_s:
            kind = self._random.choices(kinds, (4, 3, 3, 1, 2))[0]
            try:
                await kind()
            except httpx.HTTPError as error:
                self.faults.append(f"{kind.__name__}: {error!r}")
            self.seen[kind.__name__.strip("_")] += 1

    def _body(self, **fields: Any) -> dict[str, Any]:
        draw = self._random
        text = " ".join(draw.choices(WORDS, k=draw.choice((1, 8, 40, 150))))
        body = {
            "prompt": text,
            "max_tokens": draw.choice((1, 8, 40, 120)),
            "temperature": draw.choice((0, 0.8)),
            "ignore_eos": draw.random() < 0.5,
        }
        if body["temperature"] and draw.random() < 0.3:
            body["n"] = draw.choice((2, 4))
        if draw.random() < 0.2:
            body["logprobs"] = 3
        return {**body, **fields}

    async def _stream(self) -> None:
        async with self._http.stream("POST", "/v1/completions", json=self._body(stream=True)) as response:
            text = (await response.aread()).decode()
        if response.status_code == 429:
            self.seen["refused"] += 1
        elif response.status_code != 200 or not text.endswith("data: [DONE]\n\n") or '"error"' in text:
            self.faults.append(f"stream: {response.status_code} {text[-200:]}")
        self.tokens += text.count("data: ")

    async def _whole(self) -> None:
        response = await self._http.post("/v1/completions", json=self._body())
        if response.status_code == 429:
            self.seen["refused"] += 1
        elif response.status_code != 200:
            self.faults.append(f"whole: {response.status_code} {response.text[:200]}")
        else:
            self.tokens += response.json()["usage"]["completion_tokens"]

    async def _leave(self) -> None:
        """Hang up after some pieces."""
        left = self._random.randrange(8)
        async with self._http.stream("POST", "/v1/completions", json=self._body(stream=True)) as response:
            async for _ in response.aiter_bytes():
                left -= 1
                if left < 0:
                    return

    async def _leave_early(self) -> None:
        """Hang up while waiting or computing the prompt."""
        with contextlib.suppress(httpx.TimeoutException):
            await self._http.post("/v1/completions", json=self._body(), timeout=self._random.random() * 0.3)

    async def _bad(self) -> None:
        body = {"prompt": "x", **self._random.choice(BAD)}
        response = await self._http.post("/v1/completions", json=body)
        if response.status_code not in (400, 429):
            self.faults.append(f"bad: {response.status_code} {response.text[:200]}")


def resources(pid: int) -> dict[str, float]:
    """Resident MiB, threads and open files of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith(("VmRSS", "Threads"))}
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"rss_mib": int(found["VmRSS"]) / 1024, "threads": int(found["Threads"]), "files": files}


def gauges(url: str) -> dict[str, float]:
    """What runs, waits and is held, summed over labels."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    found = dict.fromkeys(names, 0.0)
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        for name in names:
            if line.startswith(f"vllm:{name}{{"):
                found[name] += float(line.rsplit(" ", 1)[1])
    return found


def settled(url: str, limit_s: float = 30) -> dict[str, float]:
    """The gauges once all are zero, or as they stand at the limit."""
    end_s = time.monotonic() + limit_s
    while any((now := gauges(url)).values()) and time.monotonic() < end_s:
        time.sleep(0.1)
    return now


async def watch(pid: int, every_s: float, samples: list[dict[str, float]]) -> None:
    """Sample until cancelled."""
    begun = time.monotonic()
    while True:
        samples.append({"at_s": time.monotonic() - begun, **resources(pid)})
        await asyncio.sleep(every_s)


Samples = list[dict[str, float]]


async def soak(url: str, pid: int, seconds: float, clients: int, seed: int) -> tuple[Soak, Samples]:
    """One soak; the samples of the server's resources beside it."""
    load, samples = Soak(url, seed), Samples()
    watcher = asyncio.create_task(watch(pid, max(seconds / 40, 0.25), samples))
    await load.run(clients, time.monotonic() + seconds)
    watcher.cancel()
    return load, samples


def judge(load: Soak, samples: list[dict[str, float]], left: dict[str, float]) -> list[str]:
    """What is wrong, in words; empty when all is well."""
    warm, last = samples[len(samples) // 3], samples[-1]
    wrong = load.faults[:5]
    if any(left.values()):
        wrong.append(f"still held after the end: {left}")
    if last["rss_mib"] > warm["rss_mib"] * (1 + MAX_GROWTH) + 4:
        wrong.append(f"memory grew from {warm['rss_mib']:.0f} to {last['rss_mib']:.0f} MiB")
    for name, more in (("threads", MAX_MORE_THREADS), ("files", MAX_MORE_FILES)):
        if last[name] > warm[name] + more:
            wrong.append(f"{name} grew from {warm[name]:.0f} to {last[name]:.0f}")
    return wrong


def wait_ready(process: subprocess.Popen[bytes], url: str, limit_s: float = 600) -> None:
    """Until /health says so. Raises RuntimeError when the server ends or does not come."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the server is not ready")


def main() -> int:
    """Run the soak of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the samples and counts there")
    parser.add_argument("serve", nargs="*", help="after --: flags of octavo serve")
    asked = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "octavo", "serve", *asked.serve, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, "--disable-uvicorn-access-log"])
    try:
        wait_ready(process, url)
        load, samples = asyncio.run(soak(url, process.pid, asked.seconds, asked.clients, asked.seed))
        left = settled(url)
        samples.append({"at_s": asked.seconds, **resources(process.pid)})
    finally:
        process.terminate()
        code = process.wait(60)
    wrong = judge(load, samples, left) + ([f"exit code {code}"] if code else [])
    report = {"seen": dict(load.seen), "tokens": load.tokens, "wrong": wrong, "samples": samples}
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=1))
    ends = {"first": samples[0], "last": samples[-1]}
    print(json.dumps({"seen": report["seen"], "tokens": load.tokens, **ends}))
    print("\n".join(wrong) or "All is well.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
