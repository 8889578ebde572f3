"""Ollama's API: its shapes and words, and its own Python client and LangChain's against a real port."""

from __future__ import annotations

import array
import base64
import json
import re
from typing import Any

import pytest
from running import Running
from starlette.responses import JSONResponse
from starlette.routing import Route

from octavo.errors import BadRequest, QueueFull
from octavo.server.app import build_app
from octavo.server.ollama.models import parameter_size
from octavo.server.ollama.names import bare, shown
from octavo.server.settings import ServerSettings
from octavo.types.engine import Finish
from octavo.types.job import CallPiece, Event

HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def generate(client: Any, **fields: Any) -> Any:
    return client.post("/api/generate", {"model": "pocket", "prompt": "Say:", **fields})


def chat(client: Any, **fields: Any) -> Any:
    return client.post("/api/chat", {"model": "pocket", "messages": HI, **fields})


def test_generate_streams_lines(client: Any) -> None:
    client.fake.says = "Hé"
    *pieces, last = lines(generate(client))
    assert "".join(piece["response"] for piece in pieces) == "Hé"
    assert all(piece["model"] == "pocket" and piece["done"] is False for piece in pieces)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z", p["created_at"]) for p in pieces)
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (len("<user>Say:"), 3)
    assert bytes(last["context"]).decode() == "<user>Say:Hé"
    for name in ("total", "load", "prompt_eval", "eval"):
        assert isinstance(last[f"{name}_duration"], int)
        assert last[f"{name}_duration"] >= 1
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"] - 2


def test_generate_at_once(client: Any) -> None:
    reply = generate(client, stream=False, options={"num_predict": 5}).json()
    assert (reply["response"], reply["done"], reply["done_reason"]) == ("Hello", True, "length")
    assert reply["eval_count"] == 5


def test_context_goes_before_the_new_turn(client: Any) -> None:
    reply = generate(client, stream=False, context=list(b"<user>A"), system="S").json()
    assert bytes(client.fake.jobs[0].prompt_ids).decode() == "<user>A<system>S<user>Say:"
    assert bytes(reply["context"]).decode() == "<user>A<system>S<user>Say:Hello world"


def test_raw_is_no_chat(client: Any) -> None:
    reply = generate(client, stream=False, raw=True).json()
    assert client.fake.jobs[0].prompt == "Say:"
    assert "context" not in reply
    response = generate(client, raw=True, system="S")
    assert response.status_code == 400
    assert response.json() == {"error": "raw mode does not support template, system, or context"}


