"""The bundled model through the real runner: the same tokens whatever the scheduler does with them."""

from __future__ import annotations

import random

import pytest

from octavo.config.engine import EngineConfig
from octavo.types.engine import EngineRequest, SamplingSpec

pytest.importorskip("octavo._native", reason="the C++ extension is not built")


def requests() -> list[EngineRequest]:
    """Greedy and random ones, with penalties, log-probabilities and two shared beginnings."""
    rng = random.Random(1)
    heads = [[rng.randrange(3, 1500) for _ in range(40)] for _ in range(2)]
    made = []
    for index in range(12):
        tail = [rng.randrange(3, 1500) for _ in range(rng.randrange(1, 60))]
        sampling = SamplingSpec(
            max_tokens=40,
            temperature=float(index % 2),
            seed=index,
            repetition_penalty=1.1 if index % 3 == 0 else 1.0,
            logprobs=2 if index % 4 == 0 else None,
            prompt_logprobs=1 if index % 5 == 0 else None,
        )
        prompt = (*heads[index % 2], *tail)
        made.append(EngineRequest(id=str(index), prompt=prompt, arrival_s=0.0, sampling=sampling))
    return made


def answers(**config) -> tuple[dict[str, list], int]:
    """Everything that comes out for each request, and how often one was preempted."""
    from octavo import launch

    engine = launch.build(EngineConfig(quiet=True, max_model_len=200, threads=1, **config)).engine
    found: dict[str, list] = {}
    for request in requests():
        engine.submit(request)
        found[request.id] = [[], [], []]
    while engine.busy():
        for out in engine.step():
            for kept, fresh in zip(
                found[out.id], (out.tokens, out.logprobs, out.prompt_logprobs), strict=True
            ):
                kept.extend(fresh)
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks
    return found, stats.preemptions_total


@pytest.mark.parametrize("entries", ["auto", "int8", "fp8"])
def test_pressure_batching_chunks_and_the_prefix_cache_change_nothing(entries: str):
    plain, _ = answers(max_num_seqs=1, enable_prefix_caching=False, kv_cache_dtype=entries)
    pressed, preemptions = answers(num_blocks_override=30, kv_cache_dtype=entries)
    assert preemptions > 0
    assert pressed == plain
    chunked, _ = answers(max_num_batched_tokens=24, max_num_seqs=12, block_size=32, kv_cache_dtype=entries)
    assert chunked == plain
    assert all(len(tokens) == 40 for tokens, _, _ in plain.values())
