"""A running server as the other end of a conversation: OpenAI's API over the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from octavo.cli.talk import Thought
from octavo.cli.usage import UsageError
from octavo.config.flag_values import bad_value
from octavo.errors import OctavoError

_CONNECT_S = 10.0
_PROBE_S = 0.5


class ServerError(OctavoError):
    """The server refused or broke off."""


class Remote:
    """One server and one of its models."""

    def __init__(
        self, url: str, *, api_key: str | None, model: str | None, timeout_s: float = _CONNECT_S
    ) -> None:
        """`model` None asks the server for its models and takes the first.

        Raises ConfigError for a bad `url` and ServerError when no server answers.
        """
        self._parts = _split(url)
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self.url = url
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        response = self._request("GET", "/models", None)
        try:
            listed = json.loads(response.read())["data"]
            name: str = listed[0]["id"]
        except (ValueError, LookupError, TypeError):
            raise ServerError(f"{self.url} does not list its models as OpenAI's API does.") from None
        return name

    def chat(self, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[str]:
        """The pieces of the answer to a conversation."""
        body = {"model": self.model, "messages": messages, "stream": True, **sampling}
        for choice in self._stream("/chat/completions", body):
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning") or delta.get("reasoning_content"):
                yield Thought(thought)
            yield delta.get("content") or ""

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Iterator[str]:
        """The pieces of the continuation of a text."""
        body = {"model": self.model, "prompt": prompt, "stream": True, **sampling}
        for choice in self._stream("/completions", body):
            yield choice.get("text") or ""

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The first choice of every event; closing the iterator closes the connection, which aborts."""
        response = self._request("POST", path, json.dumps(body).encode())
        try:
            for line in response:
                text = line.decode("utf-8", errors="replace").strip()
                if not text.startswith("data:"):
                    continue
                data = text[5:].strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ServerError(_message(event, 500))
                yield from (event.get("choices") or [])[:1]
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerError(f"The answer from {self.url} broke off: {error}.") from None
        finally:
            response.close()

    def _request(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        return _ask(
            self._parts,
            method,
            path,
            body,
            self._headers,
            url=self.url,
            timeout_s=self._timeout_s,
            hint="Start one with octavo serve, or leave --url out to run the model here.",
        )


def read(url: str, path: str, api_key: str | None, *, timeout_s: float = _CONNECT_S) -> bytes:
    """What a server answers to GET `path`. Raises ConfigError for a bad `url`, ServerError for no answer."""
    parts = _split(url)
    parts = parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"))
    headers = {"Connection": "close", **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    hint = "Is octavo serve running, and is that its address?"
    response = _ask(parts, "GET", path, None, headers, url=url, timeout_s=timeout_s, hint=hint)
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"The answer from {url} broke off: {_why(error)}.") from None
    finally:
        response.close()


def _ask(
    parts: SplitResult,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    *,
    url: str,
    timeout_s: float,
    hint: str,
) -> http.client.HTTPResponse:
    host, port = parts.hostname or "localhost", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(None if method == "POST" else timeout_s)
        connection.request(method, parts.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"No server answers at {url} ({_why(error)}).", hint=hint) from None
    if response.status >= 400:
        try:
            raise ServerError(_refusal(response, url))
        finally:
            connection.close()
    return response


def _split(url: str) -> SplitResult:
    """The parts of `url`; "http://" may be left out, and "/v1" is added to a bare host."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(url)
    except ValueError:
        raise UsageError(str(bad_value("--url", url, "one like http://localhost:8000/v1"))) from None
    return parts if parts.path.strip("/") else parts._replace(path="/v1")


def _why(error: BaseException) -> str:
    """What the system says about a connection that failed, without numbers that mean nothing to a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}; SSL_CERT_FILE names one to trust"
    if isinstance(error, ssl.SSLError):
        return f"no TLS there: {error.reason or error}"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _refusal(response: http.client.HTTPResponse, url: str) -> str:
    try:
        return _message(json.loads(response.read(1 << 20)), response.status)
    except ValueError:
        return f"{url} answered {response.status} {response.reason}."


def _message(body: Any, status: int) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f"The server refused ({status}): {text or 'no reason given'}"


def running_here(url: str) -> str | None:
    """`url` when a server like this one is there right now, else None; a fraction of a second at most."""
    parts = _split(url)
    connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port, timeout=_PROBE_S)
    try:
        connection.request("GET", "/version")
        body = json.loads(connection.getresponse().read(4096))
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return url if isinstance(body, dict) and "version" in body else None
