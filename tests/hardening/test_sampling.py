"""Every sampling field with every other, on the real engine: one finish each, exact counts, no crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from octavo import LLM, SamplingParams
from octavo.errors import BadRequest
from octavo.types.outputs import CompletionOutput, RequestOutput

CONTEXT = 256
ROUNDS = 15


def fields(draw: random.Random, vocab: int) -> dict[str, Any]:
    """Random sampling fields, most of them allowed."""
    n = draw.choice((1, 1, 2, 5))
    ids: Callable[[int], list[int]] = lambda k: [draw.randrange(vocab) for _ in range(k)]  # noqa: E731
    options: dict[str, Any] = {
        "best_of": n + draw.choice((0, 1, 3)),
        "presence_penalty": draw.uniform(-2, 2),
        "frequency_penalty": draw.uniform(-2, 2),
        "repetition_penalty": draw.choice((0.01, 0.5, 1.5, 1e30)),
        "top_p": draw.choice((1e-9, 0.1, 0.9)),
        "top_k": draw.choice((-1, 1, 5, 10**9)),
        "min_p": draw.choice((0.1, 1.0)),
        "seed": draw.choice((0, 1, -5, 2**62)),
        "stop": draw.choice((["a"], [" "], ["the", "e"], "e", ["zzzz"])),
        "stop_token_ids": ids(draw.choice((1, 5, 200))),
        "bad_words": draw.choice((["the"], ["a", "b"], ["\n"], ["é"])),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": draw.randrange(12),
        "logprobs": draw.choice((0, 1, 5, 20)),
        "prompt_logprobs": draw.choice((0, 1, 20)),
        "logit_bias": dict.fromkeys(ids(draw.choice((1, 10, 300))), draw.uniform(-200, 200)),
        "allowed_token_ids": ids(draw.choice((1, 2, 50))),
        "skip_special_tokens": False,
        "truncate_prompt_tokens": draw.choice((1, 5, 100, -1)),
    }
    chosen = {name: value for name, value in options.items() if draw.random() < 0.25}
    temperature = draw.choice((0, 0.5, 1.0, 2.0))
    return {
        "n": n if temperature else 1,
        "temperature": temperature,
        "max_tokens": draw.choice((1, 2, 12, 20, None)),
        **chosen,
    }


def check(output: RequestOutput, asked: SamplingParams) -> None:
    """What holds for every answer whatever was asked."""
    assert output.finished
    assert len(output.outputs) == asked.n
    prompt = output.prompt_token_ids
    assert prompt is not None
    if asked.prompt_logprobs is not None:
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(prompt)
        assert output.prompt_logprobs[0] is None
        for token, at in zip(prompt[1:], output.prompt_logprobs[1:], strict=True):
            assert at is not None
            assert at[token].logprob <= 1e-4
    room = CONTEXT - len(prompt)
    limit = room if asked.max_tokens is None else min(room, asked.max_tokens)
    for answer in output.outputs:
        check_answer(answer, asked, limit)


def check_answer(answer: CompletionOutput, asked: SamplingParams, limit: int) -> None:
    tokens = answer.token_ids
    assert answer.finish_reason in ("stop", "length")
    assert len(tokens) <= limit
    if answer.finish_reason == "stop":
        assert len(tokens) >= min(asked.min_tokens, limit)
    elif answer.stop_reason is None:
        assert len(tokens) == limit
    if asked.allowed_token_ids:
        assert set(tokens) <= set(asked.allowed_token_ids)
    if asked.logprobs is not None:
        assert answer.logprobs is not None
        assert [next(iter(at)) for at in answer.logprobs] == list(tokens)
        assert all(len(at) <= asked.logprobs + 1 for at in answer.logprobs)
        total = sum(at[token].logprob for token, at in zip(tokens, answer.logprobs, strict=True))
        assert answer.cumulative_logprob == pytest.approx(total, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "engine",
    [
        {"max_num_seqs": 16, "num_gpu_blocks_override": 20},
        {"max_num_seqs": 3, "max_num_batched_tokens": 17, "enable_prefix_caching": False},
    ],
    ids=["preempting", "chunked"],
)
def test_all_fields_together(engine: dict[str, Any]) -> None:
    draw = random.Random(str(engine))
    llm = LLM(dtype="float32", max_model_len=CONTEXT, **engine)
    vocab = llm.get_tokenizer().vocab_size
    refused = 0
    for _ in range(ROUNDS):
        asked, prompts = [], []
        for _ in range(draw.randrange(1, 7)):
            try:
                asked.append(SamplingParams(**fields(draw, vocab)))
            except BadRequest:
                refused += 1
                continue
            length = draw.choice((1, 2, 15, 16, 17, 60, 200))
            prompts.append({"prompt_token_ids": [draw.randrange(vocab) for _ in range(length)]})
        outputs = llm.generate(prompts, asked, use_tqdm=False)
        for output, params in zip(outputs, asked, strict=True):
            check(output, params)
        stats = llm._engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)
        # The same again, alone: greedy and seeded answers depend on nobody else.
        again = [i for i, p in enumerate(asked) if p.temperature == 0 or p.seed is not None][:2]
        for i in again:
            (alone,) = llm.generate([prompts[i]], [asked[i]], use_tqdm=False)
            assert [a.token_ids for a in alone.outputs] == [a.token_ids for a in outputs[i].outputs]
    assert refused < ROUNDS
