"""Forms of answers through the whole engine: batches, preemption, several answers, ends."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import BadRequest
from octavo.types.structured import GuidedDecodingParams, StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 12},
        "b": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
FORMS: list[dict[str, Any]] = [
    {"json": SCHEMA},
    {"regex": r"[a-z]{3,9} [0-9]+\."},
    {"choice": ["blue because of light", "blue", "red"]},
    {"grammar": 'root ::= ("x" | "y" root)+'},
]


def run(llm: LLM, count: int, **fields: Any) -> list[Any]:
    params = [
        SamplingParams(
            temperature=0, max_tokens=60, logprobs=1, structured_outputs=FORMS[i % len(FORMS)], **fields
        )
        for i in range(count)
    ]
    prompts = [f"Tell me {i} things about the sky, please." for i in range(count)]
    return [o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)]


def numbers(answers: list[Any]) -> list[Any]:
    return [
        (tuple(a.token_ids), [sorted((i, p.logprob) for i, p in at.items()) for at in a.logprobs])
        for a in answers
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 40},
        {"num_gpu_blocks_override": 16, "max_model_len": 256},
        {"num_gpu_blocks_override": 16, "max_model_len": 256, "enable_prefix_caching": False},
    ],
)
def test_forms_do_not_depend_on_the_company(pocket: LLM, settings: dict[str, Any]) -> None:
    together = run(pocket, 24)
    for i, answer in enumerate(together):
        if answer.finish_reason == "stop":
            check(FORMS[i % len(FORMS)], answer.text)
    llm = LLM(dtype="float32", **{"max_model_len": 512, "max_num_seqs": 24, **settings})
    assert numbers(run(llm, 24)) == numbers(together)
    stats = llm._engine.stats()
    assert stats.blocks_free == stats.blocks
    if "num_gpu_blocks_override" in settings:
        assert stats.preemptions_total > 0, "the case was meant to preempt"


def check(form: dict[str, Any], text: str) -> None:
    if "json" in form:
        value = json.loads(text)
        assert isinstance(value["a"], str)
        assert all(isinstance(n, int) for n in value["b"])
    elif "choice" in form:
        assert text in form["choice"]
    else:
        assert re.fullmatch(form.get("regex", "[xy]*x"), text)


def test_several_answers_of_one_request(pocket: LLM) -> None:
    params = SamplingParams(
        n=3, best_of=5, temperature=1.0, seed=1, structured_outputs=StructuredOutputsParams(regex="[0-9]{3}")
    )
    [output] = pocket.generate("Count", params, use_tqdm=False)
    assert len(output.outputs) == 3
    assert all(re.fullmatch("[0-9]{3}", answer.text) for answer in output.outputs)
    assert all(answer.finish_reason == "stop" for answer in output.outputs)


def test_stop_strings_and_limits_still_end_an_answer(pocket: LLM) -> None:
    form = StructuredOutputsParams(regex="(ab){20,}")
    cut = pocket.generate("x", SamplingParams(structured_outputs=form, max_tokens=4), use_tqdm=False)[0]
    assert cut.outputs[0].finish_reason == "length"
    params = SamplingParams(structured_outputs=form, max_tokens=100, stop="aba")
    stopped = pocket.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert (stopped.finish_reason, stopped.stop_reason, stopped.text) == ("stop", "aba", "")


def test_a_matcher_that_fails_ends_its_own_answer_only(pocket: LLM) -> None:
    """The engine goes on; offline that is an error, as any answer that ends with one."""
    form = StructuredOutputsParams(regex="(a?){500}a{500}")
    with pytest.raises(Exception, match=r"could not go on|cannot be compiled"):
        pocket.generate("x", SamplingParams(structured_outputs=form, max_tokens=50), use_tqdm=False)
    assert run(pocket, 1)[0].finish_reason in ("stop", "length")


def test_older_names_and_wrong_values() -> None:
    older = SamplingParams(guided_decoding=GuidedDecodingParams(json=SCHEMA, backend="outlines"))
    assert older.structured_outputs.json == SCHEMA
    assert older.clone().structured_outputs.json == SCHEMA
    assert SamplingParams(structured_outputs={"choice": ["a", "b"]}).structured_outputs.choice == ["a", "b"]
    for wrong in ({}, {"regex": "a", "choice": ["b"]}, {"regex": 3}, {"choice": []}, {"rgx": "a"}, 7, "a"):
        with pytest.raises(BadRequest) as caught:
            SamplingParams(structured_outputs=wrong)
        assert str(caught.value.param).startswith("structured_outputs")
    with pytest.raises(BadRequest, match="two names"):
        SamplingParams(structured_outputs={"regex": "a"}, guided_decoding={"regex": "b"})
