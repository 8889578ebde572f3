"""A real server on a loopback port: start, the openai client, drain, signals, taken port, unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_service import FakeService
from running import LIMIT_S, Running

from octavo.errors import CheckpointError, ConfigError
from octavo.server.run import bind, serve, warn_exposed
from octavo.server.settings import ServerSettings

HERE = Path(__file__).parent


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def running(fake: FakeService) -> Iterator[Running]:
    with Running(fake) as server:
        yield server


@pytest.fixture
def ai(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{running.url}/v1", api_key="EMPTY", timeout=LIMIT_S, max_retries=0
    ) as client:
        yield client


USER: Any = [{"role": "user", "content": "Hi"}]


def test_openai_client(ai: openai.OpenAI, fake: FakeService) -> None:
    assert [m.id for m in ai.models.list()] == ["pocket", "alias/pocket"]
    assert ai.models.retrieve("alias/pocket").id == "alias/pocket"
    chat = ai.chat.completions.create(
        model="pocket", messages=USER, logprobs=True, top_logprobs=2, extra_body={"top_k": 3}
    )
    assert chat.choices[0].message.content == "Hello world"
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content[0].top_logprobs[0].token == "A"  # type: ignore[index]
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 11
    text = ai.completions.create(model="pocket", prompt=["a", "b"], n=2, temperature=0.5, logprobs=1)
    assert [c.text for c in text.choices] == ["Hello world"] * 4


def test_openai_client_streams(ai: openai.OpenAI, fake: FakeService) -> None:
    fake.says = "Hé, 天空 🙂"
    options: Any = {"include_usage": True}
    chunks = list(
        ai.chat.completions.create(model="pocket", messages=USER, stream=True, stream_options=options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == fake.says
    assert chunks[-1].usage is not None
    pieces = ai.completions.create(model="pocket", prompt="x", stream=True, max_tokens=30)
    assert "".join(piece.choices[0].text for piece in pieces) == fake.says


def test_openai_client_errors(ai: openai.OpenAI, fake: FakeService) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="nope", messages=USER)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        ai.chat.completions.create(model="pocket", messages=USER, temperature=5)
    assert bad.value.param == "temperature"
    fake.fails_at = 2
    with pytest.raises(openai.APIError, match="boom"):
        list(ai.chat.completions.create(model="pocket", messages=USER, stream=True))
    with pytest.raises(openai.InternalServerError):
        ai.chat.completions.create(model="pocket", messages=USER)


def test_openai_client_with_a_key(fake: FakeService) -> None:
    with Running(fake, api_keys=("k1", "k2")) as server:
        for key, good in (("k2", True), ("k3", False)):
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=LIMIT_S, max_retries=0)
            with client:
                if good:
                    assert client.chat.completions.create(model="pocket", messages=USER).choices
                else:
                    with pytest.raises(openai.AuthenticationError):
                        client.models.list()


def test_socket_closed_mid_stream_aborts(running: Running, fake: FakeService) -> None:
    fake.says, fake.delay_s = "x" * 300, 0.01
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 300}
    ) as response:
        next(response.iter_bytes())
    end_s = time.monotonic() + 2
    while not fake.aborted and time.monotonic() < end_s:
        time.sleep(0.005)
    assert fake.aborted


def test_many_streams_at_once(running: Running, fake: FakeService) -> None:
    async def one(client: httpx.AsyncClient) -> str:
        response = await client.post(
            f"{running.url}/v1/chat/completions", json={"messages": USER, "stream": True}
        )
        return response.text

    async def go() -> list[str]:
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            return await asyncio.gather(*(one(client) for _ in range(64)))

    for text in asyncio.run(go()):
        assert text.count('"content":') == 12
        assert text.endswith("data: [DONE]\n\n")


def test_the_port_is_taken_before_the_model_loads() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        def load(metrics: Any) -> FakeService:
            raise AssertionError("must not be loaded")

        said = rf"127.0.0.1:{port}: Address already in use\. .*--port {port + 1}, or --port 0"
        with pytest.raises(ConfigError, match=said):
            serve(load, ServerSettings(port=port))


@pytest.mark.parametrize("settings", [{"host": "203.0.113.9"}, {"uds": "/no/such/dir/s"}])
def test_addresses_that_are_not_ours(settings: Any) -> None:
    with pytest.raises(ConfigError, match="Cannot listen"):
        bind(ServerSettings(**{"port": 0, **settings}))


def test_a_model_that_does_not_load_ends_the_run() -> None:
    def load(metrics: Any) -> FakeService:
        raise CheckpointError("model.safetensors is truncated.")

    with pytest.raises(CheckpointError, match="truncated"):
        serve(load, ServerSettings(port=0))


def test_a_model_that_does_not_come_in_time_ends_the_run() -> None:
    over = threading.Event()

    def load(metrics: Any) -> FakeService:
        over.wait(LIMIT_S)
        return FakeService()

    try:
        with pytest.raises(ConfigError, match=r"not ready within 0\.05 s"):
            serve(load, ServerSettings(port=0, ready_timeout_s=0.05))
    finally:
        over.set()


def test_answers_503_while_loading(fake: FakeService) -> None:
    server = Running(fake)
    go_on = threading.Event()
    load = server._runner._factory

    def slow(metrics: Any) -> Any:
        assert go_on.wait(LIMIT_S)
        return load(metrics)

    server._runner._factory = slow
    server._thread.start()
    try:
        for path in ("/health", "/v1/models"):
            assert httpx.get(server.url + path, timeout=LIMIT_S).status_code == 503
    finally:
        go_on.set()
    assert server._ready.wait(LIMIT_S)
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.__exit__()


def test_unix_socket(fake: FakeService, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    for _ in range(2):  # the second run replaces the socket that the first left behind
        with (
            Running(fake, uds=path),
            httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://any.example") as client,
        ):
            assert client.get("/health").status_code == 200
            with pytest.raises(ConfigError):
                bind(ServerSettings(uds=path))


def test_warning_when_exposed(caplog: Any) -> None:
    for quiet in ({}, {"host": "0.0.0.0", "api_keys": ("k",)}, {"host": "0.0.0.0", "uds": "/x"}):
        warn_exposed(ServerSettings(**quiet))  # type: ignore[arg-type]
    assert caplog.records == []
    warn_exposed(ServerSettings(host="0.0.0.0"))
    assert len(caplog.records) == 3
    assert "--api-key" in caplog.text


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from fake_service import FakeService
from running import LIMIT_S, Running
from octavo.server.run import serve
from octavo.server.settings import ServerSettings
fake = FakeService("x" * 200)
fake.delay_s = {delay}
sys.exit(serve(lambda metrics: fake, ServerSettings(port=0, shutdown_timeout_s={drain})))
"""


