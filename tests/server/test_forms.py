"""Forms of answers and forced tool calls through OpenAI's doors, with the bundled model."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, Running, serving

ASK: Any = [{"role": "user", "content": "Why is the sky blue?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "$defs": {"unit": {"enum": ["C", "F"]}},
                "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"$ref": "#/$defs/unit"}},
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S, max_retries=0) as made:
        yield made


def chat(server: Running, **fields: Any) -> Any:
    body = {"model": "pocket", "messages": ASK, "max_tokens": 200, "seed": 5, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LIMIT_S)


def test_a_schema_holds_in_a_stream(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
    stream = client.chat.completions.create(
        model="pocket", messages=ASK, response_format=form, stream=True, temperature=1.0, seed=1
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    jsonschema.validate(json.loads(text), PERSON)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_pydantic_models_are_parsed(client: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        sky: str = pydantic.Field(max_length=10)
        blue: bool

    reply = client.chat.completions.parse(model="pocket", messages=ASK, response_format=Answer, seed=2)
    assert isinstance(reply.choices[0].message.parsed, Answer)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": r"\d{3}"}, r"[0-9]{3}"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_grammar": 'root ::= "a" "b"*  "c"'}, "ab*c"),
        ({"structured_outputs": {"grammar": 'start: "x" /[yz]/ "!"'}}, "x[yz]!"),
        ({"structured_outputs": {"regex": "[a-f]{2,4}"}, "n": 3, "temperature": 1.0}, "[a-f]{2,4}"),
        ({"structured_outputs": {"regex": " [a-f]{4}"}, "ignore_eos": True}, " [a-f]{4}"),
        ({"structured_outputs": {"choice": ["one"]}, "min_tokens": 30}, "one"),
        ({"structured_outputs": {"regex": "[ab]+c"}, "logit_bias": {"5": 1}}, "[ab]+c"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": None}, r"(?s)\{.*"),
    ],
)
def test_forms_hold_in_both_doors(server: Running, fields: dict[str, Any], pattern: str) -> None:
    for choice in chat(server, **fields).json()["choices"]:
        assert re.fullmatch(pattern, choice["message"]["content"])
    body = {"model": "pocket", "prompt": "The sky is", "max_tokens": 200, **fields}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LIMIT_S).json()
    for choice in reply["choices"]:
        assert re.fullmatch(pattern, choice["text"])
        if "json_object" not in str(fields):
            assert choice["finish_reason"] == "stop"


def test_log_probabilities_go_with_a_form(server: Running) -> None:
    reply = chat(server, guided_choice=["left", "right"], logprobs=True, top_logprobs=2).json()["choices"][0]
    assert "".join(entry["token"] for entry in reply["logprobs"]["content"]) == reply["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_json": {"uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_grammar": "a :="}, "guided_grammar", "cannot be read"),
        ({"guided_json": "x"}, "guided_json", "no JSON"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "not"),
        ({"guided_json": PERSON, "guided_regex": "a"}, "guided_regex", "each ask"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
            "response_format",
            "thing",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
          "tool_choice": "required"}, "tools", "not"),
    ],
)  # fmt: skip
def test_a_bad_form_is_a_400_with_the_reason(
    server: Running, fields: dict[str, Any], param: str, words: str
) -> None:
    reply = chat(server, **fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call_fits_its_schema(client: openai.OpenAI, parallel: bool) -> None:
    named = set()
    for seed in range(4):
        reply = client.chat.completions.create(
            model="pocket",
            messages=ASK,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=parallel,
            seed=seed,
            temperature=1.0,
            max_tokens=300,
        )
        calls: Any = reply.choices[0].message.tool_calls
        cut = reply.choices[0].finish_reason == "length"
        assert cut or reply.choices[0].finish_reason == "tool_calls"
        assert parallel or len(calls) == 1
        for call in calls[:-1] if cut else calls:
            check_call(call.function.name, call.function.arguments)
            named.add(call.function.name)
    assert named


def check_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "now":
        assert given == {}
    else:
        jsonschema.validate(given, TOOLS[0]["function"]["parameters"])


@pytest.mark.parametrize("name", ["weather", "now"])
def test_a_named_call_fits_its_schema_in_a_stream(client: openai.OpenAI, name: str) -> None:
    stream = client.chat.completions.create(
        model="pocket",
        messages=ASK,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": name}},
        stream=True,
        seed=3,
    )
    names, arguments = "", ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            names += call.function.name or ""
            arguments += call.function.arguments or ""
    assert names == name
    check_call(name, arguments)


def test_compiling_holds_nothing_up(server: Running) -> None:
    """While expensive schemas are compiled, other requests are answered at once."""

    async def go() -> tuple[list[int], float]:
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S) as http:
            schemas = [
                {"properties": {f"{i}_{j}": {"type": "string"} for j in range(1500)}} for i in range(4)
            ]
            slow = [
                asyncio.create_task(
                    http.post(
                        "/v1/chat/completions",
                        json={"messages": ASK, "max_tokens": 2, "guided_json": schema},
                    )
                )
                for schema in schemas
            ]
            worst = 0.0
            while not all(task.done() for task in slow):
                started = time.perf_counter()
                assert (await http.get("/health")).status_code == 200
                worst = max(worst, time.perf_counter() - started)
                await asyncio.sleep(0.005)
            return [(await task).status_code for task in slow], worst

    codes, worst = asyncio.run(go())
    assert set(codes) == {200}
    assert worst < 1.0
