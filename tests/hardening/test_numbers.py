"""Every number of every body, out of every range, against the real engine while good streams go on."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Live, Start
from test_secrets import INSIDES

from octavo.types.sampling import SamplingParams

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999"),  # no JSON, or more than any float
    *("0", "-0.0", "-1", "1", "0.5", "1e308", "-1e308", "5e-324", "1e40", "16385"),
    *(
        str(sign * (1 << bits) + more)
        for bits in (31, 32, 53, 63, 64)
        for sign in (1, -1)
        for more in (-1, 0, 1)
    ),
    "1" + "0" * 400,
)
NO_NUMBERS = NUMBERS[:5]
TURNS = [{"role": "user", "content": "x"}]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURNS, "max_tokens": 2},
    "/v1/chat/completions/batch": {"messages": [TURNS], "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/messages": {"messages": TURNS, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": TURNS},
    "/v1/batches": {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"},
    "/v1/embeddings": {"input": "x"},
    "/v2/embed": {"texts": ["x"], "input_type": "search_query"},
    "/pooling": {"input": "x"},
    "/classify": {"input": "x"},
    "/score": {"text_1": "x", "text_2": "y"},
    "/rerank": {"query": "x", "documents": ["y"]},
    "/generative_scoring": {"query": "x", "items": ["y"], "label_token_ids": [1, 2]},
    "/abort_requests": {"request_ids": ["x"]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/generate": {"prompt": "x", "max_tokens": 2},
    "/api/generate": {"model": "pocket", "prompt": "x", "stream": False, "options": {"num_predict": 2}},
    "/api/chat": {"model": "pocket", "messages": TURNS, "stream": False, "options": {"num_predict": 2}},
    "/api/embed": {"model": "pocket", "input": "x"},
    "/api/embeddings": {"model": "pocket", "prompt": "x"},
    "/api/show": {"model": "pocket"},
    "/api/pull": {"model": "pocket", "stream": False},
    "/api/delete": {"model": "pocket"},
}
SAME = {"/v1/score": "/score", "/v1/rerank": "/rerank", "/v2/rerank": "/rerank"}
OPTIONS = (
    *("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *(
        "seed",
        "num_ctx",
        "num_predict",
        "num_keep",
        "num_thread",
        "mirostat",
        "mirostat_tau",
        "repeat_last_n",
    ),
    *("typical_p", "thinking_token_budget"),
)
FREE = {"/api/generate": ("options", OPTIONS), "/api/chat": ("options", OPTIONS)}
"""Objects of which the document does not say what is in them."""
MARK = "THE NUMBER"
JSON = {"Content-Type": "application/json"}
Body = dict[str, Any]


def kinds(spec: Body, schema: Body) -> Iterator[Body]:
    """What a value of a schema may be, without references and unions."""
    if "$ref" in schema:
        yield from kinds(spec, spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    elif "anyOf" in schema:
        for kind in schema["anyOf"]:
            yield from kinds(spec, kind)
    else:
        yield schema


def values(spec: Body, schema: Body, depth: int = 3) -> Iterator[Any]:
    """Values of a schema that hold one `MARK` in the place of a number, one for each such place."""
    for kind in kinds(spec, schema):
        if kind.get("type") in ("integer", "number"):
            yield MARK
        elif kind.get("type") == "array" and depth:
            yield from ([value] for value in values(spec, kind.get("items", {}), depth - 1))
        elif kind.get("type") == "object" and depth:
            for name, inner in kind.get("properties", {}).items():
                yield from ({name: value} for value in values(spec, inner, depth - 1))
            more = kind.get("additionalProperties")
            if isinstance(more, dict):
                yield from ({"1": value} for value in values(spec, more, depth - 1))


def bodies(spec: Body) -> list[tuple[str, str, str]]:
    """(method, path, text of a body with one MARK) for each number of each door."""
    found = []
    for path, methods in spec["paths"].items():
        for method, entry in methods.items():
            schema = entry.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if schema is None:
                continue
            base = BASES[SAME.get(path, path)]
            marked: list[Any] = list(values(spec, schema))
            if path in FREE:
                free, names = FREE[path]
                marked += [{free: {"num_predict": 2, name: MARK}} for name in names]
            if path == "/generate":
                marked += [{name: MARK} for name in SamplingParams.__struct_fields__]
            found += [(method, path, json.dumps({**base, **body})) for body in marked]
    return found


def good(reply: httpx.Response, text: str) -> bool:
    """Whether an answer is one that a client may get for a number out of range."""
    if reply.status_code == 200:
        return text not in NO_NUMBERS
    words = reply.text
    return 400 <= reply.status_code < 500 and '"error"' in words and not INSIDES.search(words)


def attack(live: Live, each: int) -> int:
    """Send `each` of the numbers in every place, while streams go on; how many were taken.

    Nothing is answered with anything but 200 or an error of the client's, and the streams end as ever.
    """
    spec, draw = httpx.get(f"{live.url}/openapi.json").json(), random.Random(each)
    rest = iter([(*body, text) for body in bodies(spec) for text in draw.sample(NUMBERS, each)])
    pooled = live.service.preparer.pooler is not None
    steady = "/v1/embeddings" if pooled else "/v1/completions"
    answer: Body = {"prompt": "Once", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    wrong: list[str] = []
    replies: set[str] = set()
    taken = senders = 0

    async def sender(http: httpx.AsyncClient) -> None:
        nonlocal taken, senders
        senders += 1
        for method, path, body, text in rest:
            content = body.replace(f'"{MARK}"', text)
            reply = await http.request(method, path, content=content, headers=JSON)
            taken += reply.status_code == 200
            if not good(reply, text):
                wrong.append(f"{path} {content}: {reply.status_code} {reply.text[:200]}")
        senders -= 1

    async def stream(http: httpx.AsyncClient) -> None:
        while senders:
            reply = await http.post(steady, json={"input": "x"} if pooled else answer)
            text = re.sub(r'"(id|created)":("[^"]*"|\d+),', "", reply.text)
            replies.add(text if reply.is_success else "bad")

    async def go() -> None:
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as http:
            await asyncio.gather(*(sender(http) for _ in range(4)), *(stream(http) for _ in range(8)))

    asyncio.run(go())
    assert wrong == []
    assert len(replies - {"bad"}) == len(replies) == 1
    return taken


@pytest.mark.parametrize("convert", ["none", "embed"])
def test_numbers_out_of_range_cost_nobody_else_anything(start: Start, convert: str) -> None:
    runner = {} if convert == "none" else {"runner": "pooling", "convert": convert}
    live = start({"max_model_len": 64, "max_num_seqs": 16, **runner})
    assert attack(live, 4) > 50
    live.idle()
