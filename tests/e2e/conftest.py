"""Shared engines over the bundled model, and a real server process on a loopback port."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def pocket() -> LLM:
    """The bundled model, float32: greedy ties are rounding, so the tightest dtype tests the plan itself."""
    return LLM(dtype="float32", max_model_len=512, max_num_seqs=40)


class Server:
    """An `octavo serve` process; a context manager that always ends it."""

    def __init__(self, *arguments: str, port: int | None = None, env: dict[str, str] | None = None) -> None:
        self.port = port or free_port()
        command = [sys.executable, "-m", "octavo", "serve", "--port", str(self.port), *arguments]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        try:
            self.ready_s = self._wait(started)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._log.close()

    def _wait(self, started: float) -> float:
        while time.perf_counter() - started < 60:
            if self.process.poll() is not None:
                raise AssertionError(f"ended early:\n{self.output()}")
            try:
                if self.request("GET", "/health")[0] == 200:
                    return time.perf_counter() - started
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("not ready after 60 s")

    def request(self, method: str, path: str, body: Any = None, timeout: float = 60) -> tuple[int, bytes]:
        """(status, body) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        with contextlib.closing(connection), connection.getresponse() as response:
            return response.status, response.read()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = self.request("GET", "/metrics")[1].decode()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{")
        )

    def cpu_s(self) -> float:
        """Processor seconds of the process so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def output(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return self._log.read().decode()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for a module's tests."""
    with Server("--max-num-seqs", "16") as running:
        yield running
