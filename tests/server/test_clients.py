"""The official clients of OpenAI and Anthropic against the doors that speak their language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from running import LIMIT_S, Running
from test_responses import SCRIPT, TOOL

anthropic = pytest.importorskip("anthropic")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from fake_service import FakeService

    fake = FakeService()
    with Running(fake, api_keys=("k",)) as running:
        running.fake = fake  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def oai(server: Any) -> Iterator[openai.OpenAI]:
    server.fake.script = None
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", timeout=LIMIT_S, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server: Any) -> Iterator[Any]:
    server.fake.script = None
    with anthropic.Anthropic(base_url=server.url, api_key="k", timeout=LIMIT_S, max_retries=0) as client:
        yield client


def test_responses(oai: openai.OpenAI) -> None:
    reply = oai.responses.create(model="pocket", input="Hi", instructions="Be kind.")
    assert reply.output_text == "Hello world"
    assert oai.responses.retrieve(reply.id) == reply
    more = oai.responses.create(model="pocket", input="More", previous_response_id=reply.id)
    assert more.previous_response_id == reply.id
    items = oai.responses.input_items.list(more.id, order="asc").data
    assert [item.role for item in items] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    assert oai.responses.input_tokens.count(model="pocket", input="Hi").input_tokens == 8
    oai.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError):
        oai.responses.retrieve(reply.id)


def test_a_stream_of_responses(server: Any, oai: openai.OpenAI) -> None:
    server.fake.script = SCRIPT
    tools: Any = [TOOL]
    with oai.responses.stream(model="pocket", input="Hi", tools=tools) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert final.output_text == "I will look."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    again = oai.responses.create(
        model="pocket",
        input=[*final.output, {"type": "function_call_output", "call_id": "call_a", "output": "x"}],  # type: ignore[list-item]
    )
    assert again.status == "completed"


def test_background_responses(oai: openai.OpenAI) -> None:
    made = oai.responses.create(model="pocket", input="Hi", background=True)
    for _ in range(1000):
        made = oai.responses.retrieve(made.id)
        if made.status == "completed":
            break
    assert made.output_text == "Hello world"
    assert oai.responses.cancel(made.id).status == "completed"


def test_messages(server: Any, claude: Any) -> None:
    ask = {"model": "pocket", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
    assert claude.messages.create(**ask).content[0].text == "Hello world"
    assert claude.messages.count_tokens(model="pocket", messages=ask["messages"]).input_tokens == 8
    server.fake.script = SCRIPT
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    with claude.messages.stream(**ask, tools=tools) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "I will look."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].input == {"city": "Rome"}
    assert final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": final.content[2].id, "content": "sunny"}
    turns = [*ask["messages"], {"role": "assistant", "content": final.content}]
    again = claude.messages.create(**{**ask, "messages": [*turns, {"role": "user", "content": [result]}]})
    assert again.role == "assistant"


def test_models_and_errors_of_anthropics_client(server: Any, claude: Any) -> None:
    assert [model.id for model in claude.models.list()] == ["pocket", "alias/pocket"]
    assert claude.models.retrieve("pocket").display_name == "pocket"
    ask = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(anthropic.NotFoundError) as found:
        claude.messages.create(model="nobody", **ask)
    assert found.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="pocket", **{**ask, "max_tokens": 0})
    stranger = anthropic.Anthropic(base_url=server.url, api_key="wrong", timeout=LIMIT_S, max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="pocket", **ask)
    bearer = anthropic.Anthropic(base_url=server.url, auth_token="k", timeout=LIMIT_S, max_retries=0)
    with bearer:
        assert bearer.messages.create(model="pocket", **ask).stop_reason