@contextlib.contextmanager
def process(delay: float, drain: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    script = SCRIPT.format(here=str(HERE), delay=delay, drain=drain)
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    server = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert line.startswith("Octavo is ready at http://127.0.0.1:"), line
        yield server, int(line.strip().rpartition(":")[2])
    finally:
        server.kill()
        server.communicate()


@contextlib.contextmanager
def streaming(port: int) -> Iterator[http.client.HTTPResponse]:
    """A stream of 200 tokens whose first bytes have come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 200})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(10)
    try:
        yield response
    finally:
        connection.close()


def test_sigterm_lets_streams_finish_and_refuses_new_ones() -> None:
    with process(delay=0.005, drain=10) as (server, port), streaming(port) as response:
        server.send_signal(signal.SIGTERM)
        codes = set()
        for _ in range(100):
            codes.add(httpx.get(f"http://127.0.0.1:{port}/health").status_code)
            if 503 in codes:
                break
        assert 503 in codes
        refused = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        text = response.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert text.count('"text":"x"') >= 199
        assert server.wait(LIMIT_S) == 0


def test_sigint_with_nothing_to_do_ends_at_once() -> None:
    with process(delay=0.001, drain=30) as (server, _):
        start_s = time.monotonic()
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT_S) == 0
        assert time.monotonic() - start_s < 5


def test_what_does_not_finish_in_time_is_aborted_cleanly() -> None:
    with process(delay=0.1, drain=0.3) as (server, port), streaming(port) as response:
        server.send_signal(signal.SIGTERM)
        text = response.read().decode()
        assert '"finish_reason":"abort"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert server.wait(LIMIT_S) == 0


def test_a_second_signal_ends_at_once() -> None:
    with process(delay=0.2, drain=60) as (server, port), streaming(port):
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.4)  # two at once are one: timeout(1) and the like signal twice
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503
        server.send_signal(signal.SIGTERM)
        assert server.wait(LIMIT_S) == 128 + signal.SIGTERM


def test_tls(fake: FakeService, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    key, chain = str(tmp_path / "key.pem"), str(tmp_path / "chain.pem")
    made.private_key_pem.write_to_path(key)
    made.cert_chain_pems[0].write_to_path(chain)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Running(fake, ssl_keyfile=key, ssl_certfile=chain) as server:
        url = f"https://127.0.0.1:{server.port}/health"
        assert httpx.get(url, verify=context, timeout=LIMIT_S).status_code == 200


def test_probes_get_no_access_line(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    with Running(fake, disable_access_log=False, quiet_endpoints="/health, /metrics") as server:
        for path in ("/health?x=1", "/metrics", "/version"):
            assert httpx.get(server.url + path).status_code == 200
    lines = [line for line in capsys.readouterr().err.splitlines() if "HTTP/1.1" in line]
    assert len(lines) == 1
    assert "GET /version" in lines[0]
