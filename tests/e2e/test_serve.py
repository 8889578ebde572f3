"""A real server process: ready quickly, quiet when idle, ends cleanly, survives clients that go away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server

LONG = {"prompt": "a b c", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}


def open_stream(server: Server, body: dict) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A streaming completion whose first line has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    return connection, response


def wait_until_idle(server: Server, seconds: float = 2.0) -> float:
    """Poll until nothing runs; the seconds that took."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        if (
            server.metric("vllm:num_requests_running") == 0
            and server.metric("vllm:num_requests_waiting") == 0
        ):
            return time.perf_counter() - started
        time.sleep(0.01)
    raise AssertionError("still running")


def test_ready_within_two_seconds(server: Server) -> None:
    # The promise is 2 s on an idle machine; a suite on shared cores gets three times that.
    assert server.ready_s < 6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_idle_costs_under_one_percent(server: Server) -> None:
    wait_until_idle(server)
    last, end = -1.0, time.perf_counter() + 5  # modules that no first request needs may still be on their way
    while (now := server.cpu_s()) != last and time.perf_counter() < end:
        last = now
        time.sleep(0.3)

    def share() -> float:
        before, started = server.cpu_s(), time.perf_counter()
        time.sleep(2.0)
        return (server.cpu_s() - before) / (time.perf_counter() - started)

    # What requests have left goes back to the system once in ten seconds: one of two windows is without it.
    assert min(share(), share()) < 0.02, "one clock tick of slack over 1 %"


def test_a_client_that_goes_away_ends_its_request(server: Server) -> None:
    connection, response = open_stream(server, LONG)
    response.close()
    connection.close()
    wait_until_idle(server)


def test_a_client_that_goes_away_before_the_answer_ends_its_request(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {**LONG, "stream": False}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    while server.metric("vllm:num_requests_running") == 0:
        time.sleep(0.005)
    connection.close()
    wait_until_idle(server)


def test_good_streams_beside_bad_requests_and_leavers(server: Server) -> None:
    """HARDENING S18 and S20 in small: others' trouble changes no answer and leaks no block."""
    free_before = server.metric("vllm:kv_cache_usage_perc")
    prompts = [[5 + i] * (3 + 7 * i) for i in range(6)]
    texts: dict[int, str] = {}

    def good(i: int) -> None:
        body = {"prompt": prompts[i], "max_tokens": 40, "ignore_eos": True, "temperature": 0}
        status, answer = server.request("POST", "/v1/completions", body)
        texts[i] = json.loads(answer)["choices"][0]["text"] if status == 200 else f"HTTP {status}"

    def bad(i: int) -> None:
        shapes = [
            {"prompt": []},
            {"prompt": "x", "n": -1},
            {"prompt": [2**40]},
            {"prompt": "x", "temperature": 9},
        ]
        assert server.request("POST", "/v1/completions", shapes[i % 4])[0] == 400

    def leaver(i: int) -> None:
        connection, response = open_stream(server, LONG)
        response.close()
        connection.close()

    work = [threading.Thread(target=f, args=(i,)) for f in (good, bad, leaver) for i in range(6)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    wait_until_idle(server)
    expected = [
        server.request(
            "POST", "/v1/completions", {"prompt": p, "max_tokens": 40, "ignore_eos": True, "temperature": 0}
        )
        for p in prompts
    ]
    assert [texts[i] for i in range(6)] == [json.loads(body)["choices"][0]["text"] for _, body in expected]
    assert server.metric("vllm:kv_cache_usage_perc") == free_before


def test_the_openai_client_talks_to_it(server: Server) -> None:
    import openai

    base_url = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:
        converse(client, openai)


def converse(client: Any, openai: Any) -> None:
    """One conversation, whole and streamed, the list of models, and a model that is not there."""
    messages = [{"role": "user", "content": "天空为什么是蓝色的？"}]
    whole = client.chat.completions.create(model="pocket", messages=messages, temperature=0)
    chunks = list(
        client.chat.completions.create(model="pocket", messages=messages, temperature=0, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert "蓝" in text
    assert whole.choices[0].finish_reason == "stop"
    assert client.models.list().data[0].id == "pocket"
    with pytest.raises(openai.NotFoundError, match="pocket"):
        client.chat.completions.create(model="gpt-nobody", messages=messages)


def test_sigterm_lets_streams_finish_and_exits_zero() -> None:
    with Server("--max-num-seqs", "4") as server:
        connection, response = open_stream(server, {**LONG, "max_tokens": 300})
        server.process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        assert rest.rstrip().endswith("data: [DONE]")
        assert '"finish_reason":"length"' in rest
        assert server.process.wait(timeout=30) == 0
        connection.close()


def test_a_taken_port_is_one_sentence(server: Server) -> None:
    command = [sys.executable, "-m", "octavo", "serve", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert str(server.port) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


BLOCKER = """
import sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'ray', 'vllm'):
            raise ImportError(name + ' is not here')
sys.meta_path.insert(0, No())
"""
SCRIPT = """
import octavo, sys
out = octavo.LLM(max_model_len=256).chat([{'role': 'user', 'content': 'Hello'}], use_tqdm=False)
print(bool(out[0].outputs[0].text), 'torch' in sys.modules)
"""


def test_no_torch_no_transformers(tmp_path: Path) -> None:
    """`octavo serve` and LLM in processes where importing either fails."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def python(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)

    assert python("import torch").returncode != 0, "the blocker must work for the test to mean anything"
    done = python(SCRIPT)
    assert done.stdout.split() == ["True", "False"], done.stderr
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    with Server(env=env) as server:
        assert server.request("POST", "/v1/chat/completions", body)[0] == 200
        assert server.stop() == 0
