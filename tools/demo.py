"""The demo: serve the bundled model, ask one question over HTTP, print the streamed answer and its speed."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time

QUESTION = "Why is the sky blue?"
READY_S = 60.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> float:
    """Poll /health until it says 200; the seconds that took. SystemExit when it ends or is too slow."""
    started = time.perf_counter()
    while time.perf_counter() - started < READY_S:
        if server.poll() is not None:
            sys.exit(f"The server ended with exit code {server.returncode} before it was ready.")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return time.perf_counter() - started
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"The server was not ready after {READY_S:.0f} s.")


def ask(port: int, question: str) -> None:
    """Stream one chat completion to stdout, then its speed."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 256,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"HTTP {response.status}: {response.read().decode(errors='replace')}")
    first: float | None = None
    tokens = 0
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            if text and first is None:
                first = time.perf_counter()
            print(text, end="", flush=True)
    ended = time.perf_counter()
    first = first or ended
    speed = (tokens - 1) / (ended - first) if tokens > 1 and ended > first else 0.0
    print(f"\n\n[{tokens} tokens, {speed:.0f} tokens/s, first token after {1e3 * (first - started):.0f} ms]")


def main() -> None:
    """Start the server, ask, stop the server."""
    port = free_port()
    command = [sys.executable, "-m", "octavo", "serve", "--port", str(port), "--uvicorn-log-level", "warning"]
    print(f"$ octavo serve --port {port}", flush=True)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stderr=log)
        try:
            ready_s = wait_until_ready(port, server)
            print(f"[ready in {ready_s:.1f} s]\n\n> {QUESTION}\n", flush=True)
            ask(port, QUESTION)
        except SystemExit:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            server.terminate()
            server.wait(timeout=30)
    print("\nNext: make serve (then open http://localhost:8000), or .venv/bin/octavo chat")


if __name__ == "__main__":
    main()
