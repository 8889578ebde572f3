"""The doors of Responses and Messages over the bundled model, with the official clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, Running, serving
from test_anthropic import check as check_anthropic
from test_anthropic import events_of as anthropic_events
from test_responses import check, check_event, events_of

ASK = "天空为什么是蓝色的？"
GREEDY: Any = {"model": "pocket", "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving({"dev_mode": True}) as running:
        yield running


@pytest.fixture(scope="module")
def said(server: Running) -> str:
    """What the chat door says to ASK."""
    body = {**GREEDY, "messages": [{"role": "user", "content": ASK}], "max_tokens": 24}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LIMIT_S).json()
    text: str = reply["choices"][0]["message"]["content"]
    return text


def test_every_door_says_the_same(server: Running, said: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S) as client:
        reply = client.responses.create(input=ASK, max_output_tokens=24, **GREEDY)
        with client.responses.stream(input=ASK, max_output_tokens=24, **GREEDY) as stream:
            streamed = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert reply.output_text == streamed == said
    anthropic = pytest.importorskip("anthropic")
    fields: Any = {"model": "pocket", "messages": [{"role": "user", "content": ASK}], "max_tokens": 24}
    fields["extra_body"] = {"temperature": 0}
    with anthropic.Anthropic(base_url=server.url, api_key="-", timeout=LIMIT_S) as client:
        message = client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            streamed = "".join(stream.text_stream)
    assert message.content[0].text == streamed == said


def test_schemas_hold_with_a_real_model(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        body = {**GREEDY, "input": ASK, "max_output_tokens": 8, "top_logprobs": 2}
        check(http.post("/v1/responses", json=body).json(), "Response", "ResponseReply")
        events = events_of(http.post("/v1/responses", json={**body, "stream": True}))
        for event in events:
            check_event(event)
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
        ask = {**GREEDY, "messages": [{"role": "user", "content": ASK}], "max_tokens": 8}
        check_anthropic(http.post("/v1/messages", json=ask).json(), "Message")
        assert anthropic_events(http.post("/v1/messages", json={**ask, "stream": True}))


def test_a_stop_sequence_is_named(server: Running, said: str) -> None:
    ask = {"messages": [{"role": "user", "content": ASK}], "max_tokens": 24, "stop_sequences": [said[3:5]]}
    reply = httpx.post(f"{server.url}/v1/messages", json={**GREEDY, **ask}, timeout=LIMIT_S).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", said[3:5])
    assert reply["content"][0]["text"] == said[:3]


def test_an_answer_begun_is_continued(server: Running, said: str) -> None:
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": said[:6]}]
    ask = {**GREEDY, "messages": turns, "max_tokens": 24}
    reply = httpx.post(f"{server.url}/v1/messages", json=ask, timeout=LIMIT_S).json()
    text = reply["content"][0]["text"]
    assert text[:4] == said[6:10]


SCHEMA: Any = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
    "additionalProperties": False,
}


class Color(pydantic.BaseModel):
    """What SCHEMA says, for the client's own parsing."""

    color: Literal["red", "green"]
    sure: bool


def test_the_form_of_the_answer_holds(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S) as client:
        parsed = client.responses.parse(model="pocket", input=ASK, text_format=Color).output_parsed
        assert isinstance(parsed, Color)
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        ask = {"model": "pocket", "input": ASK, "structured_outputs": {"choice": ["yes", "no"]}}
        reply = http.post("/v1/responses", json=ask).json()
        assert reply["output"][0]["content"][0]["text"] in ("yes", "no")
        turns = [{"role": "user", "content": ASK}]
        form = {"format": {"type": "json_schema", "schema": SCHEMA}}
        ask = {"model": "pocket", "messages": turns, "max_tokens": 100, "output_config": form}
        reply = http.post("/v1/messages", json=ask).json()
        Color.model_validate_json(reply["content"][0]["text"])
        form["format"]["schema"] = {"type": "object", "properties": {"a": {"type": "thing"}}}
        refused = http.post("/v1/messages", json=ask)
        assert refused.status_code == 400
        assert refused.json()["error"]["type"] == "invalid_request_error"
        text = {"format": {"type": "json_schema", "name": "x", "schema": form["format"]["schema"]}}
        error = http.post("/v1/responses", json={"input": ASK, "text": text}).json()["error"]
        assert (error["code"], error["param"]) == (400, "text.format")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_an_answer_that_nothing_can_give_is_the_requests_fault(server: Running, path: str) -> None:
    """No token begins a match of the regex."""
    ask = {"prompt": "a"} if "chat" not in path else {"messages": [{"role": "user", "content": "a"}]}
    body = {**ask, "structured_outputs": {"regex": "q+"}, "allowed_token_ids": [1, 2], "max_tokens": 4}
    reply = httpx.post(f"{server.url}{path}", json=body, timeout=LIMIT_S)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "BadRequestError")


