"""Prompts, answers and keys stay out of logs, metrics and error bodies at the default level."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Start

CANARY = "zebraquartz"
KEY = "sk-canary-4711"
INSIDES = re.compile(r"0x[0-9a-f]{6}|Traceback|File \"|/octavo/|site-packages|\.py\b|object at")


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """Everything that any logger writes at INFO or above."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    loggers = [
        logging.getLogger(name) for name in ("", "octavo", "uvicorn", "uvicorn.access", "uvicorn.error")
    ]
    for logger in loggers:
        logger.addHandler(handler)
    yield text
    for logger in loggers:
        logger.removeHandler(handler)


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 8, "echo": True}),
    ("/v1/completions", {"prompt": f"{CANARY} " * 3000}),
    ("/v1/completions", {"prompt": "x", "stop": [CANARY], "stream": True, "max_tokens": 4}),
    ("/v1/completions", {"prompt": "x", "n": CANARY}),
    ("/v1/completions", {"prompt": "x", "user": CANARY, "unknown_field": CANARY}),
    ("/v1/completions", {"prompt": {"a": CANARY}}),
    ("/v1/completions", {"prompt": "x", "response_format": {"type": CANARY}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 8}),
    ("/v1/chat/completions", {"messages": [{"role": CANARY, "content": CANARY}], "max_tokens": 3}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "x", "x": CANARY}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "chat_template": CANARY}),
    ("/tokenize", {"prompt": CANARY}),
    ("/detokenize", {"tokens": [1, 10**9]}),
    ("/generate", {"prompt": CANARY, "max_tokens": 4}),
    ("/generate", {"prompt": CANARY, "max_tokens": -4}),
    ("/nowhere", {"prompt": CANARY}),
]


def test_logs_and_metrics_hold_no_words_of_anyone(start: Start, logs: io.StringIO) -> None:
    live = start(api_keys=(KEY,))
    replies = []
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": f"{KEY}x"}):
        for path, body in BODIES:
            replies.append(httpx.post(live.url + path, json=body, headers=headers, timeout=20))
    metrics = httpx.get(f"{live.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    live.idle()
    for text in (logs.getvalue(), metrics.text):
        assert CANARY not in text
        assert KEY not in text
    assert {reply.status_code for reply in replies} >= {200, 400, 401, 404}
    for reply in replies:
        assert reply.status_code < 500
        assert KEY not in reply.text
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
            assert not INSIDES.search(reply.text), reply.text
