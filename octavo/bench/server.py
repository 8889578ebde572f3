"""A server for ``octavo bench serve`` when none is named: ``octavo serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from octavo.errors import OctavoError

_STOP_S = 30.0
_POLL_S = 0.01


class Started:
    """A server process that answers on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, begun_s: float, ready_s: float) -> None:
        self.process = process
        self.port = port
        self.begun_s = begun_s
        """time.perf_counter() when the process was started."""
        self.ready_s = ready_s
        """From the start of the process to the first 200 of /health."""


@contextlib.contextmanager
def started(words: Sequence[str], timeout_s: float = 600.0) -> Iterator[Started]:
    """``octavo serve WORDS`` on a free loopback port until the block ends.

    Raises OctavoError, with the end of what it printed, when it does not become ready.
    """
    port = free_port()
    command = [sys.executable, "-m", "octavo", "serve", *words, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, begun + timeout_s)
            yield Started(process, port, begun, time.perf_counter() - begun)
        except TimeoutError as error:
            log.seek(0)
            said = " ".join(log.read()[-2000:].decode(errors="replace").split())
            raise OctavoError(f"The server did not start ({error}): {said}") from None
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, until_s: float) -> None:
    while time.perf_counter() < until_s:
        if process.poll() is not None:
            raise TimeoutError(f"exit code {process.returncode}")
        if healthy(port):
            return
        time.sleep(_POLL_S)
    raise TimeoutError("not ready in time")


def healthy(port: int) -> bool:
    """Whether /health of a loopback server says 200."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
