"""Requests from this process to its own routes: no socket, no guard, the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message

from octavo.server.guard import TENANT


def serves(routes: Iterable[BaseRoute], path: str) -> bool:
    """Whether there is a POST route of that very path."""
    return any(isinstance(r, Route) and r.path == path and "POST" in (r.methods or ()) for r in routes)


async def post(inner: ASGIApp, path: str, body: bytes, name: str, tenant: str) -> tuple[int, float, bytes]:
    """(status, Retry-After in seconds, body) of a request that never leaves this process."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", name.encode())],
        "client": None,
        "server": ("batch", 0),
    }
    if tenant:
        scope[TENANT] = tenant
    sent = False
    status, retry_s, parts = 500, 1.0, []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client stays until it is cancelled
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, retry_s
        if message["type"] == "http.response.start":
            status = message["status"]
            given = dict(message["headers"]).get(b"retry-after", b"1")
            retry_s = float(given) if given.isdigit() else 1.0
        else:
            parts.append(message.get("body", b""))

    await inner(scope, receive, send)
    return status, retry_s, b"".join(parts)
