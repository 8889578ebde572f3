"""Every refusal: one OpenAI error object, the right status, the field's name, and never a 500."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import QueueFull, Unavailable
from octavo.server.errors import ABSENT
from octavo.types.engine import Finish
from octavo.types.job import Event

HUGE = [2**31, 2**63, -(2**63) - 1, 10**30]

CHAT = [
    *[("n", v) for v in (0, -1, 16385, *HUGE, "2", 1.5, True, [1])],
    *[("temperature", v) for v in (-0.1, 2.1, "hot", [], 1e300)],
    *[("top_p", v) for v in (0, 1.1, -1, "x")],
    *[("top_k", v) for v in (-2, 2**63, "x", 0.5)],
    *[("min_p", v) for v in (-0.1, 1.1)],
    *[("presence_penalty", v) for v in (-2.1, 2.1)],
    *[("frequency_penalty", v) for v in (-2.1, 2.1)],
    *[("repetition_penalty", v) for v in (0, -1)],
    *[("seed", v) for v in (2**63, "x", 1.5)],
    *[("max_tokens", v) for v in (0, -1, 513, *HUGE, "5")],
    *[("max_completion_tokens", v) for v in (0, 2**31, "5")],
    *[("min_tokens", v) for v in (-1, 2**63)],
    *[("stop", v) for v in ("", [""], ["a"] * 5, 3, [1])],
    *[("stop_token_ids", v) for v in ([-1], [2**31], ["a"], "a", [1] * 4097)],
    *[("bad_words", v) for v in ([""], ["a"] * 129, "a")],
    *[("logit_bias", v) for v in ({"a": 1}, {"-1": 1}, {"1": "x"}, [1], {str(i): 0 for i in range(4097)})],
    *[("allowed_token_ids", v) for v in ([], [-1], "x")],
    *[("top_logprobs", v) for v in (-2, 2**63, "x")],
    *[("prompt_logprobs", v) for v in (-2, 2**63, "x")],
    *[("priority", v) for v in (2**31, -(2**63), "x")],
    *[("cache_salt", v) for v in ("", "x" * 129, "a/b", "a@b", "a\\b", "a\0b", 3)],
    *[("truncate_prompt_tokens", v) for v in (-2, "x")],
    ("truncation_side", "middle"),
    ("response_format", "json"),
    ("response_format", {"type": 3}),
    ("response_format", {"type": "xml"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("structured_outputs", "json"),
    ("structured_outputs", {}),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}),
    ("structured_outputs", {"regexp": "a"}),
    ("structured_outputs", {"regex": ["a"]}),
    ("structured_outputs", {"choice": []}),
    ("structured_outputs", {"choice": [""]}),
    ("guided_json", 3),
    ("guided_choice", "a"),
    ("kv_transfer_params", {"a": 1}),
    *[("logprob_token_ids", v) for v in ("a", [-1], [1.5], [2**63])],
    ("thinking_token_budget", -2),
    ("thinking_token_budget", "5"),
    ("repetition_detection", {"max_pattern_size": 2, "min_count": 1}),
    ("repetition_detection", {"max_pattern_size": 2, "count": 3}),
    ("repetition_detection", 3),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("audio", {"voice": "x"}),
    ("modalities", ["audio"]),
    ("chat_template", "{{ 1 }}"),
    ("tool_choice", "auto"),
    ("tool_choice", "sometimes"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("tools", []),
    ("tools", ["x"]),
    ("tools", [{}] * 513),
    ("stream_options", {"include_usage": True}),
    ("continue_final_message", True),
    *[("best_of", v) for v in (0, 16385, "2")],
    ("messages", []),
    ("messages", "Hi"),
    ("messages", [1]),
    ("messages", [{"content": "x"}]),
    ("messages", [{"role": 3, "content": "x"}]),
    ("messages", [{"role": "user", "content": 3}]),
    ("messages", [{"role": "user", "content": [3]}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ("messages", [{"role": "user", "content": "x"}] * 4097),
    ("model", 3),
    ("stream", "yes"),
    ("user", 3),
]


def check(response: Any, status: int = 400) -> dict[str, Any]:
    """The error object of a response."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert len(error["message"]) < 500
    for inside in ("0x", "/work/", "Traceback", ".py"):
        assert inside not in error["message"]
    return dict(error)


