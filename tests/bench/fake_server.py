"""A small OpenAI-shaped server in a thread: streams pieces over HTTP, chunked, on a loopback port."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """Answers every request with `max_tokens` pieces; `mode` says what goes wrong."""

    daemon_threads = True

    def __init__(self, mode: str = "well") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = mode
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = 0
        self.peak = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self) -> None:
        self._plain(200, {"object": "list", "data": [{"id": "fake"}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append({**body, "path": self.path})
            self.server.headers.append(dict(self.headers))
            self.server.now += 1
            self.server.peak = max(self.server.peak, self.server.now)
        if self.server.mode == "refuses":
            self._plain(400, {"error": {"message": "no such thing"}})
        else:
            self._stream(body)
        with self.server.lock:
            self.server.now -= 1

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        chunked = self.server.mode != "until close"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        self.end_headers()
        for event in _events(body, self.server.mode):
            data = b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\r\n\r\n"
            # In two pieces, so that a line never comes whole.
            for piece in (data[:9], data[9:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked and self.server.mode != "breaks off":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _plain(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def _events(body: dict[str, Any], mode: str) -> Iterator[Any]:
    chat = "messages" in body
    if chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    count = body["max_tokens"]
    for at in range(count):
        if mode == "breaks off" and at == 2:
            return
        if mode == "fails" and at == 1:
            yield {"error": {"message": "the engine died", "code": 500}}
            return
        said = {"delta": {"content": "word "}} if chat else {"text": "word "}
        yield {"choices": [{"index": 0, "finish_reason": "length" if at == count - 1 else None, **said}]}
    if mode != "no usage":
        yield {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": count}}
    yield "[DONE]"


@contextmanager
def fake_server(mode: str = "well") -> Iterator[FakeServer]:
    """A FakeServer that runs while the block does."""
    server = FakeServer(mode)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
