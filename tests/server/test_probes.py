"""Probes, models, tokens, metrics, the document: everything that is not a completion."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import pytest
from fake_service import TEMPLATE, FakeService
from prometheus_client.parser import text_string_to_metric_families

import octavo
from octavo.server.app import build_app
from octavo.server.document import ENTRIES, openapi
from octavo.server.metrics import Metrics
from octavo.server.settings import ServerSettings
from octavo.types.engine import Finish
from octavo.types.job import CallPiece, Event
from octavo.types.metrics import token_buckets
from octavo.types.stats import EngineStats, RequestTimes


def test_health_follows_the_service(client: Any) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/health").content == b""
    assert client.send("POST", "/ping").status_code == 200
    client.fake.ready = False
    assert client.get("/health").status_code == 503
    client.fake.ready, client.fake.failure = True, "boom"
    assert client.get("/ping").status_code == 503
    assert client.chat().status_code == 503
    assert "boom" not in client.chat().text


def test_before_the_model_is_there(client: Any) -> None:
    app = build_app(None, ServerSettings())
    client.app = lambda: app
    assert client.get("/health").status_code == 503
    for response in (client.chat(), client.complete(), client.get("/v1/models"), client.get("/v1/models/x")):
        assert response.status_code == 503
        assert "loading" in response.json()["error"]["message"]
    assert client.get("/version").json() == {"version": octavo.__version__}
    assert client.get("/metrics").status_code == 200
    app.state.octavo.open(client.fake)
    assert client.get("/health").status_code == 200
    assert client.chat().status_code == 200


def test_draining_refuses_what_is_new(client: Any) -> None:
    app = build_app(client.fake, ServerSettings())
    client.app = lambda: app
    app.state.octavo.draining = True
    assert client.get("/health").status_code == 503
    assert client.chat().status_code == 503


def test_load_counts_requests_at_work(client: Any) -> None:
    app = build_app(client.fake, ServerSettings())
    client.app = lambda: app
    client.chat(), client.chat(stream=True), client.chat(n=0)
    assert client.get("/load").json() == {"server_load": 0}


def test_models(client: Any) -> None:
    reply = client.get("/v1/models").json()
    assert [card["id"] for card in reply["data"]] == ["pocket", "alias/pocket"]
    assert reply["data"][0]["max_model_len"] == 512
    assert client.get("/v1/models/alias/pocket").json()["id"] == "alias/pocket"
    assert client.get("/v1/models/alias%2Fpocket").json()["id"] == "alias/pocket"
    assert "pocket" in client.get("/v1/models/no").json()["error"]["message"]


def test_tokenize(client: Any) -> None:
    reply = client.post("/tokenize", {"prompt": "ab", "return_token_strs": True}).json()
    assert reply == {"count": 2, "max_model_len": 512, "tokens": [97, 98], "token_strs": ["<97>", "<98>"]}
    reply = client.post("/tokenize", {"messages": [{"role": "u", "content": "x"}]}).json()
    assert (reply["tokens"], reply["token_strs"]) == (list(b"<u>x"), None)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"prompt": "a", "messages": []}, {"messages": []}, {"prompt": 3}, {"messages": [{"role": "u"}],
        "chat_template": "x"}, {"messages": [{"role": "u"}], "add_generation_prompt": True,
        "continue_final_message": True},
    ],
)  # fmt: skip
def test_tokenize_refuses(client: Any, body: Any) -> None:
    assert client.post("/tokenize", body).status_code == 400


def test_detokenize(client: Any) -> None:
    assert client.post("/detokenize", {"tokens": [97, 98]}).json() == {"prompt": "ab"}
    assert client.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    for bad in ([-1], [2**31], [2**63], [300], ["a"], 5, None):
        assert client.post("/detokenize", {"tokens": bad}).status_code == 400


def test_generate(client: Any) -> None:
    body = {
        "prompt": [80, 58],
        "n": 2,
        "max_tokens": 2,
        "temperature": 0.5,
        "unknown": 1,
        "logits_processors": None,
    }
    assert client.post("/generate", body).json() == {"text": ["P:He", "P:He"]}
    assert client.post("/generate", {"prompt": "P"}).json() == {"text": ["PHello world"]}
    assert client.fake.jobs[-1].sampling.max_tokens == 16


@pytest.mark.parametrize(
    "body",
    [
        {}, {"prompt": 3}, {"prompt": []}, {"prompt": ["a"]}, {"prompt": "x", "n": 0},
        {"prompt": "x", "n": 16385},
        {"prompt": "x", "temperature": "hot"}, {"prompt": [2**63]},
        {"prompt": [-1]}, {"prompt": "x", "stop": ["a"] * 5}, {"prompt": "x", "stop": {"a": 1}},
        {"prompt": "x", "max_tokens": 0}, {"prompt": "x", "structured_outputs": {"regex": 3}},
        {"prompt": "x", "stream": "yes"}, {"prompt": "x", "logit_bias": {"a": 1}},
        {"prompt": "x", "max_tokens": 10**30},
    ],
)  # fmt: skip
def test_generate_refuses(client: Any, body: Any) -> None:
    assert client.post("/generate", body).status_code == 400


def test_generate_stream_error(client: Any) -> None:
    client.fake.fails_at = 1
    pieces = client.post("/generate", {"prompt": "P", "stream": True}).content.split(b"\0")
    assert pieces[0] == b'{"text":["PH"]}'
    assert b'"error"' in pieces[1]


def samples(text: str) -> dict[str, Any]:
    """Sample name to (labels, value), the last one of each name."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = (sample.labels, sample.value)
    return found


