"""The Messages door: blocks become messages, events become blocks, errors look like Anthropic's."""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import LIMIT_S, Running

from octavo.errors import QueueFull, Unavailable
from octavo.types.engine import Finish
from octavo.types.job import CallPiece, Event

SPEC = Path(__file__).parents[2] / "../shared/data/api_specs/anthropic_messages.schemas.json"
TOOL = {"name": "weather", "description": "Of a city", "input_schema": {"type": "object"}}
SCRIPT = [
    Event(index=0, reasoning="Let me ", tokens=(1,)),
    Event(index=0, reasoning="see.", tokens=(2,)),
    Event(index=0, text="I will", tokens=(3,)),
    Event(index=0, text=" look.", tokens=(4,)),
    Event(index=0, calls=(CallPiece(index=0, id="call_a", name="weather"),), tokens=(5,)),
    Event(index=0, calls=(CallPiece(index=0, arguments='{"city":'),), tokens=(6,)),
    Event(
        index=0,
        calls=(
            CallPiece(index=0, arguments=' "Rome"}'),
            CallPiece(index=1, name="weather", arguments="{}"),
        ),
        tokens=(7,),
    ),
    Event(index=0, tokens=(8,), finish=Finish("stop")),
]


@functools.cache
def schemas() -> Any:
    return json.loads(SPEC.read_text())["schemas"] if SPEC.exists() else None


def check(value: Any, name: str) -> None:
    """Against the schema derived from Anthropic's own types."""
    jsonschema = pytest.importorskip("jsonschema")
    if schemas() is not None:
        jsonschema.Draft202012Validator(schemas()[name]).validate(value)


