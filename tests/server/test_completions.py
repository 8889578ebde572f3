"""/v1/completions: every form of prompt, echo, logprobs, best_of, many prompts in one stream."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import Event


@pytest.mark.parametrize(
    ("prompt", "ran"),
    [
        ("ab", [("ab", None)]),
        (["ab", "c"], [("ab", None), ("c", None)]),
        ([97, 98], [(None, (97, 98))]),
        ([[97], [98, 99]], [(None, (97,)), (None, (98, 99))]),
        ("", [("", None)]),
    ],
)
def test_forms_of_prompt(client: Any, prompt: Any, ran: Any) -> None:
    reply = client.complete(prompt).json()
    assert [(job.prompt, job.prompt_ids) for job in client.fake.jobs] == ran
    assert [c["index"] for c in reply["choices"]] == list(range(len(ran)))
    tokens = sum(len(text.encode()) if text is not None else len(ids) for text, ids in ran)
    assert reply["usage"] == {
        "prompt_tokens": tokens, "completion_tokens": 11 * len(ran), "total_tokens": tokens + 11 * len(ran),
        "prompt_tokens_details": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], [1, "a"], ["a", 1], [[1], 2], ["a", [1]], [-1], [2**31], [[True]]]
)
def test_bad_prompts(client: Any, prompt: Any) -> None:
    response = client.complete(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(("prompt", "body.prompt"))


def test_default_max_tokens_is_16(client: Any) -> None:
    client.fake.says = "x" * 50
    reply = client.complete(max_tokens=None).json()
    assert reply["choices"][0]["text"] == "x" * 16
    assert reply["choices"][0]["finish_reason"] == "length"


def test_n_and_prompts_number_the_choices(client: Any, stream: Any) -> None:
    client.fake.says = "ab"
    reply = client.complete(["p", "q"], n=2).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
    chunks = stream(client.complete(["p", "q"], n=2, stream=True, echo=True))
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "pab", 1: "pab", 2: "qab", 3: "qab"}
    assert sum(c["choices"][0]["finish_reason"] == "stop" for c in chunks) == 4


@pytest.mark.parametrize("prompt", ["Say:", list(b"Say:")])
@pytest.mark.parametrize("streamed", [False, True])
def test_echo(client: Any, stream: Any, prompt: Any, streamed: bool) -> None:
    response = client.complete(prompt, echo=True, max_tokens=2, stream=streamed)
    if streamed:
        assert [c["choices"][0]["text"] for c in stream(response)] == ["Say:H", "e"]
    else:
        assert response.json()["choices"][0]["text"] == "Say:He"


@pytest.mark.parametrize("streamed", [False, True])
def test_echo_with_logprobs_scores_the_prompt(client: Any, stream: Any, streamed: bool) -> None:
    response = client.complete("pq", echo=True, max_tokens=1, logprobs=1, stream=streamed)
    body = stream(response)[0] if streamed else response.json()
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [None, -1.0, -1.0],
        "tokens": ["p", "q", "H"],
        "top_logprobs": [None, {"q": -1.0, "A": -0.25}, {"H": -1.0, "A": -0.25}],
    }


@pytest.mark.parametrize("streamed", [False, True])
def test_prompt_alone(client: Any, stream: Any, streamed: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    response = client.complete("pq", echo=True, max_tokens=0, logprobs=0, return_token_ids=True, **options)
    chunks = stream(response) if streamed else [response.json()]
    choice = chunks[0]["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["token_ids"]) == ("pq", "length", [])
    assert choice["prompt_token_ids"] == [112, 113]
    assert choice["logprobs"]["tokens"] == ["p", "q"]
    assert chunks[-1]["usage"]["completion_tokens"] == 0
    assert client.fake.jobs[0].default_max_tokens == 0


def test_logprobs_of_a_stream_have_running_offsets(client: Any, stream: Any) -> None:
    client.fake.says = "aé!"
    whole = client.complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert whole["tokens"] == ["a", "", "é", "!"]
    assert whole["text_offset"] == [0, 1, 1, 2]
    assert whole["top_logprobs"][0] == {"a": -1.0, "A": -0.25}
    pieces = [c["choices"][0]["logprobs"] for c in stream(client.complete(logprobs=2, stream=True))]
    assert [o for p in pieces for o in p["text_offset"]] == whole["text_offset"]
    assert [t for p in pieces for t in p["tokens"]] == whole["tokens"]


def test_prompt_logprobs_without_echo(client: Any) -> None:
    choice = client.complete("pq", prompt_logprobs=0).json()["choices"][0]
    assert choice["prompt_logprobs"] == [None, {"113": {"logprob": -1.0, "rank": 2, "decoded_token": "q"}}]
    assert choice["logprobs"] is None


def test_best_of_goes_to_the_pipeline(client: Any) -> None:
    reply = client.complete(n=2, best_of=3).json()
    sampling = client.fake.jobs[0].sampling
    assert (sampling.n, sampling.best_of) == (2, 3)
    assert [c["index"] for c in reply["choices"]] == [0, 1]
    assert client.chat(best_of=2).status_code == 200
    for refused in ({"stream": True}, {"temperature": 0}):
        assert client.complete(best_of=3, **refused).json()["error"]["param"] == "best_of"


def test_token_ids(client: Any, stream: Any) -> None:
    client.fake.says = "ab"
    choice = client.complete("p", return_token_ids=True).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([112], [97, 98])
    chunks = stream(client.complete("p", return_token_ids=True, stream=True))
    assert [c["choices"][0]["token_ids"] for c in chunks] == [[97], [98]]
    assert [c["choices"][0]["prompt_token_ids"] for c in chunks] == [[112], None]


def test_one_refused_prompt_ends_them_all(client: Any) -> None:
    response = client.complete([[97], [300]])
    assert response.status_code == 400
    assert len(client.fake.aborted) == 1
    assert client.fake.live == set()


def test_beam_search(client: Any) -> None:
    body = {"use_beam_search": True, "n": 2, "temperature": 0, "max_tokens": 3, "logprobs": 1}
    reply = client.complete("P", **body).json()
    assert [(choice["index"], choice["finish_reason"]) for choice in reply["choices"]] == [
        (0, "length"),
        (1, "length"),
    ]
    texts = [choice["text"] for choice in reply["choices"]]
    assert len(set(texts)) == 2
    assert all(len(text) == 3 for text in texts)
    assert reply["usage"]["completion_tokens"] == 6
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 3
    assert client.chat(**{**body, "logprobs": True}).status_code == 200
    refused = client.complete("P", **{**body, "stop": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop")
    assert not client.fake.live


def test_times_for_whoever_asks(client: Any, stream: Any) -> None:
    names = [
        "time_to_first_token_ms",
        "generation_time_ms",
        "mean_itl_ms",
        "tokens_per_second",
        "total_time_ms",
    ]
    assert client.complete("P").json()["metrics"] is None
    for reply in (client.complete("P", return_metrics=True), client.chat(return_metrics=True)):
        told = reply.json()["metrics"]
        assert list(told) == names
        assert told["total_time_ms"] >= told["time_to_first_token_ms"] + told["generation_time_ms"] - 0.01
    client.settings["enable_per_request_metrics"] = True
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    for chunks in (stream(client.complete("P", **fields)), stream(client.chat(**fields))):
        assert list(chunks[-1]["metrics"]) == names
        assert all("metrics" not in chunk for chunk in chunks[:-1])


def test_named_tokens_are_shown_with_their_logprobs(client: Any) -> None:
    told = TokenLogprobs((72, 90, 65), (-1.0, -0.5, -7.0), (2, 1, 90))
    client.fake.script = [Event(index=0, text="H", tokens=(72,), logprobs=(told,), finish=Finish("stop"))]
    reply = client.complete(logprobs=0, logprob_token_ids=[90, 65]).json()
    assert reply["choices"][0]["logprobs"]["top_logprobs"] == [{"H": -1.0, "Z": -0.5, "A": -7.0}]
    assert client.fake.jobs[0].sampling.logprob_token_ids == [90, 65]
    for fields in ({}, {"logprobs": 1, "echo": True, "max_tokens": 0}):
        error = client.complete(logprob_token_ids=[90], **fields).json()["error"]
        assert (error["code"], error["param"]) == (400, "logprob_token_ids")
