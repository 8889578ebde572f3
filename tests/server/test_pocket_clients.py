"""People's clients over the bundled model: OpenAI's chats and completions, Ollama's, LangChain's."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, Running, serving
from test_schema import Checker
from test_schema import check as check_openai

MODEL = "pocket"
HI: Any = [{"role": "user", "content": "天空为什么是蓝色的？"}]
OLLAMA = Path(__file__).parents[2] / "../shared/data/api_specs/ollama.openapi.yaml"


class Paint(pydantic.BaseModel):
    """What the tool takes and what structured answers are."""

    model_config = pydantic.ConfigDict(extra="forbid")
    color: Literal["red", "green"]
    sure: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def oai(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=LIMIT_S, max_retries=0) as client:
        yield client


def test_chats_and_completions(oai: openai.OpenAI) -> None:
    whole = oai.chat.completions.create(model=MODEL, messages=HI, temperature=0, max_tokens=12)
    assert whole.usage is not None
    options: Any = {"include_usage": True}
    chunks = list(
        oai.chat.completions.create(
            model=MODEL, messages=HI, temperature=0, max_tokens=12, stream=True, stream_options=options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    done = oai.completions.create(model=MODEL, prompt=["A", "B"], temperature=0, max_tokens=6, logprobs=1)
    assert [choice.index for choice in done.choices] == [0, 1]
    parts = oai.completions.create(model=MODEL, prompt="A", temperature=0, max_tokens=6, stream=True)
    assert "".join(part.choices[0].text for part in parts) == done.choices[0].text
    assert oai.models.retrieve(MODEL).id == MODEL


def test_chats_parsed_into_models(oai: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": HI, "max_tokens": 100, "response_format": Paint}
    parsed = oai.chat.completions.parse(**ask).choices[0].message.parsed
    assert isinstance(parsed, Paint)
    with oai.chat.completions.stream(**ask) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(streamed, Paint)
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Paint"}}])
def test_calls_parsed_into_models(oai: openai.OpenAI, choice: Any) -> None:
    ask: Any = {
        "model": MODEL,
        "messages": HI,
        "max_tokens": 200,
        "tools": [openai.pydantic_function_tool(Paint)],
    }
    ask |= {"tool_choice": choice, "parallel_tool_calls": False}
    (call,) = oai.chat.completions.parse(**ask).choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Paint)
    with oai.chat.completions.stream(**ask) as stream:
        deltas = [e for e in stream if e.type == "tool_calls.function.arguments.delta"]
        (last,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert isinstance(last.function.parsed_arguments, Paint)
    assert "".join(delta.arguments_delta for delta in deltas) == last.function.arguments


def test_embeddings_of_the_bundled_model() -> None:
    with serving(runner="pooling", convert="embed") as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", timeout=LIMIT_S) as client:
            made = client.embeddings.create(model=MODEL, input=["a b", "c"])
            assert [one.index for one in made.data] == [0, 1]
        reply = httpx.post(f"{running.url}/v1/embeddings", json={"input": "a b"}, timeout=LIMIT_S).json()
        check_openai(reply, "CreateEmbeddingResponse", "EmbeddingReply")
        assert reply["data"][0]["embedding"] == pytest.approx(made.data[0].embedding)
        reply = httpx.post(f"{running.url}/api/embed", json={"model": MODEL, "input": ["a b"]}).json()
        check_ollama(reply, "EmbedResponse")


# ---- Ollama ----


@functools.cache
def ollama_spec() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(OLLAMA.read_text()) if OLLAMA.exists() else None


def check_ollama(value: Any, name: str) -> None:
    """Against the schema that Ollama publishes."""
    if ollama_spec() is not None:
        assert Checker(ollama_spec(), ignore_nulls=False).problems(value, {"$ref": f"#/x/{name}"}) == []


def test_ollamas_schemas_hold(server: Running) -> None:
    chat = {"model": MODEL, "messages": HI, "options": {"num_predict": 4}, "logprobs": True}
    generate = {
        "model": MODEL,
        "prompt": "A",
        "options": {"num_predict": 4},
        "top_logprobs": 2,
        "logprobs": True,
    }
    with httpx.Client(base_url=server.url, timeout=LIMIT_S) as http:
        for path, body, name in (("/api/chat", chat, "Chat"), ("/api/generate", generate, "Generate")):
            check_ollama(http.post(path, json={**body, "stream": False}).json(), f"{name}Response")
            lines = http.post(path, json=body).text.splitlines()
            assert len(lines) > 1
            for line in lines:
                check_ollama(json.loads(line), f"{name}StreamEvent")
        check_ollama(http.get("/api/tags").json(), "ListResponse")
        check_ollama(http.get("/api/ps").json(), "PsResponse")
        check_ollama(http.get("/api/version").json(), "VersionResponse")
        check_ollama(http.post("/api/show", json={"model": MODEL}).json(), "ShowResponse")
        for line in http.post("/api/pull", json={"model": MODEL}).text.splitlines():
            check_ollama(json.loads(line), "StatusEvent")


def test_ollamas_client(server: Running) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url, timeout=LIMIT_S)
    options = {"temperature": 0, "num_predict": 12}
    whole = client.chat(MODEL, messages=HI, options=options)
    parts = list(client.chat(MODEL, messages=HI, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count
    formed = client.chat(MODEL, messages=HI, format=Paint.model_json_schema())
    assert isinstance(Paint.model_validate_json(formed.message.content), Paint)
    said = client.generate(MODEL, "A", options=options, format="json", system="S").response
    assert said.startswith("{")
    assert client.show(MODEL).modelinfo
    client.close()


# ---- LangChain ----


def ask_chain(model: Any) -> None:
    """A stream that says what the whole answer says, and an answer as a pydantic model."""
    whole = model.invoke("Hi")
    parts = list(model.stream("Hi"))
    assert "".join(part.content for part in parts) == whole.content
    assert isinstance(model.with_structured_output(Paint, method="json_schema").invoke("Hi"), Paint)


def test_langchain_over_openais_doors(server: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    for more in ({}, {"use_responses_api": True}):
        model = langchain.ChatOpenAI(
            model=MODEL, base_url=f"{server.url}/v1", api_key="-", temperature=0, max_tokens=100, **more
        )
        if not more:
            ask_chain(model)
        made = model.bind_tools([Paint], tool_choice="Paint").invoke("Hi")
        (call,) = made.tool_calls
        assert call["name"] == "Paint"
        Paint.model_validate(call["args"])
    model.root_client.close()  # both models share its connections


def test_langchain_over_ollamas_doors(server: Running) -> None:
    langchain = pytest.importorskip("langchain_ollama")
    model = langchain.ChatOllama(model=MODEL, base_url=server.url, temperature=0, num_predict=100)
    ask_chain(model)
    model._client.close()
