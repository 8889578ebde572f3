"""The Responses door: what is asked becomes a job, what happens becomes items and events, and is kept."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from test_schema import SPEC, Checker

from octavo.errors import QueueFull
from octavo.server.document import openapi
from octavo.types.engine import Finish
from octavo.types.job import CallPiece, Event

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
SCRIPT = [
    Event(index=0, reasoning="Let me ", tokens=(1,), reasoning_tokens=1),
    Event(index=0, reasoning="see.", tokens=(2,), reasoning_tokens=1),
    Event(index=0, text="I will", tokens=(3,), cached_tokens=4),
    Event(index=0, text=" look.", tokens=(4,)),
    Event(index=0, calls=(CallPiece(index=0, id="call_a", name="weather"),), tokens=(5,)),
    Event(index=0, calls=(CallPiece(index=0, arguments='{"city":'),), tokens=(6,)),
    Event(
        index=0,
        calls=(
            CallPiece(index=0, arguments=' "Rome"}'),
            CallPiece(index=1, id="call_b", name="weather", arguments="{}"),
        ),
        tokens=(7,),
    ),
    Event(index=0, tokens=(8,), finish=Finish("stop")),
]
OURS = Checker(openapi(), ignore_nulls=False)


def ask(client: Any, value: Any = "Hi", **fields: Any) -> httpx.Response:
    return client.post("/v1/responses", {"input": value, **fields})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each line says its type, and the numbers go up by one."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    made = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {made[-1]['type']}"
    return made


def check(value: Any, theirs: str, ours: str) -> None:
    """Against our own document and against OpenAI's."""
    assert OURS.problems(value, {"$ref": f"#/x/{ours}"}) == []
    if SPEC.exists():
        spec = json.loads(SPEC.read_text())
        assert Checker(spec, ignore_nulls=True).problems(value, {"$ref": f"#/x/{theirs}"}) == []


def check_event(event: dict[str, Any]) -> None:
    """Against OpenAI's schema of that very event."""
    if not SPEC.exists():
        return
    spec = json.loads(SPEC.read_text())
    for name, schema in spec["components"]["schemas"].items():
        kinds = schema.get("properties", {}).get("type", {}).get("enum")
        if name.endswith("Event") and kinds == [event["type"]]:
            assert Checker(spec, ignore_nulls=True).problems(event, schema) == []
            return
    raise AssertionError(f"OpenAI knows no event {event['type']}")


def test_a_text(client: Any) -> None:
    reply = ask(client, max_output_tokens=50).json()
    check(reply, "Response", "ResponseReply")
    assert reply["status"] == "completed"
    assert reply["completed_at"] >= reply["created_at"]
    (item,) = reply["output"]
    assert item["content"] == [
        {"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": []}
    ]
    assert reply["usage"]["total_tokens"] == reply["usage"]["input_tokens"] + 11


