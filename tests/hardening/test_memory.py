"""What a request needed is free when it is over: no garbage for the collector, no heap that stays large."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import platform
import socket
import types
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from doors import DOORS
from flood import flood
from live import Live, Start

from octavo.pipeline import grammar
from octavo.pipeline import service as services
from octavo.server.run import bound_heaps

BAD: dict[str, Any] = {"temperature": -7, "top_p": "x", "options": {"temperature": "x"}}
FORM: dict[str, Any] = {"structured_outputs": {"regex": "("}, "format": {"$ref": "#/nowhere"}}


def request_bytes(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def exchange(live: Live, data: bytes, leave: bool = False) -> None:
    """One request through a socket of its own, whose client makes no garbage; `leave`: after a piece."""
    with socket.create_connection(("127.0.0.1", live.port)) as client:
        client.sendall(data)
        while client.recv(1 << 16) and not leave:
            pass
    live.idle()


@pytest.mark.parametrize("name", list(DOORS))
def test_a_request_leaves_nothing_to_collect(
    start: Start, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_WARM_S", 1000.0)  # nothing but requests is at work
    live, door = start(), DOORS[name]
    ways: list[tuple[bytes, bool]] = [
        (request_bytes(door.path, door.body(tokens=4, stream=False)), False),
        (request_bytes(door.path, door.body(tokens=4)), False),
        (request_bytes(door.path, door.body(tokens=1500)), True),
        (request_bytes(door.path, {**door.body(tokens=4), **BAD}), False),
        (request_bytes(door.path, {**door.body("word " * 20_000, tokens=4), "truncate": False}), False),
        (request_bytes(door.path, {**door.body(tokens=4), **FORM}), False),
        (request_bytes(door.path, ["no object"]), False),
    ]
    for way in ways:  # what is made once and kept
        exchange(live, *way)
    gc.collect()
    gc.disable()
    try:
        for number, way in enumerate(ways):
            exchange(live, *way)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            gc.set_debug(0)
            assert ours(gc.garbage) == Counter(), (number, way[0][-200:])
            gc.garbage.clear()
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def ours(garbage: list[Any]) -> Counter[str]:
    """Objects and frames of the package among these."""
    frames = [one.f_code for one in garbage if isinstance(one, types.FrameType)]
    found = [code.co_qualname for code in frames if "/octavo/" in code.co_filename]
    found += [type(one).__qualname__ for one in garbage if type(one).__module__.startswith("octavo.")]
    return Counter(found)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give memory back by themselves")
def test_long_texts_leave_no_large_heap(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bound_heaps()
    monkeypatch.setattr(services, "_TRIM_S", 0.05)
    live = start({"max_model_len": 512})

    def tokenize() -> None:
        answer = httpx.post(f"{live.url}/tokenize", json={"prompt": "word " * 200_000}, timeout=60)
        assert answer.status_code == 200

    httpx.post(f"{live.url}/tokenize", json={"prompt": "word"}, timeout=60)
    before = resident_mib()
    for _ in range(4):
        tokenize()
    live.until(lambda: resident_mib() < before + 50)


def test_a_flood_of_different_forms_ends_in_a_bounded_cache(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "_KEPT", 40)
    live = start()
    numbers = iter(range(450))
    assert asyncio.run(flood(live.url, itertools.islice(numbers, 150))) == 150
    before = resident_mib()
    assert asyncio.run(flood(live.url, numbers)) == 300
    live.idle()
    assert len(live.service.preparer._grammars._kept) == 40
    assert resident_mib() < before + 20


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