def ask(client: Any, content: Any = "Hi", **fields: Any) -> httpx.Response:
    fields.setdefault("messages", [{"role": "user", "content": content}])
    return client.post("/v1/messages", {"model": "pocket", "max_tokens": 100, **fields})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked."""
    assert response.status_code == 200, response.text
    made = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {made[-1]['type']}"
        if made[-1]["type"] not in ("ping", "error"):
            check(made[-1], "RawMessageStreamEvent")
    return made


def test_a_text(client: Any) -> None:
    client.fake.cached_tokens = 3
    response = ask(client)
    reply = response.json()
    check(reply, "Message")
    assert reply["content"] == [{"type": "text", "text": "Hello world", "citations": None}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    assert reply["usage"]["input_tokens"] + reply["usage"]["cache_read_input_tokens"] == 8
    assert reply["usage"]["cache_read_input_tokens"] == 3
    assert reply["usage"]["output_tokens"] == 11
    assert response.headers["request-id"].startswith("req_")
    assert reply["id"].startswith("msg_")


def test_thoughts_texts_and_tools(client: Any) -> None:
    client.fake.script = SCRIPT
    reply = ask(client, tools=[TOOL]).json()
    check(reply, "Message")
    thought, text, first, second = reply["content"]
    assert thought["thinking"] == "Let me see."
    assert thought["signature"]
    assert text["text"] == "I will look."
    assert (first["id"], first["name"], first["input"]) == ("call_a", "weather", {"city": "Rome"})
    assert second["id"].startswith("toolu_")
    assert second["input"] == {}
    assert reply["stop_reason"] == "tool_use"
    hidden = ask(client, thinking={"type": "adaptive", "display": "omitted"}).json()["content"][0]
    assert (hidden["type"], hidden["thinking"]) == ("thinking", "")


def test_a_stream_says_the_same(client: Any) -> None:
    client.fake.script = SCRIPT
    whole = ask(client, tools=[TOOL]).json()
    events = events_of(ask(client, tools=[TOOL], stream=True))
    block = ["content_block_start", "content_block_delta", "content_block_delta"]
    assert [e["type"] for e in events] == [
        *("message_start", "ping"),
        *(*block, "content_block_delta", "content_block_stop"),
        *(*block, "content_block_stop", *block, "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[0]["message"]["content"] == []
    for index, wanted in enumerate(whole["content"]):
        deltas = [e["delta"] for e in events if e.get("index") == index and "delta" in e]
        text = "".join(d.get("text", d.get("thinking", d.get("partial_json", ""))) for d in deltas)
        said = json.loads(text) if wanted["type"] == "tool_use" else text
        assert said == wanted.get("text", wanted.get("thinking", wanted.get("input")))
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == whole["usage"]


def test_the_golden_stream(client: Any) -> None:
    client.fake.says = "Hé"
    text = ask(client, stream=True).text
    name = text.partition('"id":"')[2].partition('"')[0]
    assert text.replace(name, "msg_X") == (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_X","type":"message",'
        '"role":"assistant","model":"pocket","content":[],"stop_reason":null,"stop_sequence":null,"usage":'
        '{"input_tokens":8,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}'
        '\n\nevent: ping\ndata: {"type":"ping"}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":'
        '{"type":"text","text":"","citations":null}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        '{"type":"text_delta","text":"H"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        '{"type":"text_delta","text":"é"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
        '"stop_sequence":null},"usage":{"input_tokens":8,"cache_creation_input_tokens":0,'
        '"cache_read_input_tokens":0,"output_tokens":3}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish", "limit", "told"),
    [
        (Finish("length"), 11, ("max_tokens", None)),
        (Finish("length"), 10**6, ("model_context_window_exceeded", None)),
        (Finish("repetition"), 100, ("max_tokens", None)),
        (Finish("stop", stop_reason="END"), 100, ("stop_sequence", "END")),
        (Finish("stop", stop_reason=7), 100, ("end_turn", None)),
        (Finish("tool_calls"), 100, ("end_turn", None)),
    ],
)
def test_why_it_stopped(client: Any, stream: bool, finish: Finish, limit: int, told: Any) -> None:
    client.fake.finish = finish
    response = ask(client, max_tokens=limit, stream=stream)
    reply = events_of(response)[-2]["delta"] if stream else response.json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == told


def test_a_cut_tool_has_no_input(client: Any) -> None:
    call = CallPiece(index=0, id="a", name="weather", arguments='{"ci')
    client.fake.script = [Event(index=0, calls=(call,), finish=Finish("length"))]
    reply = ask(client, tools=[TOOL]).json()
    check(reply, "Message")
    assert reply["content"][0]["input"] == {}


def test_what_was_asked_becomes_a_job(client: Any) -> None:
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Rome?", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Here."},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "document", "title": "T", "source": {"type": "text", "data": "D"}},
            ],
        },
        {"role": "user", "content": "Well?"},
    ]
    response = ask(
        client,
        messages=turns,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
            {"type": "text", "text": "Be kind."},
            {"type": "text", "text": "Be brief."},
        ],
        tools=[{**TOOL, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "low"},
        stop_sequences=["END"],
        temperature=0.5,
        top_k=7,
        metadata={"user_id": "u"},
        max_tokens=10**6,
    )
    assert response.status_code == 200, response.text
    (job,) = client.fake.jobs
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    thought = {"reasoning": "Hm.", "reasoning_content": "Hm."}
    assert list(job.messages) == [
        {"role": "system", "content": "Be kind.\n\nBe brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "Looking.", **thought, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "name": "weather", "content": "sunny"},
        {"role": "user", "content": "Here.\nT\nD\n\nWell?"},
    ]
    chat, sampling = job.chat, job.sampling
    function = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
    assert chat.tools == ({"type": "function", "function": function},)
    assert (chat.parse, chat.tool_choice, chat.tool_name) == (True, "named", "weather")
    assert not chat.parallel_tool_calls
    assert chat.kwargs == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    assert chat.add_generation_prompt
    assert (sampling.stop, sampling.temperature, sampling.top_k) == (["END"], 0.5, 7)
    assert sampling.max_tokens == 512, "the context bounds it"


def test_tools_that_may_not_be_called_can_be_hidden(client: Any) -> None:
    ask(client, tools=[TOOL], tool_choice={"type": "none"}, stream=True)
    client.settings["exclude_tools_when_none"] = True
    ask(client, tools=[TOOL], tool_choice={"type": "none"})
    shown, hidden = (job.chat for job in client.fake.jobs)
    assert (bool(shown.tools), hidden.tools) == (True, None)
    assert (shown.whole, hidden.whole) == (False, True), "calls come in pieces only where the answer does"


def test_an_answer_begun_is_continued(client: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    assert ask(client, messages=turns, thinking={"type": "disabled"}).status_code == 200
    chat = client.fake.jobs[0].chat
    assert chat.continue_final_message
    assert not chat.add_generation_prompt
    assert chat.kwargs == {"enable_thinking": False, "thinking": False}


def test_the_form_of_the_answer() -> None:
    from octavo.server.anthropic.parse import form
    from octavo.server.anthropic.requests import CountRequest, OutputConfig

    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    for body in (
        CountRequest(messages=[], output_config=OutputConfig(format=wanted)),
        CountRequest(messages=[], output_format=wanted),
    ):
        made = form(body)
        assert made is not None
        assert made.json == {"type": "object"}
    assert form(CountRequest(messages=[])) is None


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


BAD: list[dict[str, Any]] = [
    *({"max_tokens": v} for v in (0, -1, "x", None)),
    *({"messages": v} for v in ([], "x", [3], [{"role": "user"}], [{"role": "tool", "content": "x"}])),
    *(
        user(block)
        for block in (3, {}, {"type": "text"}, {"type": "image", "source": {}}, {"type": "document"})
    ),
    *(user({"type": "tool_result", **v}) for v in ({}, {"tool_use_id": "nobody"})),
    *(
        {"messages": [{"role": "assistant", "content": [b]}]}
        for b in ({"type": "thinking"}, {"type": "tool_use"})
    ),
    *({"tools": [tool]} for tool in ({"type": "web_search_20250305", "name": "x"}, {"name": "x"}, {})),
    *(
        {"tool_choice": c}
        for c in ({"type": "any"}, {"type": "tool", "name": "x"}, {"type": "maybe"}, "auto")
    ),
    {"thinking": {"type": "deep"}},
    {"output_config": {"format": {"type": "xml"}}},
    {"mcp_servers": [{"url": "x"}]},
    {"container": "x"},
    {"stop_sequences": [""]},
    {"stop_sequences": ["a"] * 5},
    {"temperature": 3},
    {"top_p": 0},
    {"system": [{"type": "image"}]},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda v: json.dumps(v)[:60])
def test_refusals(client: Any, fields: dict[str, Any]) -> None:
    response = ask(client, **fields)
    assert response.status_code == 400, response.text
    check(response.json(), "ErrorResponse")
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert client.fake.jobs == []


def test_every_error_has_anthropics_shape(client: Any) -> None:
    def told(response: httpx.Response, status: int, kind: str) -> None:
        assert response.status_code == status, response.text
        if status != 413:  # documented, but not among the client's types
            check(response.json(), "ErrorResponse")
        assert response.json()["error"]["type"] == kind
        assert response.headers["request-id"]

    told(ask(client, model="nobody"), 404, "not_found_error")
    told(client.get("/v1/messages"), 405, "invalid_request_error")
    told(client.get("/v1/messages/batches"), 404, "not_found_error")
    told(client.send("POST", "/v1/messages", content=b"{"), 400, "invalid_request_error")
    told(ask(client, "x" * 600), 400, "invalid_request_error")
    told(client.post("/v1/messages", {"messages": []}), 400, "invalid_request_error")
    client.fake.refusal = QueueFull("Full.", retry_after_s=2)
    full = ask(client)
    told(full, 429, "rate_limit_error")
    assert full.headers["retry-after"] == "2"
    client.fake.refusal = Unavailable("Loading.")
    told(ask(client), 503, "overloaded_error")
    client.fake.refusal = RuntimeError("secret")
    broken = ask(client)
    told(broken, 500, "api_error")
    assert "secret" not in broken.text
    client.fake.refusal = None
    client.fake.finish = Finish("abort")
    told(ask(client), 503, "overloaded_error")
    client.settings["max_body_bytes"] = 100
    told(ask(client, "x" * 200), 413, "request_too_large")
    client.settings["api_keys"] = ("k",)
    told(ask(client), 401, "authentication_error")
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    assert client.post("/v1/messages/count_tokens", {"messages": []}, headers=headers).status_code == 400


@pytest.mark.parametrize("end", ["error", "abort"])
def test_a_stream_that_breaks(client: Any, end: str) -> None:
    client.fake.fails_at = 2 if end == "error" else None
    client.fake.finish = Finish("abort") if end == "abort" else Finish("stop")
    last = events_of(ask(client, stream=True))[-1]
    check(last, "ErrorResponse")
    assert last["error"]["type"] == ("api_error" if end == "error" else "overloaded_error")


def test_tokens_are_counted(client: Any) -> None:
    body = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "system": "S"}
    counted = client.post("/v1/messages/count_tokens", body)
    check(counted.json(), "MessageTokensCount")
    assert counted.json()["input_tokens"] == ask(client, system="S").json()["usage"]["input_tokens"]
    assert client.post("/v1/messages/count_tokens", {**body, "model": "x"}).status_code == 404


def test_models_in_both_shapes(client: Any) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    page = client.get("/v1/models", headers=headers).json()
    assert page["first_id"] == "pocket"
    for model in page["data"]:
        check(model, "ModelInfo")
    check(client.get("/v1/models/alias/pocket", headers=headers).json(), "ModelInfo")
    assert client.get("/v1/models/x", headers=headers).status_code == 404
    assert client.get("/v1/models").json()["object"] == "list"
    assert client.get("/v1/models/pocket").json()["object"] == "model"


def test_misspelt_fields_are_named(client: Any) -> None:
    assert "stop_sequences" in ask(client, stop_sequence=["x"]).headers["x-octavo-warning"]


def test_a_client_that_leaves_ends_its_work() -> None:
    from fake_service import FakeService

    fake = FakeService()
    fake.gate = asyncio.Semaphore(3)
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with Running(fake) as server:
        with httpx.stream("POST", f"{server.url}/v1/messages", json=body, timeout=LIMIT_S) as response:
            next(response.iter_lines())
        for _ in range(2000):
            if fake.aborted:
                break
            httpx.get(f"{server.url}/health")
    assert fake.aborted
    assert not fake.live
