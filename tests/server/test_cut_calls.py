"""Calls that must be made and are cut by max_tokens, at every door that can demand one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, serving

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Why is the sky blue?"}]
LIMITS = (1, 9, 24, 50)


@pytest.fixture(scope="module", params=["none", "hermes", "qwen3_coder"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(format, URL) of servers that write calls in plain JSON, in marks around JSON, in tags."""
    with serving(tool_call_parser=request.param) as running:
        yield request.param, running.url


@pytest.fixture
def url(server: tuple[str, str]) -> str:
    return server[1]


def chat(
    url: str, choice: Any, limit: int, stream: bool, schema: Any = SCHEMA, **more: Any
) -> tuple[str, list[str], str, str]:
    """(content, names, arguments, finish reason)."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    body = {"messages": ASK, "tools": [tool], "tool_choice": choice, "max_tokens": limit, "stream": stream}
    reply = httpx.post(f"{url}/v1/chat/completions", json={"seed": 1, **body, **more}, timeout=LIMIT_S)
    if stream:
        lines = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]
        choices = [line["choices"][0] for line in lines]
        messages = [choice["delta"] for choice in choices]
    else:
        choices = reply.json()["choices"]
        messages = [choices[0]["message"]]
    text = "".join(message.get("content") or "" for message in messages)
    functions = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    names = [function["name"] for function in functions if function.get("name")]
    arguments = "".join(function.get("arguments") or "" for function in functions)
    return text, names, arguments, choices[-1]["finish_reason"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_no_scrap_of_it_is_content(url: str, choice: Any) -> None:
    seen = []
    for limit in LIMITS:
        whole, streamed = (chat(url, choice, limit, stream) for stream in (False, True))
        assert whole == streamed
        text, names, arguments, finish = whole
        assert (text, finish) == ("", "length")
        assert not arguments or names == ["weather"]
        given = re.split(r"\\n|[\ufffd<]", arguments)[0]  # half a character, or a closing tag
        seen.append(given)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    assert seen[-1].startswith('{"city": "')


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_whole_one_fits_its_schema(url: str, choice: Any, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "unit": {"enum": ["C", "F"]},
            "city": {"type": "string", "maxLength": 9},
            "days": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["unit", "days"],
        "additionalProperties": False,
    }
    for seed in range(2):
        text, names, arguments, finish = chat(
            url, choice, 300, stream, schema, seed=seed, parallel_tool_calls=False, temperature=1
        )
        assert (text, names) == ("", ["weather"])
        assert finish == ("tool_calls" if choice == "required" else "stop")
        jsonschema.validate(json.loads(arguments), schema)


WRITTEN = {
    "none": r"[a-z ]{90,99}",
    "hermes": r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[a-z ]{40,60}"\}\}\n</tool_call>',
    "qwen3_coder": r"<tool_call>\n<function=weather>\n<parameter=city>\n[a-z ]{40,60}\n</parameter>\n"
    r"</function>\n</tool_call>",
}


def test_one_that_the_model_chose_to_make(server: tuple[str, str]) -> None:
    """The pocket model does not call of itself: what it says is held to a call, and read as one it chose."""
    name, url = server
    form = {"regex": WRITTEN[name]}
    seen = set()
    for limit in (1, 9, 16, 24, 30, 40, 200):
        whole, streamed = (
            chat(url, "auto", limit, stream, structured_outputs=form, temperature=0)
            for stream in (False, True)
        )
        assert whole == streamed
        text, names, arguments, finish = whole
        assert (text == "") == (names == ["weather"])
        if names:
            assert arguments.startswith('{"')
        seen.add((bool(names), finish))
    calls = {(False, "length"), (True, "length"), (True, "tool_calls")}
    assert seen == (calls if name != "none" else {(False, "length"), (False, "stop")})


def test_messages_and_responses(url: str) -> None:
    tool = {"name": "weather", "input_schema": SCHEMA}
    for limit in LIMITS:
        body = {"model": "pocket", "messages": ASK, "max_tokens": limit, "tools": [tool]}
        body["tool_choice"] = {"type": "any"}
        made = httpx.post(f"{url}/v1/messages", json=body, timeout=LIMIT_S).json()
        assert made["stop_reason"] == "max_tokens"
        assert [(block["type"], block["input"]) for block in made["content"]] in ([], [("tool_use", {})])
        asked = {"input": "Hi", "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}]}
        asked.update(tool_choice="required", max_output_tokens=max(limit, 16))
        made = httpx.post(f"{url}/v1/responses", json=asked, timeout=LIMIT_S).json()
        assert (made["status"], made["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
        for item in made["output"]:
            assert item["type"] == "function_call" or item["content"][0]["text"] == ""
            assert item["status"] == "incomplete"
