"""/v1/chat/completions/batch: a choice for each conversation, the same as if it were asked alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, serving

CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is rain?"}],
]
GREEDY = {"model": "pocket", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as running:
        yield running.url


def post(url: str, path: str, **body: Any) -> Any:
    return httpx.post(f"{url}/v1/chat/completions{path}", json=body, timeout=LIMIT_S)


def test_each_answer_is_that_of_its_chat_alone(url: str) -> None:
    made = post(url, "/batch", messages=CHATS, logprobs=True, **GREEDY).json()
    assert made["object"] == "chat.completion"
    assert [choice["index"] for choice in made["choices"]] == [0, 1]
    counted = 0
    for choice, messages in zip(made["choices"], CHATS, strict=True):
        alone = post(url, "", messages=messages, logprobs=True, **GREEDY).json()
        counted += alone["usage"]["total_tokens"]
        assert {**choice, "index": 0} == alone["choices"][0]
    assert made["usage"]["total_tokens"] == counted
    form = {"guided_choice": ["yes", "no"], "n": 1}
    made = post(url, "/batch", messages=CHATS, **GREEDY, **form).json()
    assert {choice["message"]["content"] for choice in made["choices"]} <= {"yes", "no"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": CHATS[0]}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_refusals(url: str, fields: dict[str, Any], param: str) -> None:
    reply = post(url, "/batch", **{**GREEDY, "messages": CHATS, **fields})
    assert reply.status_code == 400
    assert param in reply.json()["error"]["param"]


def test_an_answer_that_repeats_itself_ends_where_it_was_asked_to(url: str) -> None:
    """Held to one letter, it repeats itself at once."""
    body = {**GREEDY, "messages": CHATS[0], "guided_regex": "a{40}", "max_tokens": 40}
    whole = post(url, "", **body).json()["choices"][0]
    assert whole["finish_reason"] != "repetition"
    wanted = {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3}
    cut = post(url, "", **body, repetition_detection=wanted).json()["choices"][0]
    assert cut["finish_reason"] == "repetition"
    assert len(cut["message"]["content"]) < len(whole["message"]["content"])


def test_a_prompt_is_cut_at_either_side(url: str) -> None:
    body = {"prompt": [1, 2, 3, 4, 5], "max_tokens": 1, "return_token_ids": True, "truncate_prompt_tokens": 2}
    for side, kept in (("left", [4, 5]), ("right", [1, 2])):
        made = httpx.post(f"{url}/v1/completions", json={**body, "truncation_side": side}, timeout=LIMIT_S)
        assert made.json()["choices"][0]["prompt_token_ids"] == kept
