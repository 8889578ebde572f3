"""Whole transcripts: what goes over the wire for one request, byte for byte but for id and time."""

from __future__ import annotations

import json
import re
from typing import Any

import octavo
from octavo.types.engine import Finish

FINGERPRINT = f"octavo-{octavo.__version__}"


def wire(response: Any) -> str:
    """The body with the changing parts replaced."""
    text = re.sub(r'"created":\d+', '"created":0', response.text)
    text = re.sub(r'"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"\1-X"', text)
    return text.replace(FINGERPRINT, "F")


def test_chat(client: Any) -> None:
    client.fake.says = "Hey"
    response = client.chat(model="pocket")
    assert response.headers["content-type"] == "application/json"
    assert wire(response) == (
        '{"id":"chatcmpl-X","object":"chat.completion","created":0,"model":"pocket","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"Hey","refusal":null,"annotations":null,"audio":null,'
        '"function_call":null,"reasoning":null,"reasoning_content":null},"logprobs":null,'
        '"finish_reason":"stop","stop_reason":null,"token_ids":null}],"service_tier":null,'
        '"system_fingerprint":"F","usage":{"prompt_tokens":8,"total_tokens":11,"completion_tokens":3,'
        '"prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,'
        '"metrics":null}'
    )


def test_chat_stream(client: Any) -> None:
    client.fake.says = "Hé"
    response = client.chat(stream=True, stream_options={"include_usage": True})
    start = (
        'data: {"id":"chatcmpl-X","object":"chat.completion.chunk","created":0,"model":"pocket","choices":['
    )
    assert wire(response) == (
        f'{start}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,'
        '"finish_reason":null}],"prompt_token_ids":null}\n\n'
        f'{start}{{"index":0,"delta":{{"content":"H"}},"logprobs":null,"finish_reason":null,'
        '"token_ids":null}]}\n\n'
        f'{start}{{"index":0,"delta":{{"content":""}},"logprobs":null,"finish_reason":null,'
        '"token_ids":null}]}\n\n'
        f'{start}{{"index":0,"delta":{{"content":"é"}},"logprobs":null,"finish_reason":"stop",'
        '"stop_reason":null,"token_ids":null}],"system_fingerprint":"F"}\n\n'
        f'{start}],"usage":{{"prompt_tokens":8,"total_tokens":11,"completion_tokens":3,'
        '"prompt_tokens_details":null}}\n\n'
        "data: [DONE]\n\n"
    )


def test_completion(client: Any) -> None:
    client.fake.says = "a b"
    client.fake.finish = Finish("stop", "\n")
    assert wire(client.complete()) == (
        '{"id":"cmpl-X","object":"text_completion","created":0,"model":"pocket","choices":[{"index":0,'
        '"text":"a b","logprobs":null,"finish_reason":"stop","stop_reason":"\\n","token_ids":null,'
        '"prompt_logprobs":null,"prompt_token_ids":null}],"service_tier":null,"system_fingerprint":"F",'
        '"usage":{"prompt_tokens":4,"total_tokens":7,"completion_tokens":3,"prompt_tokens_details":null},'
        '"metrics":null}'
    )


def test_completion_stream(client: Any) -> None:
    client.fake.says = "ab"
    start = 'data: {"id":"cmpl-X","object":"text_completion","created":0,"model":"pocket","choices":['
    assert wire(client.complete(stream=True)) == (
        f'{start}{{"index":0,"text":"a","logprobs":null,"finish_reason":null,"stop_reason":null,'
        '"token_ids":null,"prompt_token_ids":null}],"usage":null}\n\n'
        f'{start}{{"index":0,"text":"b","logprobs":null,"finish_reason":"stop","stop_reason":null,'
        '"token_ids":null,"prompt_token_ids":null}],"system_fingerprint":"F","usage":null}\n\n'
        "data: [DONE]\n\n"
    )


def test_generate(client: Any) -> None:
    client.fake.says = "ab"
    assert client.post("/generate", {"prompt": "P:"}).json() == {"text": ["P:ab"]}
    pieces = client.post("/generate", {"prompt": "P:", "stream": True}).content.split(b"\0")
    assert pieces.pop() == b""
    assert [json.loads(p) for p in pieces] == [{"text": ["P:a"]}, {"text": ["P:ab"]}]


def test_error(client: Any) -> None:
    response = client.chat(model="gpt-9")
    assert response.status_code == 404
    assert response.text == (
        '{"error":{"message":"The model \'gpt-9\' does not exist. This server has: pocket, alias/pocket.",'
        '"type":"NotFoundError","param":"model","code":404}}'
    )
