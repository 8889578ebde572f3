"""One streamed request over a socket of its own, timed piece by piece: HTTP/1.1 and server-sent events.

Own code, so that measuring needs nothing that the base install has not, and the client costs little.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from octavo.errors import ConfigError

_LINE_BYTES = 1 << 22


@dataclass
class Answer:
    """What one request got. Times in seconds; `started_s` is time.perf_counter()."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    """As the server counts them; the number of pieces when it does not say."""
    started_s: float = 0.0
    ttft_s: float = 0.0
    itl_s: list[float] = field(default_factory=list)
    """Gaps between pieces of text."""
    latency_s: float = 0.0
    """Until the last piece, or the one that says why the answer ended."""
    text: str = ""
    error: str = ""
    """Empty when it went well."""

    @property
    def ok(self) -> bool:
        """Whether the answer came whole."""
        return not self.error

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for answers of one token."""
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Target:
    """A server and how to ask it."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError when `base_url` is none."""
        self.parts = _split(base_url)
        self.url = base_url
        self._headers = dict(headers or {})
        self._tls = ssl.create_default_context() if self.parts.scheme == "https" else None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A fresh connection. Raises OSError."""
        port = self.parts.port or (443 if self._tls else 80)
        return await asyncio.open_connection(self.parts.hostname, port, ssl=self._tls, limit=_LINE_BYTES)

    def head(self, method: str, path: str, length: int) -> bytes:
        """The lines before a request's body."""
        lines = [
            f"{method} {self.parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {self.parts.netloc.rpartition('@')[2]}",
            "Connection: close",
            "Accept: text/event-stream, application/json",
            *(f"{name}: {value}" for name, value in self._headers.items()),
        ]
        if length:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(url)
    except ValueError:
        raise ConfigError(f"--base-url: {url!r} is not like http://127.0.0.1:8000.") from None
    return parts


async def get_json(target: Target, path: str, timeout_s: float = 10.0) -> tuple[int, Any]:
    """(status, body) of a GET; the body is None when it is no JSON. Raises OSError and TimeoutError."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await target.connect()
        try:
            writer.write(target.head("GET", path, 0))
            status, headers = await _read_head(reader)
            body = b"".join([piece async for piece in _pieces(reader, headers)])
        finally:
            writer.close()
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


async def ask(target: Target, path: str, body: Mapping[str, Any]) -> Answer:
    """Send one streaming request and time its answer. Never raises but for cancellation: see Answer.error."""
    answer = Answer(started_s=time.perf_counter())
    data = json.dumps(body).encode()
    try:
        reader, writer = await target.connect()
        try:
            writer.write(target.head("POST", path, len(data)) + data)
            status, headers = await _read_head(reader)
            if status != 200:
                said = b"".join([piece async for piece in _pieces(reader, headers)])
                answer.error = f"{status}: {said[:500].decode(errors='replace')}"
                return answer
            await _read_events(_pieces(reader, headers), answer)
        finally:
            writer.close()
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def _read_events(pieces: AsyncIterator[bytes], answer: Answer) -> None:
    """Time the pieces of text; a stream that does not end with [DONE] broke off."""
    last = answer.started_s
    count = 0
    async for line in _lines(pieces):
        now = time.perf_counter()
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer.output_tokens = answer.output_tokens or count
            return
        event = json.loads(data)
        if event.get("error"):
            answer.error = json.dumps(event["error"])[:500]
            return
        usage = event.get("usage") or {}
        answer.prompt_tokens = usage.get("prompt_tokens") or answer.prompt_tokens
        answer.output_tokens = usage.get("completion_tokens") or answer.output_tokens
        for choice in (event.get("choices") or ())[:1]:
            said = _said(choice)
            if said is None and not choice.get("finish_reason"):
                continue
            answer.text += said or ""
            answer.latency_s = now - answer.started_s
            if not answer.ttft_s:
                answer.ttft_s = answer.latency_s
            elif said is not None:
                answer.itl_s.append(now - last)
            last = now
            count += said is not None
    answer.error = answer.error or "the stream broke off"


def _said(choice: dict[str, Any]) -> str | None:
    """The text of a piece; None for one that only opens or closes the answer."""
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else delta.get("content")
    reasoning = None if delta is None else delta.get("reasoning_content") or delta.get("reasoning")
    return text or reasoning or None


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """(status, headers by lower-case name). EOFError when the server closes first."""
    first = await reader.readline()
    if not first:
        raise EOFError("the server closed the connection")
    status = int(first.split(None, 2)[1])
    headers: dict[str, str] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return status, headers


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The body as it arrives: chunked, of a stated length, or until the connection closes (RFC 9112)."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while (length := int((await reader.readline()).split(b";")[0], 16)) > 0:
            yield (await reader.readexactly(length + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a body, whatever pieces it came in."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