def test_thoughts_texts_and_calls(client: Any) -> None:
    client.fake.script = SCRIPT
    reply = ask(client, tools=[TOOL]).json()
    check(reply, "Response", "ResponseReply")
    thought, message, first, second = reply["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert message["content"][0]["text"] == "I will look."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"city": "Rome"}')
    assert (second["call_id"], second["arguments"]) == ("call_b", "{}")
    assert reply["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert reply["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert ask(client, include_reasoning=False).json()["output"][0]["type"] == "message"


def test_a_stream_says_the_same(client: Any) -> None:
    client.fake.script = SCRIPT
    events = events_of(ask(client, tools=[TOOL], stream=True, include=["message.output_text.logprobs"]))
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    for event in events:
        check_event(event)
    parts = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta"]
    call_end = ["function_call_arguments.done", "output_item.done"]
    text = ["output_text.delta", "output_text.delta", "output_text.done"]
    assert [e["type"].removeprefix("response.") for e in events] == [
        *("created", "in_progress", *parts, "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", *end, *parts, *text, *end),
        *(*call, "function_call_arguments.delta", *call_end, *call, *call_end, "completed"),
    ]
    final = events[-1]["response"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert final["output"] == done
    check(final, "Response", "ResponseReply")
    for i, item in enumerate(done):
        deltas = "".join(e["delta"] for e in events if e.get("output_index") == i and "delta" in e)
        assert deltas == (item["arguments"] if "arguments" in item else item["content"][0]["text"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_is_incomplete(client: Any, stream: bool) -> None:
    response = ask(client, max_output_tokens=3, stream=stream)
    reply = response.json() if not stream else events_of(response)[-1]["response"]
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert reply["output"][0]["status"] == "incomplete"
    assert reply["completed_at"] is None
    check(reply, "Response", "ResponseReply")
    if stream:
        assert events_of(response)[-1]["type"] == "response.incomplete"


def test_an_answer_that_went_round_in_circles_is_incomplete(client: Any) -> None:
    client.fake.finish = Finish("repetition")
    assert ask(client).json()["status"] == "incomplete"


@pytest.mark.parametrize("end", ["error", "abort", "boom"])
def test_a_stream_that_breaks_ends_in_failed(client: Any, end: str) -> None:
    client.fake.fails_at = 2 if end == "error" else None
    client.fake.finish = Finish("abort") if end == "abort" else Finish("stop")
    if end == "boom":
        client.fake.script = [Event(index=0, text="x"), Event(index=0, text="y", calls=(None,))]  # type: ignore[arg-type]
    last = events_of(ask(client, stream=True))[-1]
    check_event(last)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "NoneType" not in last["response"]["error"]["message"]


def test_logprobs(client: Any) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    reply = ask(client, **fields).json()
    logprobs = reply["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in logprobs) == "Hello world"
    assert len(logprobs[0]["top_logprobs"]) == 2
    check(reply, "Response", "ResponseReply")
    events = events_of(ask(client, stream=True, **fields))
    for event in events:
        check_event(event)
    streamed = [e for event in events if "delta" in event for e in event["logprobs"]]
    assert streamed == logprobs


def test_logprobs_of_text_that_came_late(client: Any) -> None:
    client.fake.says = "Hé"
    reply = ask(client, include=["message.output_text.logprobs"]).json()
    tokens = reply["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in tokens] == ["H", "", "é"]


def test_what_was_asked_becomes_a_job(client: Any) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        {"role": "user", "content": "Thanks"},
    ]
    other = {"type": "function", "name": "other", "description": "Else"}
    reply = ask(
        client,
        items,
        instructions="Be brief.",
        tools=[TOOL, other],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
        temperature=0.5,
        top_k=7,
        seed=3,
        stop=["x"],
        metadata={"a": "b"},
        cache_salt="s",
    )
    assert reply.status_code == 200, reply.text
    check(reply.json(), "Response", "ResponseReply")
    (job,) = client.fake.jobs
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    thought = {"reasoning": "Hm.", "reasoning_content": "Hm."}
    assert list(job.messages) == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", **thought, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny", "name": "weather"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks"},
    ]
    chat = job.chat
    assert (chat.parse, chat.tool_choice, chat.tool_name) == (True, "named", "weather")
    assert not chat.parallel_tool_calls
    assert chat.tools[1] == {"type": "function", "function": {"name": "other", "description": "Else"}}
    assert chat.kwargs == {"reasoning_effort": "low"}
    assert (job.sampling.temperature, job.sampling.top_k, job.sampling.seed) == (0.5, 7, 3)
    assert (job.salt, job.sampling.max_tokens) == ("s", None)
    told = reply.json()
    assert told["tool_choice"] == {"type": "function", "name": "weather"}
    assert (told["metadata"], told["instructions"]) == ({"a": "b"}, "Be brief.")


def test_tools_that_may_not_be_called_can_be_hidden(client: Any) -> None:
    ask(client, tools=[TOOL], tool_choice="none", stream=True)
    client.settings["exclude_tools_when_none"] = True
    told = ask(client, tools=[TOOL], tool_choice="none").json()
    shown, hidden = (job.chat for job in client.fake.jobs)
    assert (bool(shown.tools), hidden.tools, len(told["tools"])) == (True, None, 1)
    assert (shown.whole, hidden.whole) == (False, True), "calls come in pieces only where the answer does"


def test_allowed_tools(client: Any) -> None:
    other = {"type": "function", "name": "other", "parameters": {}}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    assert ask(client, tools=[TOOL, other], tool_choice=choice).status_code == 200
    chat = client.fake.jobs[0].chat
    assert chat.tool_choice == "required"
    assert [tool["function"]["name"] for tool in chat.tools] == ["other"]


def test_the_form_of_the_answer() -> None:
    from octavo.server.openai.responses.parse import form
    from octavo.server.openai.responses.requests import ResponsesRequest, TextOptions

    schema = {"type": "object"}
    wanted = {"type": "json_schema", "name": "x", "schema": schema}
    made = form(ResponsesRequest(text=TextOptions(format=wanted)))
    assert made is not None
    assert made.json == schema
    made = form(ResponsesRequest(text=TextOptions(format={"type": "json_object"})))
    assert made is not None
    assert made.json_object
    assert form(ResponsesRequest()) is None


BAD: list[dict[str, Any]] = [
    *({"input": v} for v in (None, [], 3, [3], [{"role": "user"}], [{"type": "computer_call"}])),
    *({"input": [{"role": "user", "content": [part]}]} for part in (3, {}, {"type": "input_image"})),
    *(
        {"input": [{"type": "function_call", "name": "x"}]},
        {"input": [{"type": "item_reference", "id": "y"}]},
    ),
    *({"tools": [tool]} for tool in ({"type": "web_search"}, {"type": "function"}, {"type": "mcp"}, {})),
    *(
        {"tool_choice": v}
        for v in ("required", "sometimes", {"type": "function", "name": "x"}, {"type": "mcp"})
    ),
    *({"max_output_tokens": v} for v in (0, -1, 513, 2**63, "x")),
    *({"top_logprobs": v} for v in (-1, 21, "x")),
    *({"text": {"format": f}} for f in ({"type": "xml"}, {"type": "json_schema"})),
    {"include": ["everything"]},
    {"input": [{"type": [], "role": "user", "content": "x"}]},
    {"tools": [TOOL], "tool_choice": {"type": "function", "name": []}},
    {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": []}]}},
    {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"structured_outputs": {"regexp": "a"}},
    {"background": True, "store": False},
    {"truncation": "sometimes"},
    {"prompt": {"id": "pmpt_1"}},
    {"conversation": "conv_1"},
    {"metadata": {"a": "x" * 513}},
    {"metadata": {"a": 3}},
    {"temperature": 3},
    {"stop": [""]},
]


@pytest.mark.parametrize("fields", BAD, ids=lambda v: json.dumps(v)[:60])
def test_refusals(client: Any, fields: dict[str, Any]) -> None:
    response = client.post("/v1/responses", {"input": "Hi", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == 400
    assert error["param"]
    assert client.fake.jobs == []


def test_other_errors(client: Any) -> None:
    assert ask(client, model="nobody").status_code == 404
    client.fake.refusal = QueueFull("Full.", retry_after_s=2)
    assert ask(client, background=True).status_code == 429
    assert ask(client, previous_response_id="resp_x").status_code == 404


def test_truncation_drops_the_oldest_turns(client: Any) -> None:
    turns = [
        {"role": role, "content": f"{role} {i} " + "x" * 60}
        for i in range(6)
        for role in ("user", "assistant")
    ]
    items = [{"role": "system", "content": "Rule."}, *turns, {"role": "user", "content": "Now?"}]
    assert ask(client, items).status_code == 400, "it does not fit"
    reply = ask(client, items, truncation="auto", max_output_tokens=20)
    assert reply.status_code == 200, reply.text
    left = client.fake.jobs[0].messages
    assert left[0]["content"] == "Rule."
    assert left[1]["role"] == "user"
    assert left[-1]["content"] == "Now?"
    assert len(left) > 4
    whole = client.fake.render(left)
    assert len(whole) <= 512 - 20 < len(whole) + 150


def test_tokens_are_counted(client: Any) -> None:
    counted = client.post("/v1/responses/input_tokens", {"input": "Hi"}).json()
    check(counted, "TokenCountsResource", "InputTokensReply")
    assert counted["input_tokens"] == ask(client).json()["usage"]["input_tokens"]


def test_raw_messages(client: Any) -> None:
    reply = ask(client, enable_response_messages=True).json()
    assert reply["input_messages"][0]["message"] == "<user>Hi"
    assert reply["output_messages"][0]["message"] == "Hello world"
    assert reply["output_messages"][0]["type"] == "raw_message_tokens"


@pytest.mark.parametrize("name", ["max_outputtokens", "max_tokens", "max_completion_tokens"])
def test_misspelt_fields_are_named(client: Any, name: str) -> None:
    reply = ask(client, **{name: 5})
    assert "max_output_tokens" in reply.headers["x-octavo-warning"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"cache_salt": "a/b"}, "cache_salt"),
        ({"priority": 2**31}, "priority"),
    ],
)
def test_errors_name_the_field_that_was_sent(client: Any, fields: dict[str, Any], param: str) -> None:
    assert ask(client, **fields).json()["error"]["param"] == param
