"""Replies, chunks and errors against OpenAI's own schema, and against the one that this server publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.server.document import openapi

SPEC = Path(__file__).parents[2] / "../shared/data/api_specs/openai_subset.openapi.json"

EXTRA_NULLS = {
    *("annotations", "audio", "function_call", "service_tier", "usage", "stop_reason", "token_logprobs"),
    *("prompt_tokens_details", "finish_reason"),
}
"""vLLM sends these as null where OpenAI leaves them out; its clients take both."""


class Checker:
    """The part of JSON Schema that both documents use."""

    def __init__(self, spec: dict[str, Any], ignore_nulls: bool) -> None:
        self._schemas = spec["components"]["schemas"]
        self._ignore_nulls = ignore_nulls

    def problems(self, value: Any, schema: dict[str, Any], at: str = "$") -> list[str]:
        if "$ref" in schema:
            return self.problems(value, self._schemas[schema["$ref"].rpartition("/")[2]], at)
        if value is None and schema.get("nullable"):
            return []
        found = []
        for kind in ("anyOf", "oneOf"):
            if kind in schema and all(self.problems(value, s, at) for s in schema[kind]):
                found.append(f"{at}: {value!r:.60} is none of {kind}")
        for part in schema.get("allOf", ()):
            found += self.problems(value, part, at)
        if "enum" in schema and value not in schema["enum"]:
            found.append(f"{at}: {value!r:.60} not in {schema['enum']}")
        if "type" in schema and not self._is(value, schema["type"]):
            return [*found, f"{at}: {value!r:.60} is not {schema['type']}"]
        if isinstance(value, dict):
            found += self._object(value, schema, at)
        if isinstance(value, list) and isinstance(schema.get("items"), dict):
            for i, item in enumerate(value):
                found += self.problems(item, schema["items"], f"{at}[{i}]")
        return found

    def _object(self, value: dict[str, Any], schema: dict[str, Any], at: str) -> list[str]:
        found = [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        others = schema.get("additionalProperties")
        for name, part in value.items():
            if part is None and self._ignore_nulls and name in EXTRA_NULLS:
                continue
            if name in schema.get("properties", {}):
                found += self.problems(part, schema["properties"][name], f"{at}.{name}")
            elif isinstance(others, dict):
                found += self.problems(part, others, f"{at}.{name}")
        return found

    @staticmethod
    def _is(value: Any, kind: str | list[str]) -> bool:
        if isinstance(kind, list):
            return any(Checker._is(value, k) for k in kind)
        if isinstance(value, bool) or kind == "boolean":
            return isinstance(value, bool) and kind == "boolean"
        kinds: dict[str, Any] = {
            "object": dict,
            "array": list,
            "string": str,
            "integer": int,
            "number": (int, float),
            "null": type(None),
        }
        return isinstance(value, kinds[kind])


OURS = Checker(openapi(), ignore_nulls=False)


def check(value: Any, theirs: str | None, ours: str) -> None:
    """Against our own document always, against OpenAI's where it is at hand."""
    assert OURS.problems(value, {"$ref": f"#/x/{ours}"}) == []
    if theirs is not None and SPEC.exists():
        spec = json.loads(SPEC.read_text())
        assert Checker(spec, ignore_nulls=True).problems(value, {"$ref": f"#/x/{theirs}"}) == []


FIELDS: list[dict[str, Any]] = [
    {},
    {"n": 2, "temperature": 0.5},
    {"return_token_ids": True, "stop": ["x"]},
]
CHAT_FIELDS: list[dict[str, Any]] = [*FIELDS, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}]
TEXT_FIELDS: list[dict[str, Any]] = [*FIELDS, {"logprobs": 0}, {"logprobs": 2}, {"echo": True}]
STREAM: dict[str, Any] = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


@pytest.mark.parametrize("fields", [*CHAT_FIELDS, {"prompt_logprobs": 1}], ids=str)
def test_chat(client: Any, fields: dict[str, Any]) -> None:
    check(client.chat(**fields).json(), "CreateChatCompletionResponse", "ChatReply")


@pytest.mark.parametrize("fields", CHAT_FIELDS, ids=str)
@pytest.mark.parametrize("options", [STREAM, {"stream": True}], ids=["usage", "plain"])
def test_chat_chunks(client: Any, stream: Any, fields: dict[str, Any], options: dict[str, Any]) -> None:
    for chunk in stream(client.chat(**fields, **options)):
        check(chunk, "CreateChatCompletionStreamResponse", "ChatChunk")


@pytest.mark.parametrize("fields", TEXT_FIELDS, ids=str)
def test_completion(client: Any, fields: dict[str, Any]) -> None:
    check(client.complete(**fields).json(), "CreateCompletionResponse", "CompletionReply")


@pytest.mark.parametrize("fields", TEXT_FIELDS, ids=str)
def test_completion_chunks(client: Any, stream: Any, fields: dict[str, Any]) -> None:
    for chunk in stream(client.complete(**fields, **STREAM)):
        check(chunk, "CreateCompletionResponse", "CompletionChunk")


def test_models(client: Any) -> None:
    check(client.get("/v1/models").json(), "ListModelsResponse", "ModelList")
    check(client.get("/v1/models/pocket").json(), "Model", "ModelCard")


def test_the_rest(client: Any) -> None:
    check(client.post("/tokenize", {"prompt": "x", "return_token_strs": True}).json(), None, "TokenizeReply")
    check(client.post("/detokenize", {"tokens": [97]}).json(), None, "DetokenizeReply")
    check(client.post("/generate", {"prompt": "x"}).json(), None, "GenerateReply")


def test_errors(client: Any) -> None:
    for response in (client.chat(n=0), client.chat(n="x"), client.get("/no"), client.get("/v1/completions")):
        check(response.json(), None, "ErrorBody")


def test_the_checker_finds_faults(client: Any) -> None:
    good = client.chat().json()
    for spoil in (
        lambda r: r.pop("id"),
        lambda r: r.update(created="now"),
        lambda r: r["choices"][0].pop("message"),
        lambda r: r["choices"][0]["message"].update(content=3),
        lambda r: r.update(object="chat"),
    ):
        bad = json.loads(json.dumps(good))
        spoil(bad)
        assert OURS.problems(bad, {"$ref": "#/x/ChatReply"}) != []