def is_named(param: str | None, field: str) -> bool:
    """Whether `param` names the field, or the one that it stands for."""
    other = {"top_logprobs": "logprobs"}.get(field, field)
    return param is not None and (field in param or other in param)


@pytest.mark.parametrize(("field", "value"), CHAT, ids=lambda v: str(v)[:30])
def test_bad_chat_fields(client: Any, field: str, value: Any) -> None:
    extra = {"logprobs": True} if field == "top_logprobs" else {}
    error = check(client.chat(**{field: value}, **extra))
    assert is_named(error["param"], field), error
    assert client.fake.jobs == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"), ("prompt_embeds", "abc"), ("best_of", 0), ("best_of", -1), ("best_of", 16385),
        ("best_of", 2**63), ("best_of", "x"), ("logprobs", -2), ("logprobs", 2**63), ("logprobs", "x"),
        ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 513), ("echo", "x"), ("prompt", ["x"] * 1025),
        ("n", 16385), ("guided_regex", 3), ("guided_grammar", []), ("guided_json_object", "yes"),
    ],
)  # fmt: skip
def test_bad_completion_fields(client: Any, field: str, value: Any) -> None:
    error = check(client.complete(**{"prompt": "x", field: value}))
    assert is_named(error["param"], field), error
    assert client.fake.jobs == []


def test_limits_themselves_are_allowed(client: Any) -> None:
    assert client.chat(stop=["a"] * 4, bad_words=["b"] * 128).status_code == 200
    assert client.chat(logit_bias={str(i): 0 for i in range(4096)}, cache_salt="x" * 128).status_code == 200
    assert client.chat(messages=[{"role": "user", "content": ""}] * 40, max_tokens=512).status_code == 200
    assert client.complete(["x"] * 1024, max_tokens=1).status_code == 200


def test_product_of_prompts_and_n(client: Any) -> None:
    error = check(client.complete(["x"] * 1024, n=17))
    assert error["param"] == "n"
    client.settings = {"max_sequences": 8}
    assert "9 prompts with n=1 is more than 8" in check(client.complete(["x"] * 9))["message"]
    assert check(client.complete("x", n=2, best_of=9))["param"] == "best_of"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"temperature": 0, "n": 2}, "n"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_completion_tokens": 600}, "max_completion_tokens"),
        ({"max_completion_tokens": 600, "max_tokens": 5}, "max_completion_tokens"),
        ({"max_tokens": 600}, "max_tokens"),
        ({"reasoning_effort": "hihg"}, "reasoning_effort"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools.0.type"),
    ],
)
def test_rules_between_fields(client: Any, fields: dict[str, Any], param: str) -> None:
    error = check(client.chat(**fields))
    assert (error["type"], error["param"]) == ("BadRequestError", param)


def test_neutral_values_of_unsupported_fields_pass(client: Any) -> None:
    response = client.chat(
        response_format={"type": "text"}, use_beam_search=False, structured_outputs=None, guided_json=None,
        tool_choice="none", modalities=["text"], user="me", metadata={"a": "b"}, store=False, best_of=1,
        parallel_tool_calls=True, stream_options=None, length_penalty=1.0, vllm_xargs={}, service_tier="auto",
    )  # fmt: skip
    assert response.status_code == 200


def test_schema_errors_name_the_place(client: Any) -> None:
    error = check(client.chat(max_tokens="5"))
    assert (error["type"], error["param"]) == ("Bad Request", "body.max_tokens")
    error = check(client.chat(messages=[{"role": "user", "content": "x"}, 4]))
    assert error["param"] == "body.messages.1"
    error = check(client.post("/v1/chat/completions", {"model": "pocket"}))
    assert error["param"] == "body.messages"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"n":NaN}', b'{"n":1e999}',
     b'{"prompt":"\\ud800"}',
     b"[" * 100_000, b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"prompt": "x"} trailing'],
    ids=lambda b: repr(b[:12]),
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/generate", "/tokenize", "/detokenize"]
)
def test_bodies_that_are_no_json_object(client: Any, path: str, body: bytes) -> None:
    error = check(client.send("POST", path, content=body, headers={"Content-Type": "application/json"}))
    assert error["param"].startswith("body")


