"""A soak: good, bad and abandoned requests through every door of servers of its own, which are watched.

    python benchmarks/soak.py --seconds 120 --clients 64 --json soak.json [-- flags of octavo serve]

Loopback only. A second server makes embeddings meanwhile. Exit code 0 when no good request failed, nothing
bad was answered with a 5xx status, every KV block came back, and memory, threads and open files did not grow
beyond the limits below; else 1, with the reasons on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
MAX_GROWTH = 0.02
"""Of resident memory, from the median of the middle third to that of the last one. The first third warms up:
caches fill, the KV cache's pages are touched. A median, since what large texts need is given back every ten
seconds, so that single samples swing."""
MAX_MORE_FILES = 4
MAX_MORE_THREADS = 2
BAD_CLIENTS = 4

Body = dict[str, Any]


class Door(NamedTuple):
    """One way in."""

    path: str
    ask: Callable[[str, int, float], Body]
    """A body from a text, a number of tokens and a temperature."""
    ends: tuple[str, ...]
    """The last data of a whole stream holds one of these; no line may hold any of `FAULTS`."""


def _turns(text: str) -> Body:
    return {"model": "pocket", "messages": [{"role": "user", "content": text}]}


def _options(n: int, t: float) -> Body:
    return {"options": {"num_predict": n, "temperature": t}}


DOORS = (
    Door(
        "/v1/completions",
        lambda text, n, t: {"prompt": text, "max_tokens": n, "temperature": t, "ignore_eos": True},
        ("[DONE]",),
    ),
    Door(
        "/v1/chat/completions",
        lambda text, n, t: {**_turns(text), "max_tokens": n, "temperature": t, "ignore_eos": True},
        ("[DONE]",),
    ),
    Door(
        "/v1/responses",
        lambda text, n, t: {"input": text, "max_output_tokens": n, "temperature": t},
        ('"response.completed"', '"response.incomplete"'),
    ),
    Door(
        "/v1/messages",
        lambda text, n, t: {**_turns(text), "max_tokens": n, "temperature": t},
        ('"message_stop"',),
    ),
    Door("/api/chat", lambda text, n, t: {**_turns(text), **_options(n, t)}, ('"done":true',)),
    Door(
        "/api/generate",
        lambda text, n, t: {"model": "pocket", "prompt": text, **_options(n, t)},
        ('"done":true',),
    ),
)
EMBEDDINGS = Door("/v1/embeddings", lambda text, n, t: {"input": [text] * min(n, 8)}, ())
FAULTS = ('"error":{', '"error":"', '"response.failed"')
COUNTS = ("completion_tokens", "output_tokens", "eval_count")

BAD_FIELDS: tuple[Body, ...] = (
    {"n": 0},
    {"prompt": [10**7]},
    {"prompt": "x " * 100_000, "messages": [{"role": "user", "content": "x " * 100_000}]},
    {"temperature": -1, "options": {"temperature": -1}},
    {"logit_bias": {"99999999": 1}},
    {"stop": [""], "stop_sequences": [""]},
    {"top_p": 2, "options": {"top_p": "x"}},
    {"response_format": {"type": "json_schema"}, "format": {"type": "thing"}},
    {"structured_outputs": {"regex": "((a{1,999}){1,999}){1,999}"}},
    {"structured_outputs": {"grammar": "root ::= ("}},
    {"guided_json": {"$ref": "#/x"}, "format": {"$ref": "#/x"}},
    {"model": "nobody"},
    {"messages": [], "input": [], "prompt": 7},
    {"messages": [{"role": "tool", "tool_calls": [1]}], "input": [{"type": "x"}], "prompt": [[]]},
    {"tools": [{"type": "function"}], "tool_choice": "required", "max_tokens": -1},
    {"stream": "maybe", "max_output_tokens": 0},
)
"""Each is wrong for one door at least."""
BAD_BODIES = (
    *(b"", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b'{"prompt": NaN}', b'{"a":' * 5_000),
    b'{"max_tokens": 1e999, "messages": "x", "input": {}, "prompt": {}, "model": []}',
)
"""Wrong for every door."""


class Soak:
    """The clients and what they saw."""

    def __init__(self, url: str, seed: int, doors: tuple[Door, ...] = DOORS) -> None:
        self.seen: Counter[str] = Counter()
        self.tokens = 0
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._doors = doors
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))

    async def run(self, clients: int, end_s: float, bad: int = BAD_CLIENTS) -> None:
        """`clients` send one request after another until `end_s` (time.monotonic()), `bad` send rubbish."""
        kinds = (self._stream, self._whole, self._leave, self._leave_early)
        good = [self._client(end_s, kinds, (4, 3, 3, 1)) for _ in range(clients)]
        async with self._http:
            await asyncio.gather(*good, *(self._client(end_s, (self._bad,), (1,)) for _ in range(bad)))

    async def _client(self, end_s: float, kinds: tuple[Any, ...], weights: tuple[int, ...]) -> None:
        while time.monotonic() < end_s:
            kind = self._random.choices(kinds, weights)[0]
            door = self._random.choice(self._doors)
            try:
                await kind(door)
            except httpx.HTTPError as error:
                self.faults.append(f"{kind.__name__} {door.path}: {error!r}")
            self.seen[kind.__name__.strip("_")] += 1
            self.seen[door.path] += 1

    def _body(self, door: Door, **fields: Any) -> Body:
        draw = self._random
        text = " ".join(draw.choices(WORDS, k=draw.choice((1, 8, 40, 150))))
        body = door.ask(text, draw.choice((1, 8, 40, 120)), draw.choice((0, 0.8)))
        if "completions" in door.path:
            if body["temperature"] and draw.random() < 0.3:
                body["n"] = draw.choice((2, 4))
            if draw.random() < 0.2:
                body["logprobs"] = 3 if "prompt" in body else True
            if draw.random() < 0.1:
                body["structured_outputs"] = {"choice": ["yes", "no"]}
        return {**body, **fields}

    async def _stream(self, door: Door) -> None:
        if not door.ends:
            return await self._whole(door)
        async with self._http.stream("POST", door.path, json=self._body(door, stream=True)) as response:
            text = (await response.aread()).decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("event:")]
        if response.status_code == 429:
            self.seen["refused"] += 1
        elif response.status_code != 200 or not any(end in lines[-1] for end in door.ends) or _failed(text):
            self.faults.append(f"stream {door.path}: {response.status_code} {text[-200:]}")
        self.tokens += len(lines)

    async def _whole(self, door: Door) -> None:
        response = await self._http.post(
            door.path, json=self._body(door, **({"stream": False} if door.ends else {}))
        )
        if response.status_code == 429:
            self.seen["refused"] += 1
        elif response.status_code != 200 or _failed(response.text):
            self.faults.append(f"whole {door.path}: {response.status_code} {response.text[:200]}")
        elif door.ends:
            reply = response.json()
            usage = reply.get("usage") or reply
            self.tokens += next(usage[name] for name in COUNTS if name in usage)

    async def _leave(self, door: Door) -> None:
        """Hang up after some pieces."""
        left = self._random.randrange(8)
        body = self._body(door, **({"stream": True} if door.ends else {}))
        async with self._http.stream("POST", door.path, json=body) as response:
            async for _ in response.aiter_bytes():
                left -= 1
                if left < 0:
                    return

    async def _leave_early(self, door: Door) -> None:
        """Hang up while waiting or computing the prompt."""
        with contextlib.suppress(httpx.TimeoutException):
            await self._http.post(door.path, json=self._body(door), timeout=self._random.random() * 0.3)

    async def _bad(self, door: Door) -> None:
        draw = self._random
        kind = draw.randrange(4)
        if kind == 0:
            response = await self._http.post(door.path, content=draw.choice(BAD_BODIES))
            fine = response.status_code in (400, 413, 429)
        elif kind == 1:
            response = await self._http.request(draw.choice(("GET", "PUT", "DELETE")), door.path)
            fine = response.status_code == 405
        else:
            fields = {"max_tokens": 4, **draw.choice(BAD_FIELDS)}
            response = await self._http.post(door.path, json={**self._body(door), **fields})
            fine = response.status_code < 500  # what is wrong for one door says nothing to another
        if not fine:
            self.faults.append(f"bad {door.path}: {response.status_code} {response.text[:200]}")


def _failed(text: str) -> bool:
    """Whether an answer tells of an error."""
    return any(fault in text for fault in FAULTS)


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


async def watch(pid: int, every_s: float, samples: Samples) -> None:
    """Sample until cancelled."""
    begun = time.monotonic()
    while True:
        samples.append({"at_s": time.monotonic() - begun, **resources(pid)})
        await asyncio.sleep(every_s)


Samples = list[dict[str, float]]


class Server:
    """`octavo serve` on a port of its own, and what was seen of it."""

    def __init__(self, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.samples = Samples()
        command = [sys.executable, "-m", "octavo", "serve", *flags, "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--served-model-name", "pocket", "--disable-uvicorn-access-log"]
        )

    def wait_ready(self, limit_s: float = 600) -> None:
        """Until /health says so. Raises RuntimeError when the server ends or does not come."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError("the server is not ready")

    async def soak(self, seconds: float, clients: int, seed: int, doors: tuple[Door, ...]) -> Soak:
        """One soak; the samples of the server's resources beside it."""
        load = Soak(self.url, seed, doors)
        watcher = asyncio.create_task(watch(self.process.pid, max(seconds / 120, 0.25), self.samples))
        await load.run(clients, time.monotonic() + seconds)
        watcher.cancel()
        return load

    def growth(self) -> tuple[float, float]:
        """Medians of resident MiB: of the middle third, and of the last one."""
        third = len(self.samples) // 3
        parts = self.samples[third : 2 * third], self.samples[2 * third :]
        early, late = (statistics.median(sample["rss_mib"] for sample in part) for part in parts)
        return early, late

    def judge(self, load: Soak) -> list[str]:
        """What is wrong, in words; empty when all is well."""
        left = settled(self.url)
        self.samples.append({"at_s": self.samples[-1]["at_s"], **resources(self.process.pid)})
        warm, last = self.samples[len(self.samples) // 3], self.samples[-1]
        early, late = self.growth()
        wrong = load.faults[:5]
        if any(left.values()):
            wrong.append(f"still held after the end: {left}")
        if late > early * (1 + MAX_GROWTH):
            wrong.append(f"memory grew from {early:.1f} to {late:.1f} MiB")
        for name, more in (("threads", MAX_MORE_THREADS), ("files", MAX_MORE_FILES)):
            if last[name] > warm[name] + more:
                wrong.append(f"{name} grew from {warm[name]:.0f} to {last[name]:.0f}")
        return wrong

    def end(self) -> list[str]:
        """Stop; what is wrong with that."""
        self.process.terminate()
        code = self.process.wait(60)
        return [f"exit code {code}"] if code else []


def main() -> int:
    """Run the soak of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the samples and counts there")
    parser.add_argument("serve", nargs="*", help="after --: flags of octavo serve")
    asked = parser.parse_args()
    pooling = ("--runner", "pooling", "--convert", "embed")
    servers = [Server(*asked.serve), Server(*asked.serve, *pooling)]
    wrong: list[str] = []
    try:
        for server in servers:
            server.wait_ready()

        async def work() -> list[Soak]:
            first = servers[0].soak(asked.seconds, asked.clients, asked.seed, DOORS)
            second = servers[1].soak(asked.seconds, max(asked.clients // 8, 1), asked.seed, (EMBEDDINGS,))
            return await asyncio.gather(first, second)

        loads = asyncio.run(work())
        for server, load in zip(servers, loads, strict=True):
            wrong += server.judge(load)
    finally:
        for server in servers:
            wrong += server.end()
    report = [
        {
            "seen": dict(load.seen),
            "tokens": load.tokens,
            "first": server.samples[0],
            "last": server.samples[-1],
            "rss_mib": [round(one, 1) for one in server.growth()],
        }
        for server, load in zip(servers, loads, strict=True)
    ]
    if asked.json:
        samples = [server.samples for server in servers]
        Path(asked.json).write_text(
            json.dumps({"wrong": wrong, "servers": report, "samples": samples}, indent=1)
        )
    print("\n".join(json.dumps(part) for part in report))
    print("\n".join(wrong) or "All is well.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