def test_a_model_without_template_continues_text(client: Any) -> None:
    client.fake.preparer.template = None
    generate(client, stream=False, system="S")
    assert client.fake.jobs[0].prompt == "S\nSay:"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"suffix": "x"}, "does not support insert"),
        ({"images": ["aGk="]}, "text only"),
        ({"template": "{{ .Prompt }}"}, "trust-request-chat-template"),
        ({"format": "xml"}, "JSON schema"),
        ({"think": "much"}, "think"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"temperature": 3}}, "temperature"),
        ({"options": {"num_predict": "all"}}, "num_predict"),
        ({"options": {"stop": ["a"] * 5}}, "options.stop"),
        ({"context": [1 << 40]}, "context"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_what_generate_refuses(client: Any, fields: dict[str, Any], words: str) -> None:
    response = generate(client, **fields)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_loading_and_unloading(client: Any) -> None:
    for body in ({"prompt": ""}, {"prompt": None}):
        reply = generate(client, **body).json()
        assert (reply["response"], reply["done"], reply["done_reason"]) == ("", True, "load")
    assert generate(client, prompt="", keep_alive=0).json()["done_reason"] == "unload"
    reply = chat(client, messages=[], keep_alive="5m").json()
    assert (reply["message"], reply["done_reason"]) == ({"role": "assistant", "content": ""}, "load")
    assert not client.fake.jobs


def test_options_become_sampling(client: Any) -> None:
    options = {
        "num_predict": -2,
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "seed": 42,
        "stop": ["\n", "user:"],
        "num_ctx": 256,
        "num_gpu": 1,
        "num_keep": None,
    }
    response = generate(client, options=options)
    assert "x-octavo-warning" not in response.headers
    drawn = client.fake.jobs[0].sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (0.8, 20, 0.9, 0.05)
    assert (drawn.repetition_penalty, drawn.presence_penalty, drawn.frequency_penalty) == (1.2, 1.5, 1.0)
    assert (drawn.seed, drawn.stop, drawn.max_tokens) == (42, ["\n", "user:"], None)
    generate(client, options={"top_p": 0, "num_predict": 10**9, "top_k": -1})
    assert (client.fake.jobs[1].sampling.top_k, client.fake.jobs[1].sampling.max_tokens) == (1, 512)


def test_options_without_effect_are_told(client: Any) -> None:
    options = {"mirostat": 2, "typical_p": 1.0, "num_ctx": 100_000, "colour": 1, "repeat_last_n": 64}
    warning = generate(client, options=options).headers["x-octavo-warning"]
    assert "mirostat" in warning
    assert "512" in warning
    assert "colour" in warning
    assert "typical_p" not in warning
    assert "repeat_last_n" not in warning


def test_think_reaches_the_template(client: Any) -> None:
    for think in (True, False, "max", None):
        chat(client, think=think)
    kwargs = [job.chat.kwargs for job in client.fake.jobs]
    assert [k.get("enable_thinking") for k in kwargs] == [True, False, True, None]
    assert kwargs[2]["reasoning_effort"] == "high"
    assert all(job.chat.parse for job in client.fake.jobs)


def test_chat_streams_lines(client: Any) -> None:
    *pieces, last = lines(chat(client))
    assert all(piece["message"]["role"] == "assistant" for piece in pieces)
    assert "".join(piece["message"]["content"] for piece in pieces) == "Hello world"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 11)


def test_messages_in_templates_words(client: Any) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    told = [
        *HI,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call], "images": None},
        {"role": "tool", "content": "22", "tool_name": "weather"},
    ]
    assert chat(client, messages=told, tools=[TOOL], stream=False).status_code == 200
    job = client.fake.jobs[0]
    assert job.messages[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", **call}],
    }
    assert job.messages[2] == {"role": "tool", "content": "22", "name": "weather"}
    assert job.chat.tools == (TOOL,)
    refused = chat(client, messages=[{"role": "user", "content": "?", "images": ["aGk="]}])
    assert (refused.status_code, "text only" in refused.json()["error"]) == (400, True)


def scripted(client: Any, *events: dict[str, Any]) -> None:
    """Let the service say these events, the last of them the end."""

    async def tokens(job: Any, started: Any) -> Any:
        for i, fields in enumerate(events):
            end = Finish("stop") if i == len(events) - 1 else None
            yield Event(index=0, tokens=(i,), finish=end, **fields)

    client.fake._tokens = tokens


CALLS = (
    {"reasoning": "Let me "},
    {"reasoning": "see."},
    {"text": "Well: "},
    {"calls": (CallPiece(index=0, id="a", name="weather"),)},
    {"calls": (CallPiece(index=0, arguments='{"city":'), CallPiece(index=0, arguments='"Rome"}'))},
    {"calls": (CallPiece(index=1, id="b", name="now"),)},
    {},
)


def test_thinking_and_calls_in_a_stream(client: Any) -> None:
    scripted(client, *CALLS)
    *pieces, last = lines(chat(client, tools=[TOOL]))
    messages = [piece["message"] for piece in pieces]
    assert [m.get("thinking") for m in messages] == ["Let me ", "see.", None, None, None]
    assert messages[2]["content"] == "Well: "
    assert messages[3]["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}}
    ]
    assert messages[4]["tool_calls"] == [
        {"id": "b", "function": {"index": 1, "name": "now", "arguments": {}}}
    ]
    assert (last["done_reason"], last["message"]["content"]) == ("stop", "")


