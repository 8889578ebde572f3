"""LLMEngine: requests and steps of a caller's own loop."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_engine import ScriptedEngine, llm_of, params

from octavo import LLMEngine
from octavo.errors import BadRequest, QueueFull, Unavailable
from octavo.pipeline.prepare import Preparer
from octavo.types.sampling import RequestOutputKind


@pytest.fixture
def vllm_engine(engine: ScriptedEngine, preparer: Preparer) -> LLMEngine:
    return llm_of(engine, preparer).llm_engine


def drain(one: LLMEngine) -> list[Any]:
    outputs = []
    for _ in range(100):
        if not one.has_unfinished_requests():
            return outputs
        outputs += one.step()
    raise AssertionError("it does not end")


def test_the_loop_of_scripts(vllm_engine: LLMEngine, text: list[int]) -> None:
    prompts = [("Hello", params(4)), ("Hi", params(2)), ([9, 8], params(3))]
    finished = []
    number = 0
    while prompts or vllm_engine.has_unfinished_requests():
        if prompts:
            vllm_engine.add_request(str(number), *prompts.pop(0))
            number += 1
        finished += [one for one in vllm_engine.step() if one.finished]
    assert sorted(one.request_id for one in finished) == ["0", "1", "2"]
    tokens = {one.request_id: one.outputs[0].token_ids for one in finished}
    assert tokens == {"0": text[:4], "1": text[:2], "2": text[:3]}
    assert vllm_engine.get_num_unfinished_requests() == 0
    assert vllm_engine.step() == []


def test_outputs_are_cumulative_deltas_or_one_at_the_end(vllm_engine: LLMEngine, text: list[int]) -> None:
    for name, kind in [("c", "CUMULATIVE"), ("d", "DELTA"), ("f", "FINAL_ONLY")]:
        vllm_engine.add_request(name, "Hello", params(3, n=2, seed=1, output_kind=RequestOutputKind[kind]))
    outputs = drain(vllm_engine)
    named = {name: [one for one in outputs if one.request_id == name] for name in "cdf"}
    assert [len(one.outputs[0].token_ids) for one in named["c"]] == [1, 2, 3]
    assert all(len(one.outputs) == 2 for one in named["c"])
    parts = [one.outputs[0].token_ids for one in named["d"] if one.outputs[0].index == 1]
    assert parts == [[token] for token in text[:3]]
    (last,) = named["f"]
    assert [one.token_ids for one in last.outputs] == [text[:3]] * 2


def test_names_are_the_callers_and_in_use_only_once(vllm_engine: LLMEngine) -> None:
    assert vllm_engine.add_request("a", "Hello", params(1)) == "a"
    with pytest.raises(BadRequest, match="'a' is not finished"):
        vllm_engine.add_request("a", "Hello", params(1))
    drain(vllm_engine)
    vllm_engine.add_request("a", "Hello", params(1))
    assert [one.request_id for one in drain(vllm_engine)] == ["a"]


def test_an_aborted_request_says_nothing_more(vllm_engine: LLMEngine, engine: ScriptedEngine) -> None:
    vllm_engine.add_request("a", "Hello", params(5))
    vllm_engine.add_request("b", "Hello", params(2))
    vllm_engine.step()
    vllm_engine.abort_request(["a", "unknown"])
    assert len(engine.aborted) == 1
    assert {one.request_id for one in drain(vllm_engine)} == {"b"}
    vllm_engine.add_request("a", "Hello", params(1))
    vllm_engine.abort_request("a")
    assert not vllm_engine.has_unfinished_requests()
    assert vllm_engine.step() == []


def test_a_failed_request_ends_with_an_error_and_the_others_go_on(
    vllm_engine: LLMEngine, engine: ScriptedEngine
) -> None:
    engine.error_at = 3
    vllm_engine.add_request("long", "Hello", params(9))
    vllm_engine.add_request("short", "Hello", params(2))
    last = {one.request_id: one.outputs[0].finish_reason for one in drain(vllm_engine)}
    assert last == {"long": "error", "short": "length"}


def test_what_cannot_be_is_refused_at_once(vllm_engine: LLMEngine, engine: ScriptedEngine) -> None:
    for prompt in ("", [10**7], {"text": "x"}):
        with pytest.raises(BadRequest):
            vllm_engine.add_request("a", prompt, params(1))
    assert not vllm_engine.has_unfinished_requests()
    engine.queue = 0
    with pytest.raises(QueueFull):
        vllm_engine.add_request("a", "Hello", params(1))
    assert not vllm_engine.has_unfinished_requests()
    vllm_engine.sleep()
    with pytest.raises(Unavailable, match="asleep"):
        vllm_engine.add_request("a", "Hello", params(1))
    assert vllm_engine.is_sleeping()
    vllm_engine.wake_up()


def test_calls_of_the_llm_mix_with_it(engine: ScriptedEngine, preparer: Preparer, text: list[int]) -> None:
    llm = llm_of(engine, preparer)
    one = llm.llm_engine
    assert llm.llm_engine is one
    one.add_request("a", "Hello", params(4))
    one.step()
    (whole,) = llm.generate("Hi", params(6))
    assert whole.outputs[0].token_ids == (text * 2)[:6]
    assert drain(one)[-1].outputs[0].token_ids == text[:4]
    assert one.model_config.max_model_len == 200
    assert one.get_tokenizer().vocab_size == preparer.tokenizer.vocab_size
