"""POST /generative_scoring: probabilities of labels, held against log-probabilities of /v1/completions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, Running, serving

QUERY, ITEMS, LABELS = "The sky is", [" blue", " green today", ""], [25, 11, 365]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def ask(server: Running, path: str = "/generative_scoring", **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=LIMIT_S)


def told(server: Running, prompt: str) -> dict[int, float]:
    """The labels' log-probabilities behind a prompt."""
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": 0, "logprob_token_ids": LABELS}
    reply = ask(server, "/v1/completions", **body, return_tokens_as_token_ids=True).json()
    [top] = reply["choices"][0]["logprobs"]["top_logprobs"]
    return {label: top[f"token_id:{label}"] for label in LABELS}


@pytest.mark.parametrize("softmax", [True, False, None])
@pytest.mark.parametrize("item_first", [False, True])
def test_scores_are_the_probabilities_of_the_first_label(
    server: Running, softmax: bool | None, item_first: bool
) -> None:
    body = {"query": QUERY, "items": ITEMS, "label_token_ids": LABELS, "item_first": item_first}
    reply = ask(server, **body, apply_softmax=softmax).json()
    assert (reply["object"], reply["model"]) == ("list", "pocket")
    assert reply["id"].startswith("generative-scoring-")
    assert reply["usage"]["completion_tokens"] == len(ITEMS)
    for i, (item, found) in enumerate(zip(ITEMS, reply["data"], strict=True)):
        logprobs = told(server, item + QUERY if item_first else QUERY + item)
        whole = 1.0 if softmax is False else sum(map(math.exp, logprobs.values()))
        assert (found["index"], found["object"]) == (i, "score")
        assert found["score"] == pytest.approx(math.exp(logprobs[LABELS[0]]) / whole, rel=1e-5)


def test_texts_and_token_ids_are_the_same(server: Running) -> None:
    ids = [
        ask(server, "/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
        for text in (QUERY, *ITEMS)
    ]
    texts = ask(server, query=QUERY, items=ITEMS, label_token_ids=LABELS).json()
    tokens = ask(server, query=ids[0], items=ids[1:], label_token_ids=LABELS).json()
    assert texts["data"] == tokens["data"]
    assert texts["usage"]["prompt_tokens"] == tokens["usage"]["prompt_tokens"]
    one = ask(server, query=QUERY, items=ITEMS, label_token_ids=LABELS[:1]).json()
    assert [found["score"] for found in one["data"]] == [1.0] * 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": 5}, "body.query"),
        ({"items": []}, "items"),
        ({"items": "x"}, "body.items"),
        ({"items": [5]}, "body.items.0"),
        ({"items": [[-1]]}, "items.0"),
        ({"items": ["x"] * 1025}, "items"),
        ({"label_token_ids": []}, "label_token_ids"),
        ({"label_token_ids": [3584]}, "label_token_ids"),
        ({"label_token_ids": [-1]}, "label_token_ids"),
        ({"label_token_ids": list(range(129))}, "label_token_ids"),
        ({"label_token_ids": [2**63]}, "label_token_ids"),
        ({"label_token_ids": ["x"]}, "body.label_token_ids.0"),
        ({"query": "", "items": [""]}, "prompt"),
        ({"query": "x " * 4000}, "prompt"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"priority": 2**31}, "priority"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_refused(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = ask(server, **{"query": QUERY, "items": ITEMS, "label_token_ids": LABELS, **fields})
    assert reply.status_code == (404 if "model" in fields else 400), reply.text
    assert reply.json()["error"]["param"] == param


def test_all_labels_that_may_be_asked_for(server: Running) -> None:
    reply = ask(server, query=QUERY, items=["x"] * 64, label_token_ids=list(range(128)), user="me")
    assert len(reply.json()["data"]) == 64
    assert "x-octavo-warning" not in reply.headers


def test_numbers_that_are_no_probabilities() -> None:
    with serving(logprobs_mode="raw_logits") as server:
        reply = ask(server, query=QUERY, items=ITEMS, label_token_ids=LABELS)
        assert (reply.status_code, "raw_logits" in reply.text) == (400, True)
