"""chat and complete: a conversation with a fake model, and with a small server on loopback."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octavo.cli.main import run
from octavo.cli.talk import Talk
from octavo.errors import BadRequest


class Handler(BaseHTTPRequestHandler):
    """Speaks just enough of OpenAI's API; keeps the bodies it was sent."""

    bodies: list[tuple[str, dict[str, Any], str | None]]

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        if self.path == "/version":
            self._json({"version": "1"})
        else:
            self._json({"object": "list", "data": [{"id": "first"}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((self.path, body, self.headers.get("Authorization")))
        if body["model"] == "nobody":
            self._json({"error": {"message": "The model 'nobody' does not exist."}}, 404)
            return
        self.send_response(200)
        self.end_headers()
        if body["model"] == "thinks":
            for thought in ("Hm, ", "well."):
                self.wfile.write(
                    b'data: {"choices": [{"delta": {"reasoning": "%s"}}]}\n\n' % thought.encode()
                )
        for piece in ("Hel", "lo é"):
            choice = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        if body["model"] == "breaks":
            self.wfile.write(b'data: {"error": {"message": "out of luck"}}\n\n')
        self.wfile.write(b": comment\n\ndata: [DONE]\n\n")

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.bodies = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_quick_chat(server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--url",
        url_of(server),
        "-q",
        "Hi",
        "--system-prompt",
        "Be kind",
        "--api-key",
        "k",
        "--temperature",
        "0",
    ]
    assert run(["chat", *words, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Hello é\n"
    ((path, body, key),) = Handler.bodies
    assert path == "/v1/chat/completions"
    assert key == "Bearer k"
    assert body["model"] == "first"
    assert body["temperature"] == 0
    assert body["stream"] is True
    assert "max_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize("command", ["chat", "run"])
def test_a_question_behind_the_model(
    command: str, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `ollama run MODEL QUESTION`; with --url the first word is the server's model."""
    assert run([command, "second", "Hi you", "--url", url_of(server)]) == 0
    assert capsys.readouterr().out == "Hello é\n"
    ((path, body, _),) = Handler.bodies
    assert path == "/v1/chat/completions"
    assert (body["model"], body["messages"]) == ("second", [{"role": "user", "content": "Hi you"}])
    assert run([command, "second", "Hi", "you", "--url", url_of(server)]) == 2
    assert "a text of several words wants quotation marks" in capsys.readouterr().err


def test_thoughts_are_shown_beside_the_answer(
    server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", "--url", url_of(server), "--model-name", "thinks", "-q", "Hi"]) == 0
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("Hello é\n", "Hm, well.\n\n")


def test_quick_complete(server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"127.0.0.1:{server.server_port}"
    assert run(["complete", "--url", url, "--quick", "The sky", "--model-name", "second"]) == 0
    assert capsys.readouterr().out == "Hello é\n"
    ((path, body, _),) = Handler.bodies
    assert path == "/v1/completions"
    assert (body["prompt"], body["model"], body["max_tokens"]) == ("The sky", "second", 256)


def test_a_conversation_from_a_pipe(
    server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert run(["chat", "--url", url_of(server)]) == 0
    assert capsys.readouterr().out == "Hello é\nHello é\n"
    roles = [message["role"] for message in Handler.bodies[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("model", "message"),
    [("nobody", "The server refused (404): The model 'nobody' does not exist."), ("breaks", "out of luck")],
)
def test_refusals_are_one_sentence(
    model: str, message: str, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", "--url", url_of(server), "--model-name", model, "-q", "Hi"]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_no_server(server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = url_of(server)
    server.server_close()
    assert run(["chat", "--url", url, "-q", "Hi"]) == 1
    assert f"No server answers at {url}" in capsys.readouterr().err


def test_a_server_on_the_usual_port_is_used(
    server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.cli.talk.DEFAULT_URL", url_of(server))
    monkeypatch.setenv("OPENAI_API_KEY", "not for everyone")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert run(["chat", "-q", "Hi"]) == 0
    seen = capsys.readouterr()
    assert seen.out == "Hello é\n"
    assert "Using the server at" in seen.err
    assert Handler.bodies[0][2] is None


class FakeModel:
    """Answers in pieces; may be interrupted or refuse."""

    def __init__(self) -> None:
        self.interrupt = False
        self.closed = 0
        self.refuse = False
        self.asked: list[tuple[int, str]] = []

    def chat(self, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[str]:
        self.asked.append((len(messages), messages[-1]["content"]))
        if self.refuse:
            raise BadRequest("too long")
        try:
            yield "a"
            if self.interrupt:
                raise KeyboardInterrupt
            yield "b"
        finally:
            self.closed += 1

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Iterator[str]:
        yield prompt


class Keyboard(io.StringIO):
    """A terminal's stdin."""

    def isatty(self) -> bool:
        return True


def test_ctrl_c_ends_the_answer_and_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, talk = FakeModel(), Talk(True, {}, None)
    model.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        talk.answer(model, "x")
    assert talk.messages[-1] == {"role": "assistant", "content": "a"}
    assert model.closed == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert talk.converse(model) == 0
    assert len(talk.messages) == 6


def test_words_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Several lines between triple quotes, /clear, /?, /bye; any other line is for the model."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", Keyboard('one\n"""two\nthree\n"""\n/?\n/clear\n/etc\n/bye\nnever\n'))
    model, talk = FakeModel(), Talk(True, {}, "sys")
    assert talk.converse(model) == 0
    assert model.asked == [(2, "one"), (4, "two\nthree"), (2, "/etc")]
    assert "/clear     forget what was said" in capsys.readouterr().err


def test_at_a_terminal_a_refusal_does_not_end_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", Keyboard("one\n"))
    model, talk = FakeModel(), Talk(True, {}, "sys")
    model.refuse = True
    assert talk.converse(model) == 0
    assert "octavo: too long" in capsys.readouterr().err
    assert talk.messages == [{"role": "system", "content": "sys"}]


def test_complete_puts_the_system_prompt_before_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert Talk(False, {}, "Be: ").answer(FakeModel(), "x") == "Be: x"
