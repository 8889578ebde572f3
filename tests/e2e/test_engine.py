"""The whole path without HTTP: an answer never depends on who else is in the batch, or on how it is cut."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import BadRequest, ConfigError, OctavoError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
LENGTHS = (1, 3, 15, 16, 17, 40, 64, 100, 129, 200)


def prompts(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random token prompts of mixed lengths."""
    draw = random.Random(seed)
    return [
        {"prompt_token_ids": [draw.randrange(3, 3000) for _ in range(LENGTHS[i % len(LENGTHS)])]}
        for i in range(count)
    ]


def greedy(tokens: int = 24) -> SamplingParams:
    """Greedy, of a fixed length, with the log-probabilities that would show the slightest difference."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=1)


def numbers(outputs: list) -> list:
    """Tokens and exact log-probabilities."""
    return [
        (
            tuple(o.outputs[0].token_ids),
            [tuple(sorted((i, p.logprob) for i, p in at.items())) for at in o.outputs[0].logprobs],
        )
        for o in outputs
    ]


@pytest.fixture(scope="module")
def alone(pocket: LLM) -> list:
    """Each prompt by itself."""
    return [numbers(pocket.generate([prompt], greedy(), use_tqdm=False))[0] for prompt in prompts(32)]


def test_alone_equals_in_a_batch_bit_for_bit(pocket: LLM, alone: list) -> None:
    assert numbers(pocket.generate(prompts(32), greedy(), use_tqdm=False)) == alone


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 40, "max_num_seqs": 32},
        {"enable_prefix_caching": False},
        {"num_gpu_blocks_override": 40, "max_num_seqs": 32, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 40, "max_num_seqs": 32},
    ],
    ids=["chunked", "no-prefix-cache", "preempted", "preempted-with-prefix-cache"],
)
def test_scheduling_never_changes_an_answer(settings: dict, alone: list) -> None:
    llm = LLM(dtype="float32", max_model_len=512, **settings)
    assert numbers(llm.generate(prompts(32), greedy(), use_tqdm=False)) == alone
    assert numbers(llm.generate(prompts(32), greedy(), use_tqdm=False)) == alone, (
        "the second time, from the cache"
    )
    stats = llm._engine.stats()
    assert stats.blocks_free == stats.blocks
    if "num_gpu_blocks_override" in settings:
        assert stats.preemptions_total > 0, "the case was meant to preempt"


def test_seeded_sampling_is_reproducible_in_any_company(pocket: LLM) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11, max_tokens=16, ignore_eos=True)
    first = pocket.generate(prompts(1), params, use_tqdm=False)[0].outputs[0].token_ids
    crowd = [params] + [SamplingParams(temperature=1.3, max_tokens=16, ignore_eos=True) for _ in range(9)]
    again = pocket.generate(prompts(10), crowd, use_tqdm=False)[0].outputs[0].token_ids
    assert list(first) == list(again)


@pytest.mark.parametrize("dtype", ["half", "float16", "bfloat16", "float", "float32", "auto"])
def test_every_dtype_runs_and_answers(dtype: str) -> None:
    llm = LLM(dtype=dtype, max_model_len=256, max_num_seqs=2)
    text = llm.chat(
        [{"role": "user", "content": "Why is the sky blue?"}],
        SamplingParams(temperature=0, max_tokens=60),
        use_tqdm=False,
    )[0].outputs[0]
    assert "blue" in text.text.lower()
    assert text.finish_reason == "stop"


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_backends_agree(backend: str, pocket: LLM) -> None:
    other = LLM(dtype="float32", backend=backend, max_model_len=512, max_num_seqs=4)
    ours, theirs = (llm.generate(prompts(6), greedy(8), use_tqdm=False) for llm in (pocket, other))
    assert [o.outputs[0].token_ids for o in ours] == [o.outputs[0].token_ids for o in theirs]


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers(pocket: LLM) -> None:
    with pytest.raises(BadRequest, match=r"600 tokens.* 512"):
        pocket.generate([{"prompt_token_ids": [5] * 600}], greedy(), use_tqdm=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "/nonexistent/folder"}, "nonexistent"),
        ({"dtype": "int3"}, "int3"),
        ({"max_model_len": 10_000_000}, "10000000"),
        ({"num_gpu_blocks_override": 1, "max_model_len": 512}, "KV cache"),
    ],
)
def test_what_cannot_start_says_so_in_one_sentence(settings: dict, words: str) -> None:
    with pytest.raises((OctavoError, ConfigError)) as caught:
        LLM(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not SHARED.exists(), reason="needs the shared test data, which only the founders' machines have"
)
def test_trained_weights_continue_as_expected() -> None:
    folder = SHARED / "data/weights/stories260k"
    llm = LLM(str(folder), dtype="float32")
    text = (
        llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=60), use_tqdm=False)[0]
        .outputs[0]
        .text
    )
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")


def test_a_cache_larger_than_memory_is_clamped_with_the_unit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """VLLM_CPU_KVCACHE_SPACE=40 (GiB, meant as MB) must start, and say what the number means."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4000")
    monkeypatch.setattr(logging.getLogger("octavo"), "propagate", True)
    llm = LLM(max_model_len=256, max_num_seqs=2)
    assert "the unit is GiB; for megabytes write 4000MB" in caplog.text
    assert llm._engine.stats().blocks == 2 * 256 // 16


def test_more_max_tokens_than_the_context_are_cut(pocket: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=100_000, ignore_eos=True)
    output = pocket.generate([{"prompt_token_ids": [5] * 500}], params, use_tqdm=False)[0].outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (12, "length")
