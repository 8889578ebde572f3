"""`thinking_token_budget` at every door, with the bundled model made to think by its template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from running import LIMIT_S, serving

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>{% if enable_thinking is not false %}\n{% else %}</think>{% endif %}"
)
ASK = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {}}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = Path(tmp_path_factory.mktemp("template")) / "thinks.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    config = {"chat_template": str(path), "reasoning_parser": "qwen3", "tool_call_parser": "hermes"}
    with serving(**config) as running:
        yield running.url


def post(url: str, path: str, **body: Any) -> Any:
    reply = httpx.post(f"{url}{path}", json=body, timeout=LIMIT_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def thought(usage: dict[str, Any]) -> int:
    """How many tokens were reasoning."""
    return int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0))


def test_without_a_budget_it_thinks_to_the_end(url: str) -> None:
    made = post(url, "/v1/chat/completions", messages=ASK, max_tokens=40, ignore_eos=True)
    assert thought(made["usage"]) == 40
    assert not made["choices"][0]["message"]["content"]


@pytest.mark.parametrize("budget", [0, 1, 12])
@pytest.mark.parametrize("stream", [False, True])
def test_chats(url: str, budget: int, stream: bool) -> None:
    body = {"messages": ASK, "max_tokens": 60, "thinking_token_budget": budget, "ignore_eos": True}
    body["temperature"] = 0
    if not stream:
        made = post(url, "/v1/chat/completions", **body)
        messages, usage = [made["choices"][0]["message"]], made["usage"]
    else:
        body.update(stream=True, stream_options={"include_usage": True})
        text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LIMIT_S).text
        lines = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        messages, usage = [c["delta"] for line in lines for c in line["choices"]], lines[-1]["usage"]
    reasoning = "".join(message.get("reasoning") or "" for message in messages)
    content = "".join(message.get("content") or "" for message in messages)
    assert bool(reasoning) == bool(budget)
    assert content
    assert "</think>" not in content + reasoning
    closing = 8  # tokens that </think> has at most
    assert budget <= thought(usage) <= budget + closing


def test_it_goes_with_forms_several_answers_stops_and_calls(url: str) -> None:
    body: dict[str, Any] = {"messages": ASK, "max_tokens": 60, "thinking_token_budget": 5}
    path = "/v1/chat/completions"
    made = post(url, path, **body, n=3, temperature=1.5, seed=1, guided_choice=["left", "right"])
    assert {c["message"]["content"] for c in made["choices"]} <= {"left", "right"}
    assert all(c["message"]["reasoning"] for c in made["choices"])
    made = post(url, path, **body, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    [call] = made["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}
    body["temperature"] = 0
    free = post(url, path, **body)["choices"][0]["message"]
    stop = free["content"][3:6]
    told = post(url, path, **body, stop=[stop])["choices"][0]
    assert told["stop_reason"] == stop
    assert told["message"]["reasoning"] == free["reasoning"]
    closed = post(url, path, **body, chat_template_kwargs={"enable_thinking": False})
    assert thought(closed["usage"]) == 0


def test_the_other_doors(url: str) -> None:
    raw = post(
        url, "/v1/completions", prompt="So <think>", max_tokens=40, thinking_token_budget=6, ignore_eos=True
    )
    assert raw["choices"][0]["text"].index("</think>") > 0
    made = post(url, "/v1/responses", input=ASK, max_output_tokens=60, thinking_token_budget=6, temperature=0)
    assert [item["type"] for item in made["output"]] == ["reasoning", "message"]
    thinking = {"type": "enabled", "budget_tokens": 6}
    made = post(
        url, "/v1/messages", model="pocket", messages=ASK, max_tokens=60, thinking=thinking, temperature=0
    )
    assert [block["type"] for block in made["content"]] == ["thinking", "text"]
    body = {"model": "pocket", "messages": ASK, "stream": False}
    made = post(
        url, "/api/chat", **body, options={"num_predict": 60, "thinking_token_budget": 6, "temperature": 0}
    )
    assert made["message"]["thinking"]
    assert made["message"]["content"]
