"""Forms of answers that are all different, sent to a server.

By hand, for as many as one likes: ``python tests/hardening/flood.py COUNT [-- flags of octavo serve]``.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

CLIENTS = 8


def body(number: int) -> dict[str, Any]:
    """A request like no other: a schema, a regex, a grammar, a choice or a tool in turn."""
    name = f"field_{number}"
    schema = {"type": "object", "properties": {name: {"enum": [number, name]}}, "required": [name]}
    forms: tuple[dict[str, Any], ...] = (
        {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}},
        {"structured_outputs": {"regex": f"{name}(a|b){{1,{number % 50 + 1}}}"}},
        {"structured_outputs": {"grammar": f'root ::= "{name}" [0-9]+'}},
        {"structured_outputs": {"choice": [name, str(number)]}},
        {
            "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
            "tool_choice": "required",
        },
    )
    text = [{"role": "user", "content": f"What is {name}?"}]
    return {"messages": text, "max_tokens": 1, **forms[number % len(forms)]}


async def flood(url: str, numbers: Iterator[int]) -> int:
    """Send them all, some at once; how many. Every one is answered with 200."""
    sent = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal sent
        for number in numbers:
            answer = await http.post("/v1/chat/completions", json=body(number))
            assert answer.status_code == 200, (number, answer.text)
            sent += 1

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return sent


def main() -> int:
    """Flood a server of its own, and print its memory on the way."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from soak import Server, resources

    server, total = Server(*sys.argv[3:]), int(sys.argv[1])
    try:
        server.wait_ready()
        began, numbers = time.monotonic(), iter(range(total))
        while sent := asyncio.run(flood(server.url, itertools.islice(numbers, max(total // 20, 1)))):
            used = resources(server.process.pid)
            print(f"{time.monotonic() - began:.0f} s, {sent} more, {used['rss_mib']:.0f} MiB", flush=True)
    finally:
        server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
