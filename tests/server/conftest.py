"""A fake service behind the real application, and a client that stays in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_service import FakeService

from octavo.server.app import build_app
from octavo.server.settings import ServerSettings


class Client:
    """Sends requests to an application over a fake service; every answer is read to its end."""

    def __init__(self) -> None:
        self.fake = FakeService()
        self.settings: dict[str, Any] = {}

    def app(self) -> Any:
        return build_app(self.fake, ServerSettings(**self.settings))

    def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app(), raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(asyncio.wait_for(go(), 20))

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.send("GET", path, **kwargs)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return self.send("POST", path, json=body, **kwargs)

    def chat(self, **fields: Any) -> httpx.Response:
        fields.setdefault("messages", [{"role": "user", "content": "Hi"}])
        return self.post("/v1/chat/completions", fields)

    def complete(self, prompt: Any = "Say:", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, **fields})


@pytest.fixture
def client() -> Client:
    return Client()


def parse_stream(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of an event stream, which must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    lines = response.text.removesuffix("data: [DONE]\n\n").split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def stream() -> Callable[[httpx.Response], list[dict[str, Any]]]:
    return parse_stream