def test_a_call_that_is_demanded_is_made_and_fits_its_schema(server: Running) -> None:
    function = {"type": "function", "name": "paint", "parameters": SCHEMA, "strict": True}
    named = {"type": "function", "name": "paint"}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S) as client:
        fields: Any = {"model": "pocket", "input": ASK, "tools": [function], "max_output_tokens": 200}
        reply = client.responses.create(tool_choice=named, **fields)
        with client.responses.stream(tool_choice="required", parallel_tool_calls=False, **fields) as stream:
            final = stream.get_final_response()
    for made in (reply, final):
        (item,) = made.output
        assert item.type == "function_call"
        assert item.name == "paint"
        Color.model_validate_json(item.arguments)
    anthropic = pytest.importorskip("anthropic")
    tool = {"name": "paint", "input_schema": SCHEMA}
    with anthropic.Anthropic(base_url=server.url, api_key="-", timeout=LIMIT_S) as client:
        message = client.messages.create(
            model="pocket",
            max_tokens=200,
            messages=[{"role": "user", "content": ASK}],
            tools=[tool],
            tool_choice={"type": "tool", "name": "paint"},
        )
    (block,) = message.content
    assert message.stop_reason == block.type == "tool_use"
    Color.model_validate(block.input)


def test_a_conversation_hits_the_cache_and_reset_empties_it(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        asked = "Tell me about the sea, the sky and the stars above them. " * 3

        def cached(**fields: Any) -> int:
            body = {**GREEDY, "max_output_tokens": 4, **fields}
            reply = http.post("/v1/responses", json=body).json()
            names.append(reply["id"])
            found: int = reply["usage"]["input_tokens_details"]["cached_tokens"]
            return found

        names: list[str] = []
        cached(input=asked)
        assert cached(input="More.", previous_response_id=names[0]) > 16
        assert cached(input=asked) > 0
        assert http.post("/reset_prefix_cache").status_code == 200
        assert cached(input=asked) == 0
        before = http.post("/v1/responses", json={**GREEDY, "input": asked, "max_output_tokens": 12}).json()
        assert http.post("/sleep").status_code == 200
        assert http.post("/v1/responses", json={"input": "x"}).status_code == 503
        assert http.post("/wake_up").status_code == 200
        after = http.post("/v1/responses", json={**GREEDY, "input": asked, "max_output_tokens": 12}).json()
        assert after["usage"]["input_tokens_details"]["cached_tokens"] == 0
        assert after["output"][0]["content"] == before["output"][0]["content"]


def test_nothing_leaks(server: Running) -> None:
    free = server.service.stats().blocks_free
    long: Any = {**GREEDY, "max_output_tokens": 400, "ignore_eos": True}
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        made = http.post("/v1/responses", json={"input": "x", "background": True, **long}).json()
        with http.stream("POST", "/v1/responses", json={"input": "y", "stream": True, **long}) as response:
            next(response.iter_lines())
        ended = http.post(f"/v1/responses/{made['id']}/cancel").json()
        assert ended["status"] in ("cancelled", "incomplete")
        for _ in range(2000):
            stats = server.service.stats()
            if not stats.running + stats.waiting:
                break
            time.sleep(0.005)
    assert server.service.stats().blocks_free == free