def test_metrics(client: Any) -> None:
    app = build_app(client.fake, ServerSettings())
    client.app = lambda: app
    client.fake.recorder = app.state.octavo.metrics
    client.fake.says = "abcd"
    client.chat(max_tokens=7)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    seen = samples(response.text)
    labels = {"model_name": "pocket", "engine": "0"}
    assert seen["vllm:num_requests_running"] == (labels, 0)
    assert seen["vllm:kv_cache_usage_perc"] == (labels, 0.5)
    assert seen["vllm:generation_tokens_total"] == (labels, 42)
    assert seen["vllm:request_prompt_tokens_sum"] == (labels, 8)
    assert seen["vllm:request_generation_tokens_sum"] == (labels, 4)
    assert seen["vllm:request_params_max_tokens_sum"] == (labels, 7)
    assert seen["vllm:time_to_first_token_seconds_count"] == (labels, 1)
    assert seen["vllm:inter_token_latency_seconds_count"] == (labels, 3)
    assert seen["vllm:e2e_request_latency_seconds_count"] == (labels, 1)
    finished = [line for line in response.text.splitlines() if 'finished_reason="stop"' in line]
    assert finished[0].endswith(" 1.0")
    assert "process_resident_memory_bytes" in seen


def test_every_metric_of_the_list_is_there(client: Any) -> None:
    text = client.get("/metrics").text
    for name in (
        "num_requests_waiting", "num_requests_waiting_by_reason", "cache_config_info", "prompt_tokens_total",
        "prompt_tokens_cached_total", "num_preemptions_total", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "request_success_total", "request_time_per_output_token_seconds_bucket",
        "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket",
        "request_inference_time_seconds_bucket", "request_params_n_bucket",
        "request_queue_time_seconds_bucket",
        "request_num_preemptions_bucket", "request_prefill_kv_computed_tokens_bucket",
        "iteration_tokens_total_bucket", "engine_sleep_state", "prompt_tokens_by_source_total",
        "prompt_tokens_cached_by_source_total", "external_prefix_cache_hits_total", "mm_cache_queries_total",
        "admission_rejections_total", "corrupted_requests_total", "tool_call_parser_invocations_total",
    ):  # fmt: skip
        assert f"vllm:{name}" in text, name


