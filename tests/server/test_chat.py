"""/v1/chat/completions: fields in, job out; events in, choices out."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.grammar import TOO_MUCH
from octavo.types.job import Event

USER = {"role": "user", "content": "Hi"}


def test_every_sampling_field_reaches_the_job(client: Any) -> None:
    fields = {
        "n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.1, "seed": 42, "stop": ["x", "yz"],
        "stop_token_ids": [3], "include_stop_str_in_output": True, "ignore_eos": True, "min_tokens": 2,
        "bad_words": ["no"], "allowed_token_ids": [1, 2], "prompt_logprobs": 1, "skip_special_tokens": False,
        "spaces_between_special_tokens": False, "truncate_prompt_tokens": 9, "max_tokens": 11,
    }  # fmt: skip
    assert client.chat(**fields, logit_bias={"7": 1.5}, priority=-3, cache_salt="s").status_code == 200
    job = client.fake.jobs[0]
    assert {name: getattr(job.sampling, name) for name in fields} == fields
    assert job.sampling.logit_bias == {7: 1.5}
    assert (job.priority, job.salt, job.messages) == (-3, "s", (USER,))


def test_defaults_come_from_the_model(client: Any) -> None:
    from octavo.config.generation import GenerationConfig

    client.fake.preparer.generation = GenerationConfig(defaults={"temperature": 0.3, "top_k": 7})
    client.chat(top_k=9)
    sampling = client.fake.jobs[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.3, 9, None)


def test_max_completion_tokens_wins(client: Any) -> None:
    reply = client.chat(max_tokens=9, max_completion_tokens=3).json()
    assert reply["choices"][0]["message"]["content"] == "Hel"
    assert reply["choices"][0]["finish_reason"] == "length"


def test_chat_options(client: Any) -> None:
    client.chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="auto",
        documents=[{"text": "d"}],
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        add_generation_prompt=False,
        continue_final_message=True,
        add_special_tokens=True,
    )
    chat = client.fake.jobs[0].chat
    assert chat.tools == ({"type": "function", "function": {"name": "f"}},)
    assert chat.documents == ({"text": "d"},)
    assert chat.kwargs == {"enable_thinking": False, "reasoning_effort": "low"}
    assert (chat.add_generation_prompt, chat.continue_final_message, chat.add_special_tokens) == (
        False,
        True,
        True,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_loop_guard_finish(client: Any, stream: bool) -> None:
    client.fake.finish = Finish("length", "repetition")
    response = client.chat(stream=stream)
    assert '"finish_reason":"length","stop_reason":"repetition"' in response.text


def test_n_streams_have_a_role_chunk_each(client: Any, stream: Any) -> None:
    client.fake.says = "ab"
    chunks = stream(client.chat(n=2, stream=True))
    assert [c["choices"][0]["index"] for c in chunks] == [0, 1, 0, 1, 0, 1]
    assert [c["choices"][0]["delta"].get("role") for c in chunks[:2]] == ["assistant", "assistant"]
    texts = {0: "", 1: ""}
    finishes = []
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        finishes.append(choice["finish_reason"])
    assert texts == {0: "ab", 1: "ab"}
    assert finishes.count("stop") == 2
    assert len({c["id"] for c in chunks}) == 1


def test_logprobs(client: Any) -> None:
    client.fake.says = "aé!x"
    content = client.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", "", "é", "!", "x"]
    assert [item["bytes"] for item in content] == [[97], [], [0xC3, 0xA9], [33], [120]]
    assert content[0]["logprob"] == -1.0
    assert content[3]["logprob"] == -9999.0, "minus infinity is not JSON"
    assert content[0]["top_logprobs"] == [
        {"token": "A", "logprob": -0.25, "bytes": [65]},
        {"token": "a", "logprob": -1.0, "bytes": [97]},
    ], "the two most likely, most likely first"


def test_logprobs_of_chosen_only(client: Any) -> None:
    item = client.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]
    assert item["top_logprobs"] == []


def test_streamed_logprobs_equal_the_collected(client: Any, stream: Any) -> None:
    client.fake.says = "aé!"
    whole = client.chat(logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]["content"]
    chunks = stream(client.chat(logprobs=True, top_logprobs=1, stream=True))
    pieces = [c["choices"][0]["logprobs"] for c in chunks]
    assert [i for p in pieces if p for i in p["content"]] == whole


def test_prompt_logprobs_and_token_ids(client: Any) -> None:
    client.fake.says = "ok"
    reply = client.chat(
        messages=[{"role": "u", "content": ""}],
        prompt_logprobs=1,
        return_token_ids=True,
        return_prompt_text=True,
    ).json()
    assert reply["prompt_text"] == "<u>"
    assert reply["prompt_token_ids"] == list(b"<u>")
    assert reply["choices"][0]["token_ids"] == list(b"ok")
    assert reply["prompt_logprobs"][0] is None
    assert reply["prompt_logprobs"][1] == {
        "117": {"logprob": -1.0, "rank": 2, "decoded_token": "u"},
        "65": {"logprob": -0.25, "rank": 1, "decoded_token": "A"},
    }


def test_tokens_as_ids(client: Any) -> None:
    client.fake.says = "a"
    reply = client.chat(logprobs=True, return_tokens_as_token_ids=True).json()
    assert reply["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:97"


def test_usage_in_every_chunk(client: Any, stream: Any) -> None:
    client.fake.says = "abc"
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(client.chat(stream=True, stream_options=options))
    assert [c["usage"]["completion_tokens"] for c in chunks] == [0, 1, 2, 3, 3]
    assert chunks[-1]["choices"] == []


def test_no_usage_unless_asked(client: Any, stream: Any) -> None:
    assert not any("usage" in c for c in stream(client.chat(stream=True)))
    client.settings["enable_force_include_usage"] = True
    assert "usage" in stream(client.chat(stream=True))[-1]


def test_cached_tokens(client: Any) -> None:
    client.fake.cached_tokens = 5
    assert client.chat(n=2).json()["usage"]["prompt_tokens_details"] is None
    client.settings["enable_prompt_tokens_details"] = True
    assert client.chat(n=2).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}


def test_echo_gives_back_the_continued_message(client: Any, stream: Any) -> None:
    client.fake.says = "lo"
    fields = {
        "messages": [USER, {"role": "assistant", "content": "Hel"}],
        "echo": True, "add_generation_prompt": False, "continue_final_message": True,
    }  # fmt: skip
    assert client.chat(**fields).json()["choices"][0]["message"]["content"] == "Hello"
    chunks = stream(client.chat(**fields, stream=True))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Hello"


def test_content_in_parts(client: Any) -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        "c",
        {"type": "refusal", "refusal": "d"},
    ]
    fields = {"add_generation_prompt": False, "continue_final_message": True, "echo": True}
    response = client.chat(messages=[{"role": "assistant", "content": parts}], **fields)
    assert response.json()["choices"][0]["message"]["content"] == "abcHello world"


def test_response_role(client: Any, stream: Any) -> None:
    client.settings["response_role"] = "bot"
    assert client.chat().json()["choices"][0]["message"]["role"] == "bot"
    assert stream(client.chat(stream=True))[0]["choices"][0]["delta"]["role"] == "bot"


@pytest.mark.parametrize("stream", [False, True])
def test_request_id(client: Any, stream: bool) -> None:
    response = client.post(
        "/v1/chat/completions", {"messages": [USER], "stream": stream}, headers={"X-Request-Id": "job-7.a"}
    )
    assert '"id":"chatcmpl-job-7.a"' in response.text
    assert "x-request-id" not in response.headers
    assert client.fake.jobs[0].id.startswith("chatcmpl-job-7.a-")


def test_request_id_in_the_body_and_echoed(client: Any) -> None:
    client.settings["enable_request_id_headers"] = True
    assert client.chat(request_id="mine").json()["id"] == "chatcmpl-mine"
    for sent, told in (("a.b-1", "a.b-1"), ("a b", None), (None, None)):
        response = client.post(
            "/v1/completions", {"prompt": "x"}, headers={"X-Request-Id": sent} if sent else {}
        )
        echoed = response.headers["x-request-id"]
        assert echoed == told if told else len(echoed) == 32


@pytest.mark.parametrize("bad", ["a b", "../x", "é", "x" * 129, "-x"])
def test_odd_request_ids_are_not_taken(client: Any, bad: str) -> None:
    assert len(client.chat(request_id=bad).json()["id"]) == len("chatcmpl-") + 32


def test_two_requests_with_one_id_are_two_jobs(client: Any) -> None:
    for _ in range(2):
        client.chat(request_id="same")
    first, second = client.fake.jobs
    assert first.id != second.id


@pytest.mark.parametrize(
    "key",
    ["max-tokens", "maxTokens", "temprature", "max_token", "max_new_tokens", "num_predict", "stop_sequences"],
)
def test_misspelt_fields_are_warned_about(client: Any, key: str) -> None:
    response = client.chat(**{key: 5})
    assert response.status_code == 200
    assert f"'{key}'" in response.headers["x-octavo-warning"]


def test_other_unknown_fields_are_ignored(client: Any) -> None:
    response = client.chat(**{"frobnicate": 1, "x\r\ny": 2, "é": 3})
    assert response.status_code == 200
    assert "x-octavo-warning" not in response.headers


def test_error_in_a_stream(client: Any, stream: Any) -> None:
    client.fake.fails_at = 2
    chunks = stream(client.chat(stream=True))
    assert chunks[-1] == {
        "error": {
            "message": "The engine failed: boom", "type": "InternalServerError", "param": None, "code": 500,
        }
    }  # fmt: skip


def test_error_without_a_stream(client: Any) -> None:
    client.fake.fails_at = 2
    response = client.chat()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "InternalServerError"


def test_a_form_that_asks_too_much_is_the_requests_fault(client: Any) -> None:
    client.fake.script = [Event(index=0, finish=Finish("error", error=f"{TOO_MUCH}too complex."))]
    response = client.chat()
    assert (response.status_code, response.json()["error"]["param"]) == (400, "structured_outputs")


def test_served_names(client: Any) -> None:
    client.settings["served_names"] = ("a/b", "gpt-3.5-turbo")
    assert client.chat(model="gpt-3.5-turbo").json()["model"] == "a/b", "vLLM reports the first name"
    assert client.chat().json()["model"] == "a/b"
    assert client.chat(model="gpt-3.5-turbo:latest").status_code == 200, "as Ollama's routes list it"
    assert client.chat(model="pocket").status_code == 404


def test_whole_floats_are_integers(client: Any) -> None:
    assert client.chat(max_tokens=3.0, n=1.0, top_k=-1.0).status_code == 200
    assert client.chat(max_tokens=3.5).status_code == 400


def test_too_many_top_logprobs_are_named_as_sent(client: Any) -> None:
    error = client.chat(logprobs=True, top_logprobs=50).json()["error"]
    assert error["param"] == "top_logprobs"
    assert error["message"].startswith("top_logprobs=50 is more than 20.")


def test_named_tokens_are_shown_with_their_logprobs(client: Any, stream: Any) -> None:
    told = TokenLogprobs((72, 90, 65), (-1.0, -0.5, -7.0), (2, 1, 90))
    client.fake.script = [Event(index=0, text="H", tokens=(72,), logprobs=(told,), finish=Finish("stop"))]
    fields = {"logprobs": True, "top_logprobs": 1, "logprob_token_ids": [90, 65]}
    whole = client.chat(**fields).json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in whole[0]["top_logprobs"]] == ["Z", "H", "A"]
    assert client.fake.jobs[0].sampling.logprob_token_ids == [90, 65]
    pieces = [c["choices"][0]["logprobs"] for c in stream(client.chat(**fields, stream=True))]
    assert [item for piece in pieces if piece for item in piece["content"]] == whole
    error = client.chat(logprob_token_ids=[90]).json()["error"]
    assert (error["code"], error["param"]) == (400, "logprob_token_ids")