def test_thinking_and_calls_at_once(client: Any) -> None:
    scripted(client, *CALLS)
    message = chat(client, stream=False).json()["message"]
    assert (message["thinking"], message["content"]) == ("Let me see.", "Well: ")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "now"]
    scripted(client, {"reasoning": "hm"}, {"text": "So."})
    reply = generate(client, stream=False).json()
    assert (reply["thinking"], reply["response"]) == ("hm", "So.")


def test_a_broken_call_is_text(client: Any) -> None:
    scripted(client, {"calls": (CallPiece(index=0, id="a", name="f", arguments="[1"),)}, {})
    message = chat(client, stream=False).json()["message"]
    assert message == {"role": "assistant", "content": "f([1)"}


def test_logprobs(client: Any) -> None:
    client.fake.says = "Hi"
    reply = chat(client, stream=False, logprobs=True, top_logprobs=2).json()
    first = reply["logprobs"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -1.0, [72])
    assert [top["token"] for top in first["top_logprobs"]] == ["A", "H"]
    *pieces, _ = lines(generate(client, logprobs=True))
    assert [piece["logprobs"][0]["token"] for piece in pieces] == ["H", "i"]
    assert "top_logprobs" not in pieces[0]["logprobs"][0]


def test_a_schema_reaches_the_sampling(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(client.fake.preparer, "generation", type("G", (), {"apply": asked.append})())
    schema = {"type": "object"}
    for form in (schema, "json", "", None):
        chat(client, format=form)
    assert [fields["structured_outputs"] for fields in asked[:2]] != [None, None]
    assert asked[0]["structured_outputs"].json == schema
    assert asked[1]["structured_outputs"].json_object is True
    assert [fields["structured_outputs"] for fields in asked[2:]] == [None, None]


def test_long_chats_lose_their_oldest_turns(client: Any) -> None:
    told = [{"role": "system", "content": "S"}]
    for i in range(40):
        told += [{"role": "user", "content": f"q{i}" * 5}, {"role": "assistant", "content": "a" * 10}]
    told.append({"role": "user", "content": "last"})
    reply = chat(client, messages=told, stream=False)
    assert reply.status_code == 200, reply.text
    kept = client.fake.jobs[0].messages
    assert kept[0] == told[0]
    assert kept[-1] == told[-1]
    assert kept[1]["role"] == "user"
    assert list(kept[1:]) == told[-len(kept) + 1 :]
    assert 300 < reply.json()["prompt_eval_count"] <= 512 - 128
    refused = chat(client, messages=told, truncate=False)
    assert (refused.status_code, "512" in refused.text or "tokens" in refused.text) == (400, True)
    assert chat(client, messages=[{"role": "user", "content": "x" * 600}]).status_code == 400


def test_names(client: Any) -> None:
    for name in ("pocket", "pocket:latest", "Pocket", "alias/pocket", "alias/pocket:latest"):
        reply = client.post("/api/chat", {"model": name, "messages": HI, "stream": False})
        assert (reply.status_code, reply.json()["model"]) == (200, name)
    for path, body in (
        ("/api/chat", {"messages": HI}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/show", {}),
    ):
        missing = client.post(path, {"model": "llama3.2", **body})
        assert missing.status_code == 404
        assert missing.json()["error"].startswith("model 'llama3.2' not found")
        assert client.post(path, body).status_code == 400
    assert shown("/models/Qwen2") == "Qwen2:latest"
    assert shown("Qwen/Qwen2") == "Qwen/Qwen2:latest"
    assert shown("a/b:Q4_K_M") == "a/b:Q4_K_M"
    assert bare("hf.co/a/b:latest") == "a/b"


def test_lists(client: Any) -> None:
    models = client.get("/api/tags").json()["models"]
    assert [model["name"] for model in models] == ["pocket:latest", "alias/pocket:latest"]
    assert all(re.fullmatch("[0-9a-f]{64}", model["digest"]) for model in models)
    running = client.get("/api/ps").json()["models"]
    assert [(m["name"], m["context_length"], m["size_vram"]) for m in running] == [("pocket:latest", 512, 0)]
    shown = client.post("/api/show", {"name": "pocket"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert "num_ctx" in shown["parameters"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/api/version").json()["version"])
    assert [parameter_size(n) for n in (0, 999, 494_032_768, 7_615_616_512)] == ["", "999", "494.03M", "7.6B"]


def test_the_root_answers_probes(client: Any) -> None:
    assert client.send("HEAD", "/").status_code == 200
    assert "Ollama is running" in client.get("/").text
    assert client.get("/", headers={"accept": "text/plain"}).text == "Ollama is running"


def test_pull(client: Any) -> None:
    said = [line["status"] for line in lines(client.post("/api/pull", {"model": "pocket"}))]
    assert said == ["pulling manifest", "success"]
    assert client.post("/api/pull", {"model": "pocket", "stream": False}).json() == {"status": "success"}
    refused = client.post("/api/pull", {"model": "Qwen/Qwen3-0.6B"})
    assert (refused.status_code, "--allow-pull" in refused.json()["error"]) == (403, True)


def test_pulling_another(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.server.ollama import pull

    client.settings["allow_pull"] = True
    monkeypatch.setattr(pull, "_download", lambda name: name)
    said = [line["status"] for line in lines(client.post("/api/pull", {"model": "hf.co/a/b:latest"}))]
    assert (said[0], said[-1]) == ("pulling manifest", "success")
    assert "octavo serve a/b" in said[-2]

    def fail(name: str) -> None:
        raise BadRequest("a/b was not found.")

    monkeypatch.setattr(pull, "_download", fail)
    assert lines(client.post("/api/pull", {"model": "a/b"}))[-1] == {"error": "a/b was not found."}
    assert client.post("/api/pull", {"model": "a/b", "stream": False}).status_code == 400


def test_pulling_says_what_the_hub_said(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.settings["allow_pull"] = True
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, words in (("/etc", "hub id"), ("../x", "hub id"), ("a/b--c", "hub id")):
        refused = client.post("/api/pull", {"model": name, "stream": False})
        assert refused.status_code == 400, refused.text
        assert words in refused.json()["error"]


def test_embeddings(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = []

    async def embeddings(request: Any) -> Any:
        body = await request.json()
        bodies.append(body)
        if body["input"] == ["bad"]:
            return JSONResponse({"error": {"message": "Too long."}}, 400)
        packed = base64.b64encode(array.array("f", [0.5, -1.0]).tobytes()).decode()
        data = [{"index": i, "embedding": packed} for i in range(len(body["input"]))]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": 7}})

    app = build_app(client.fake, ServerSettings())
    kept = [route for route in app.router.routes if getattr(route, "path", "") != "/v1/embeddings"]
    app.router.routes[:] = kept
    client.app = lambda: app
    refused = client.post("/api/embed", {"model": "pocket", "input": "a"})
    assert (refused.status_code, "does not support embeddings" in refused.text) == (400, True)
    app.router.routes.insert(0, Route("/v1/embeddings", embeddings, methods=["POST"]))
    body = {"model": "pocket:latest", "input": ["a", "b"], "dimensions": 2}
    reply = client.post("/api/embed", body).json()
    assert (reply["embeddings"], reply["prompt_eval_count"]) == ([[0.5, -1.0]] * 2, 7)
    assert reply["total_duration"] >= 1
    assert bodies[0]["model"] == "pocket"
    assert (bodies[0]["dimensions"], bodies[0]["truncate_prompt_tokens"]) == (2, -1)
    reply = client.post("/api/embed", {"model": "pocket", "input": ["a", "", "b"]}).json()
    assert len(reply["embeddings"]) == 3
    for nothing in ("", []):
        assert client.post("/api/embed", {"model": "pocket", "input": nothing}).json()["embeddings"] == []
    assert client.post("/api/embeddings", {"model": "pocket", "prompt": ""}).json() == {"embedding": []}
    one = client.post("/api/embeddings", {"model": "pocket", "prompt": "a"})
    assert one.json() == {"embedding": [0.5, -1.0]}
    bad = client.post("/api/embed", {"model": "pocket", "input": "bad", "truncate": False})
    assert (bad.status_code, bad.json()) == (400, {"error": "Too long."})
    assert "truncate_prompt_tokens" not in bodies[-1]


def test_what_is_not_done_here(client: Any) -> None:
    for method, path in (
        ("DELETE", "/api/delete"),
        ("POST", "/api/copy"),
        ("POST", "/api/create"),
        ("POST", "/api/push"),
        ("POST", "/api/blobs/sha256:00"),
    ):
        response = client.send(method, path, json={"model": "pocket"})
        assert response.status_code == 400, path
        assert "one model" in response.json()["error"]
    assert client.send("DELETE", "/api/delete", json={"model": "other"}).status_code == 404
    assert client.send("HEAD", "/api/blobs/sha256:00").status_code == 404
    assert list(client.get("/api/nothing").json()) == ["error"]
    assert client.get("/api/chat").status_code == 405
    assert isinstance(client.get("/api/chat").json()["error"], str)


def test_errors_in_ollamas_shape(client: Any) -> None:
    client.fake.fails_at = 2
    *_, last = lines(chat(client))
    assert list(last) == ["error"]
    client.fake.refusal = QueueFull("Too many.", retry_after_s=2)
    busy = chat(client)
    assert (busy.status_code, busy.json(), busy.headers["retry-after"]) == (503, {"error": "Too many."}, "2")
    client.settings["api_keys"] = ("k",)
    assert client.get("/api/tags").status_code == 401
    assert isinstance(client.get("/api/tags").json()["error"], str)
    broken = client.send("POST", "/api/chat", content=b"{", headers={"authorization": "Bearer k"})
    assert (broken.status_code, list(broken.json())) == (400, ["error"])


def test_ollamas_client(client: Any) -> None:
    ollama = pytest.importorskip("ollama")
    scripted(client, *CALLS)
    with Running(client.fake) as server:
        speaker = ollama.Client(host=server.url)
        assert [model.model for model in speaker.list().models] == ["pocket:latest", "alias/pocket:latest"]
        assert speaker.show("pocket").capabilities == ["completion", "tools", "thinking"]
        assert speaker.ps().models[0].context_length == 512
        reply = speaker.chat("pocket", messages=HI, tools=[TOOL], think=True)
        assert reply.message.tool_calls[0].function.arguments == {"city": "Rome"}
        assert (reply.message.thinking, reply.eval_count) == ("Let me see.", 7)
        streamed = list(speaker.generate("pocket", "Hi", stream=True))
        assert "".join(part.response for part in streamed) == "Well: "
        assert streamed[-1].done_reason == "stop"
        assert [step.status for step in speaker.pull("pocket", stream=True)][-1] == "success"
        with pytest.raises(ollama.ResponseError) as caught:
            speaker.chat("other", messages=HI)
        assert caught.value.status_code == 404
        speaker.close()


def test_langchain(client: Any) -> None:
    langchain = pytest.importorskip("langchain_ollama")
    scripted(client, *CALLS)
    with Running(client.fake) as server:
        model = langchain.ChatOllama(
            model="pocket", base_url=server.url, temperature=0, validate_model_on_init=True, reasoning=True
        )
        answer = model.bind_tools([TOOL]).invoke("Weather?")
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
            ("weather", {"city": "Rome"}),
            ("now", {}),
        ]
        assert answer.additional_kwargs["reasoning_content"] == "Let me see."
        assert answer.usage_metadata["output_tokens"] == 7
        assert "".join(part.content for part in model.stream("Weather?")) == "Well: "
        model._client.close()