def test_content_type(client: Any) -> None:
    body = b'{"prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        error = check(client.send("POST", "/v1/completions", content=body, headers={"Content-Type": kind}))
        assert "application/json" in error["message"]
    good = client.send(
        "POST", "/v1/completions", content=body, headers={"Content-Type": "Application/JSON; a=b"}
    )
    assert good.status_code == 200
    form = client.send("POST", "/generate", content=body, headers={"Content-Type": "text/plain"})
    assert form.status_code == 200, "the legacy route never looked at it"


@pytest.mark.parametrize("chunked", [False, True])
def test_body_ceiling(client: Any, chunked: bool) -> None:
    client.settings["max_body_bytes"] = 1000
    at_limit = b'{"prompt": "' + b"x" * 100 + b'"}'
    at_limit += b" " * (1000 - len(at_limit))
    headers = {"Content-Type": "application/json"}

    async def parts(data: bytes) -> Any:
        yield data[:500]
        yield data[500:]

    def content(data: bytes) -> Any:
        return parts(data) if chunked else data

    assert (
        client.send("POST", "/v1/completions", content=content(at_limit), headers=headers).status_code == 200
    )
    check(client.send("POST", "/v1/completions", content=content(at_limit + b" "), headers=headers), 413)


def test_unknown_route_and_wrong_method(client: Any) -> None:
    assert check(client.get("/v1/nothing"), 404)["type"] == "NotFoundError"
    response = client.get("/v1/chat/completions")
    assert "use POST" in check(response, 405)["message"]
    assert response.headers["allow"] == "POST"
    assert "use GET" in check(client.send("DELETE", "/v1/models"), 405)["message"]
    response = client.send("OPTIONS", "/v1/responses/x")
    assert "use DELETE or GET" in check(response, 405)["message"]
    assert response.headers["allow"] == "DELETE, GET, HEAD", "of every route of that path"


def test_queue_full(client: Any) -> None:
    client.fake.refusal = QueueFull("The queue is full.", retry_after_s=2.3)
    response = client.chat()
    assert check(response, 429)["type"] == "RateLimitError"
    assert response.headers["retry-after"] == "3"
    check(client.chat(stream=True), 429)
    app = client.app()
    client.app = lambda: app
    client.chat()
    assert 'vllm:admission_rejections_total{engine="0",model_name="pocket",reason="queue_full"} 1.0' in (
        client.get("/metrics").text
    )


@pytest.mark.parametrize("stream", [False, True])
def test_unavailable(client: Any, stream: bool) -> None:
    client.fake.refusal = Unavailable("The engine has failed.")
    response = client.chat(stream=stream)
    assert check(response, 503)["type"] == "ServiceUnavailableError"
    assert "retry-after" in response.headers


def test_a_vector_that_the_shutdown_cuts_off_may_be_asked_for_again(client: Any) -> None:
    client.fake.preparer.pooler = SimpleNamespace(kind="embed", labels=(), scores=False, prompts=())
    client.fake.script = [Event(index=0, finish=Finish("abort"))]
    reply = client.post("/v1/embeddings", {"input": "a"})
    assert (reply.status_code, "retry-after" in reply.headers) == (503, True), reply.text


def test_prompt_too_long(client: Any) -> None:
    assert "512" in check(client.complete("x" * 600))["message"]
    assert "512" in check(client.complete("x" * 600, stream=True))["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_expected_is_a_fixed_sentence(client: Any, stream: bool, caplog: Any) -> None:
    client.fake.refusal = RuntimeError("secret 0xdeadbeef in /work/x.py")
    error = check(client.chat(stream=stream), 500)
    assert "secret" not in error["message"]
    assert "secret" in caplog.text, "the log has it"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/audio/transcriptions", "text only"),
        ("/v1/chat/completions/render", "/tokenize"),
        ("/cohere/v2/chat", "/v1/chat/completions"),
        ("/start_profile", "octavo bench"),
        ("/server_info", "/metrics"),
    ],
)
def test_routes_of_others_say_what_to_use(client: Any, path: str, words: str) -> None:
    for method in ("GET", "POST"):
        error = check(client.send(method, path), 501)
        assert (error["type"], error["code"]) == ("NotImplementedError", 501)
        assert words in error["message"]
    assert not set(ABSENT) & {route.path for route in client.app().routes}
