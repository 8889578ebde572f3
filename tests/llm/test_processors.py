"""SamplingParams(logits_processors=[...]): a script's own functions over the logits; on the bundled model."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import OctavoError

pytest.importorskip("octavo._native", reason="the extension is not built")

PROMPT = "The sky is"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", max_model_len=128)


def only(ids: list[int]) -> Any:
    """A processor that forces the answer `ids`."""

    def force(output: list[int], logits: Any) -> Any:
        made = torch.full_like(logits, -float("inf"))
        made[ids[len(output)]] = logits[ids[len(output)]]
        return made

    return force


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, **fields})


def test_a_processor_decides_and_the_logprobs_stay_the_models_own(llm: LLM) -> None:
    ids = [300, 17, 301, 5]
    (found,) = llm.generate(PROMPT, greedy(logits_processors=[only(ids)], logprobs=1, logprob_token_ids=[9]))
    answer = found.outputs[0]
    assert answer.token_ids == ids
    prompt = [*found.prompt_token_ids, *ids]
    (scored,) = llm.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=0))
    for token, told, true in zip(ids, answer.logprobs, scored.prompt_logprobs[-4:], strict=True):
        assert told[token].logprob == pytest.approx(true[token].logprob, abs=1e-4)
        assert told[token].rank == true[token].rank
        assert list(told) == [token, 9]


def test_other_rows_of_the_batch_do_not_see_it(llm: LLM) -> None:
    alone = llm.generate(PROMPT, greedy())[0].outputs[0].token_ids
    params = [greedy(), greedy(logits_processors=[only([300] * 4)]), greedy()]
    texts = [one.outputs[0].token_ids for one in llm.generate([PROMPT] * 3, params)]
    assert texts == [alone, [300] * 4, alone]


def test_three_parameters_get_the_prompt_too(llm: LLM) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def look(prompt: list[int], output: list[int], logits: Any) -> Any:
        seen.append((list(prompt), list(output)))
        return logits

    (found,) = llm.generate(PROMPT, greedy(logits_processors=[look], max_tokens=3))
    ids = found.outputs[0].token_ids
    assert seen == [(found.prompt_token_ids, ids[:n]) for n in range(3)]


class Ban:
    """An object that is called, as some scripts have."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, output: list[int], logits: Any) -> Any:
        logits[self.token] = -np.inf
        return logits


def test_objects_and_partials_and_several_in_a_row(llm: LLM) -> None:
    first = llm.generate(PROMPT, greedy(max_tokens=1))[0].outputs[0].token_ids[0]
    plus = functools.partial(_plus, 40.0, 17)
    params = greedy(logits_processors=[Ban(first), plus, Ban(17)])
    found = llm.generate(PROMPT, params)[0].outputs[0].token_ids
    assert first not in found
    assert 17 not in found


def _plus(by: float, token: int, output: list[int], logits: Any) -> Any:
    logits[token] += by
    return logits


def test_a_module_without_torch_gets_numpy(llm: LLM) -> None:
    seen: list[Any] = []
    look = FunctionType(_look.__code__, {"seen": seen})
    llm.generate(PROMPT, greedy(max_tokens=1, logits_processors=[look]))
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].dtype == np.float32


def _look(output: list[int], logits: Any) -> Any:
    seen.append(logits)  # type: ignore[name-defined]  # noqa: F821
    return logits


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda output, logits: 1 / 0, "ZeroDivisionError"),
        (lambda output, logits: None, "returned None"),
        (lambda output, logits: logits[:5], r"the shape \[5\]"),
        (lambda output, logits: logits * float("nan"), "NaN"),
        (lambda output, logits: logits - float("inf"), "No token may be drawn"),
    ],
)
def test_a_processor_that_fails_ends_its_own_request(llm: LLM, processor: Any, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        llm.generate(PROMPT, greedy(logits_processors=[processor]))
    assert llm.generate(PROMPT, greedy())[0].finished


def test_with_a_form_both_hold(llm: LLM) -> None:
    ban = Ban(llm.get_tokenizer().encode("yes", add_special_tokens=False)[0])
    params = greedy(structured_outputs={"choice": ["yes", "no"]}, ignore_eos=False, max_tokens=8)
    params.logits_processors = [ban]
    assert llm.generate(PROMPT, params)[0].outputs[0].text == "no"