def value_of(text: str, name: str, **labels: str) -> float:
    """One sample of an exposition."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no {name} with {labels}")


def test_metrics_of_requests_and_calls(client: Any) -> None:
    app = build_app(client.fake, ServerSettings(allowed_hosts=("*",)))
    client.app = lambda: app
    tools = [{"type": "function", "function": {"name": "f"}}]
    client.chat(tools=tools)
    client.fake.script = [
        Event(index=0, calls=(CallPiece(index=0, id="c", name="f", arguments="{}"),), tokens=(1,)),
        Event(index=0, finish=Finish("stop")),
    ]
    client.chat(tools=tools, stream=True)
    client.fake.script = [Event(index=0, finish=Finish("error", error="The logits contain NaN."))]
    assert client.chat().status_code == 500
    client.get("/v1/nothing")
    client.send("POTATO", "/v1/models")
    text = client.get("/metrics").text
    read = "vllm:tool_call_parser_invocations_total"
    kind = {"request_type": "chat_completions", "model_name": "pocket"}
    assert value_of(text, read, mode="non_streaming", outcome="no_tool_call", **kind) == 1
    assert value_of(text, read, mode="streaming", outcome="tool_call", **kind) == 1
    assert value_of(text, read, mode="streaming", outcome="no_tool_call", request_type="responses") == 0
    assert value_of(text, "vllm:corrupted_requests_total") == 1
    chat = {"method": "POST", "handler": "/v1/chat/completions"}
    assert value_of(text, "http_requests_total", status="2xx", **chat) == 2
    assert value_of(text, "http_requests_total", status="5xx", **chat) == 1
    assert value_of(text, "http_requests_total", status="4xx", handler="none", method="GET") == 1
    assert value_of(text, "http_requests_total", status="4xx", handler="none", method="other") == 1
    assert value_of(text, "http_request_duration_seconds_count", **chat) == 3
    assert 'handler="/metrics"' not in text
    assert "python_info" in text


def test_metrics_of_adapters_and_steps(client: Any) -> None:
    stats = EngineStats(
        prompt_tokens_total=30,
        prefix_hit_tokens_total=12,
        step_tokens=(1, 2, *(0,) * 11, 1),
        step_tokens_total=20_017,
    )
    client.fake.stats = lambda: stats
    text = client.get("/metrics").text
    assert "lora_requests_info" not in text, "without --enable-lora there is no such series"
    steps = [line for line in text.splitlines() if line.startswith("vllm:iteration_tokens_total")]
    assert [line.rsplit(" ", 1)[1] for line in steps[:3]] == ["1.0", "3.0", "3.0"]
    assert steps[-3].endswith(" 4.0"), "the last bucket holds everything"
    assert {line.rsplit(" ", 1)[1] for line in steps[-2:]} == {"4.0", "20017.0"}
    assert [
        line.rsplit(" ", 1)[1]
        for line in text.splitlines()
        if line.startswith("vllm:prompt_tokens_by_source")
    ] == ["30.0", "12.0", "0.0"]
    tuned = EngineStats(max_adapters=8, running_adapters=("sql", "poem"), waiting_adapters=("law",))
    client.fake.stats = lambda: tuned
    labels, value = samples(client.get("/metrics").text)["vllm:lora_requests_info"]
    assert labels["max_lora"] == "8"
    assert labels["running_lora_adapters"] == "sql,poem"
    assert labels["waiting_lora_adapters"] == "law"
    assert abs(value - time.time()) < 60


def test_times_of_a_request_begin_when_it_left_the_queue() -> None:
    metrics = Metrics()
    metrics.watch(FakeService(), "m")
    metrics.on_finish(
        RequestTimes(
            arrival_s=10.0, started_s=12.0, first_token_s=15.0, last_token_s=19.0, prompt_tokens=9,
            cached_tokens=4, output_tokens=3, preemptions=2, finish_reason="stop",
        )
    )  # fmt: skip
    seen = samples(metrics.render().decode())
    sums = {
        "request_queue_time_seconds": 2.0, "request_prefill_time_seconds": 3.0,
        "request_inference_time_seconds": 7.0, "request_decode_time_seconds": 4.0,
        "e2e_request_latency_seconds": 9.0, "time_to_first_token_seconds": 5.0,
        "request_prefill_kv_computed_tokens": 5.0, "request_num_preemptions": 2.0,
    }  # fmt: skip
    assert {name: seen[f"vllm:{name}_sum"][1] for name in sums} == sums


def test_metrics_prefix_and_forgetting() -> None:
    metrics = Metrics("octavo:")
    for index in range(10_000):
        metrics.on_tokens(index, 1, 0.0)
    assert len(metrics._last_s) <= 4096
    assert b"vllm:" not in metrics.render()


def test_token_buckets() -> None:
    assert token_buckets(64) == (1, 2, 5, 10, 20, 50)
    assert token_buckets(0) == (1,)


def test_the_document_names_every_route(client: Any) -> None:
    mounted = {
        (m, r.path.replace(":path", "")) for r in client.app().routes for m in r.methods if m != "HEAD"
    }
    assert mounted == {(entry.method.upper(), entry.path) for entry in ENTRIES}


def test_tokenizer_info(client: Any) -> None:
    assert client.get("/tokenizer_info").status_code == 404
    client.settings["enable_tokenizer_info"] = True
    told = client.get("/tokenizer_info").json()
    assert told == {"tokenizer_class": "Bytes", "eos_token": "<0>", "chat_template": TEMPLATE}
    client.fake.tokenizer = None
    assert client.get("/tokenizer_info").status_code == 400


def test_openapi(client: Any) -> None:
    spec = client.get("/openapi.json").json()
    assert spec == openapi()
    chat = spec["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "top_k", "max_completion_tokens"} <= set(chat["properties"])

    made = spec["paths"]["/v1/responses"]["post"]["responses"]["200"]["links"]
    assert made["delete_v1_responses_response_id"]["parameters"] == {"response_id": "$response.body#/id"}
    ids = [operation["operationId"] for path in spec["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)
    assert set(made) <= set(ids)

    def refs(value: Any) -> Any:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            for part in value.values():
                yield from refs(part)
        elif isinstance(value, list):
            for part in value:
                yield from refs(part)

    for ref in refs(spec):
        assert ref.removeprefix("#/components/schemas/") in spec["components"]["schemas"]


def test_docs_page_needs_no_other_host(client: Any) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "//" not in response.text.replace("<!doctype", ""), "no address of another host, no comment"
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_examples_of_the_page_are_of_routes(client: Any) -> None:
    page = client.get("/docs").text
    examples = page[page.index("const EXAMPLES") : page.index("const BASE")]
    paths = re.findall(r'^  "(/[^"]+)":', examples, re.MULTILINE)
    assert len(paths) > 10
    assert set(paths) <= set(client.get("/openapi.json").json()["paths"])


HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_browser_gets_the_page_at_the_root_too(client: Any) -> None:
    assert client.get("/", headers=HTML).text == client.get("/docs").text
    assert client.get("/", headers={"accept": "*/*"}).json()["name"] == "Octavo"
    client.settings["disable_docs"] = True
    assert client.get("/", headers=HTML).json()["name"] == "Octavo"


def test_a_browser_without_the_key_is_asked_for_it(client: Any) -> None:
    """The page is the 401's body, and what it asks for needs the key."""
    client.settings["api_keys"] = ("k",)
    for path in ("/", "/docs", "/docs/"):
        response = client.get(path, headers=HTML)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert "This server wants an API key" in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert client.get(path).json()["error"]["code"] == 401
    for path in ("/openapi.json", "/v1/models"):
        assert client.get(path, headers=HTML).json()["error"]["code"] == 401
    assert client.get("/docs", headers={**HTML, "x-api-key": "k"}).status_code == 200
    client.settings["disable_docs"] = True
    assert client.get("/docs", headers=HTML).json()["error"]["code"] == 401


def test_docs_can_be_turned_off(client: Any) -> None:
    client.settings["disable_docs"] = True
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 404
    assert client.get("/").json()["docs"] is None


def test_root(client: Any) -> None:
    reply = client.get("/").json()
    assert (reply["name"], reply["docs"], reply["ready"]) == ("Octavo", "/docs", True)


def test_log_of_requests_never_holds_the_text(client: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "octavo")
    client.chat(messages=[{"role": "user", "content": "canary-1"}])
    assert "canary" not in caplog.text
    client.settings["enable_log_requests"] = True
    client.chat(
        messages=[{"role": "user", "content": "canary-2"}],
        temperature=0.25,
        stop=["canary-3"],
        structured_outputs={"choice": ["canary-4"]},
    )
    assert "temperature=0.25" in caplog.text
    assert "stop, structured_outputs" in caplog.text
    assert "canary" not in caplog.text
