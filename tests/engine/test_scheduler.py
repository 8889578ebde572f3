"""The scheduler over the hash model: right tokens, budgets kept, blocks returned, whatever happens."""

from __future__ import annotations

import random

import pytest
from engine_fakes import VOCAB, World, alone, make
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.settings import EngineSettings
from octavo.errors import BadRequest, ConfigError, PromptTooLong


def prompt(n: int, seed: int = 0) -> list[int]:
    return [random.Random(seed).randrange(VOCAB) for _ in range(1)] + [
        random.Random(seed * 1000 + i).randrange(VOCAB) for i in range(n - 1)
    ]


def test_one_request_gives_the_models_tokens():
    world = World()
    world.submit("a", prompt(10), max_tokens=12, logprobs=0)
    world.drain()
    assert len(world.tokens("a")) == 12
    world.check("a")
    assert world.finish("a").reason == "length"
    assert all(len(out.logprobs) == len(out.tokens) for out in world.outs["a"])
    world.check_idle()


def test_chunks_and_decodes_share_steps_and_decodes_never_starve():
    world = World(max_num_batched_tokens=8, max_model_len=256, blocks=128)
    world.submit("short", prompt(3, 1), max_tokens=40)
    world.step()
    world.submit("long", prompt(100, 2), max_tokens=3)
    for _ in range(15):
        outs = world.step()
        assert "short" in {out.id for out in outs}
    assert max(batch.tokens for batch in world.model.steps) == 8
    world.drain()
    for name in ("short", "long"):
        world.check(name)
    world.check_idle()


def test_preempted_sequences_go_on_as_if_nothing_had_been():
    world = World(blocks=14, block_size=4, max_model_len=48)
    for index in range(5):
        world.submit(f"r{index}", prompt(6 + index, index), max_tokens=30, seed=index)
    world.drain()
    assert world.engine.stats().preemptions_total > 0
    for index in range(5):
        assert len(world.tokens(f"r{index}")) == 30
        world.check(f"r{index}")
    world.check_idle()


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_long_random_life(caching, policy):
    """Random arrivals, aborts, pressure, shared prefixes: right tokens, one finish each, no leak."""
    rng = random.Random(f"{caching}{policy}")
    world = World(
        blocks=24,
        block_size=4,
        switch=20,
        max_model_len=60,
        max_num_seqs=6,
        max_num_batched_tokens=12,
        logit_rows=9,
        policy=policy,
        prefix_caching=caching,
    )
    roots = [prompt(30, 900 + i) for i in range(3)]
    for index in range(160):
        if rng.random() < 0.6:
            head = rng.choice(roots)[: rng.randrange(1, 30)]
            world.submit(
                f"r{index}",
                head + prompt(rng.randrange(1, 12), index),
                max_tokens=rng.randrange(0, 40),
                seed=rng.randrange(3),
                priority=rng.randrange(3),
                salt=rng.choice(["", "x"]),
                end_ids=(rng.randrange(VOCAB),),
                min_tokens=rng.randrange(3),
                prompt_logprobs=rng.choice([None, None, 0, 3]),
            )
        for _ in range(rng.randrange(4)):
            world.step()
        if rng.random() < 0.2:
            world.engine.abort([rng.choice(list(world.outs) or ["none"])])
    world.drain()
    for name, request in world.requests.items():
        world.check(name)
        assert sum(out.finish is not None for out in world.outs[name]) == 1
        finish, got = world.finish(name), world.tokens(name)
        assert finish.reason in {"length", "stop", "abort"}
        if finish.reason == "stop":
            assert got[-1] == finish.stop_reason
            assert len(got) >= request.sampling.min_tokens
        if finish.reason == "length":
            assert len(got) == min(request.sampling.max_tokens, 60 - len(request.prompt))
        if request.sampling.prompt_logprobs is not None and finish.reason != "abort":
            entries = [out.prompt_logprobs for out in world.outs[name] if out.prompt_logprobs]
            assert [entry and entry.ids[0] for entry in entries[0]] == [None, *request.prompt[1:]]
            assert len(entries) == 1
    stats = world.engine.stats()
    assert stats.preemptions_total > 0
    assert (stats.prefix_hit_tokens_total > 0) == caching
    world.check_idle()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_settings_any_requests(data):
    block_size = data.draw(st.sampled_from([1, 2, 4, 16]))
    seqs = data.draw(st.integers(1, 5))
    world = World(
        blocks=data.draw(st.integers(-(-24 // block_size), 40)),
        block_size=block_size,
        max_model_len=24,
        max_num_seqs=seqs,
        max_num_batched_tokens=data.draw(st.integers(seqs, 20)),
        logit_rows=data.draw(st.integers(seqs, 12)),
        max_chunk_tokens=data.draw(st.sampled_from([None, 1, 3])),
    )
    for index in range(data.draw(st.integers(1, 8))):
        length = data.draw(st.integers(1, 23))
        same = data.draw(st.booleans())
        world.submit(
            f"r{index}",
            prompt(length, 7 if same else index),
            max_tokens=data.draw(st.integers(1, 24)),
            prompt_logprobs=data.draw(st.sampled_from([None, 1])),
        )
        if data.draw(st.booleans()):
            world.step()
        if data.draw(st.integers(0, 9)) == 0:
            world.engine.abort([f"r{index}"])
    world.drain()
    for name in world.outs:
        assert world.finished(name)
        world.check(name)
    world.check_idle()


def test_stops_only_after_min_tokens():
    world = World()
    first = alone(make("a", prompt(5)), 6)
    world.submit("a", prompt(5), max_tokens=6, eos_id=first[0], end_ids=(first[3],), min_tokens=2)
    world.drain()
    expected = next(i for i, t in enumerate(first, 1) if i >= 2 and t in (first[0], first[3]))
    assert world.tokens("a") == first[:expected]
    assert world.finish("a").reason == "stop"


def test_primary_end_token_has_no_stop_reason():
    world = World()
    first = alone(make("a", prompt(5)), 1)
    world.submit("a", prompt(5), eos_id=first[0])
    world.drain()
    assert world.finish("a").reason == "stop"
    assert world.finish("a").stop_reason is None


def test_context_end_is_length_and_max_tokens_is_clamped():
    world = World(max_model_len=16)
    world.submit("a", prompt(10), max_tokens=1000)
    world.drain()
    assert len(world.tokens("a")) == 6
    assert world.finish("a").reason == "length"
    world.submit("full", prompt(15), max_tokens=9)
    world.drain()
    assert len(world.tokens("full")) == 1


def test_a_cache_smaller_than_the_context_bounds_the_sequence():
    world = World(blocks=5, block_size=4, max_model_len=64)
    world.submit("a", prompt(10), max_tokens=1000)
    world.drain()
    assert len(world.tokens("a")) == 10
    world.check("a")
    with pytest.raises(PromptTooLong, match=r"20 tokens.*at most 19"):
        world.submit("b", prompt(20))


def test_zero_max_tokens_computes_the_prompt_only():
    world = World()
    world.submit("a", prompt(9), max_tokens=0, prompt_logprobs=0)
    world.drain()
    (out,) = world.outs["a"]
    assert out.tokens == ()
    assert out.finish.reason == "length"
    assert len(out.prompt_logprobs) == 9


def test_what_can_never_run_is_refused_with_the_numbers():
    world = World(max_model_len=32)
    with pytest.raises(PromptTooLong) as caught:
        world.submit("a", prompt(32))
    assert (caught.value.got_tokens, caught.value.limit_tokens) == (32, 31)
    with pytest.raises(BadRequest, match="no tokens"):
        world.submit("b", [])
    with pytest.raises(BadRequest, match=f"Token id {VOCAB} "):
        world.submit("c", [1, VOCAB])
    with pytest.raises(BadRequest, match="Token id -2 "):
        world.submit("d", [1, -2])
    world.submit("e", [1])
    with pytest.raises(BadRequest, match="'e'"):
        world.engine.submit(make("e", [1]))
    world.drain()
    world.check_idle()


@pytest.mark.parametrize("state", ["waiting", "mid-prefill", "running"])
def test_abort_frees_blocks_at_once(state):
    world = World(max_num_seqs=1, max_num_batched_tokens=4)
    if state == "waiting":
        world.submit("other", prompt(3), max_tokens=5)
        world.step()
    held = world.pool.used
    world.submit("a", prompt(12, 5), max_tokens=20)
    for _ in range({"waiting": 1, "mid-prefill": 1, "running": 6}[state]):
        world.step()
    assert bool(world.tokens("a")) == (state == "running")
    assert (world.pool.used > held) == (state != "waiting")
    world.engine.abort(["a", "nobody"])
    assert world.pool.used == held
    assert world.engine.busy()
    world.step()
    assert world.finish("a").reason == "abort"
    world.engine.abort(["a"])
    world.drain()
    assert sum(out.finish is not None for out in world.outs["a"]) == 1
    world.check_idle()


def test_priority_policy_serves_the_better_first_and_takes_a_place():
    world = World(max_num_seqs=1, policy="priority")
    world.submit("low", prompt(3, 1), max_tokens=10, priority=5)
    for _ in range(3):
        world.step()
    world.submit("mid", prompt(3, 2), max_tokens=3, priority=3)
    world.submit("high", prompt(3, 3), max_tokens=3, priority=-1)
    order = []
    while world.engine.busy():
        order += [out.id for out in world.step() if out.finish]
    assert order == ["high", "mid", "low"]
    for name in order:
        world.check(name)
    world.check_idle()


def test_fcfs_ignores_priority_and_keeps_the_order():
    world = World(max_num_seqs=1)
    for index in range(4):
        world.submit(f"r{index}", prompt(3, index), max_tokens=2, priority=-index)
    order = []
    while world.engine.busy():
        order += [out.id for out in world.step() if out.finish]
    assert order == ["r0", "r1", "r2", "r3"]


def test_a_large_request_is_not_overtaken_for_ever():
    """Small requests keep coming; the large one at the head of the queue still starts."""
    world = World(blocks=20, block_size=4, max_model_len=76, max_num_seqs=4, max_num_batched_tokens=80)
    for index in range(3):
        world.submit(f"s{index}", prompt(4, index), max_tokens=10)
        world.step()
    world.submit("large", prompt(64, 50), max_tokens=2)
    for index in range(3, 40):
        world.submit(f"s{index}", prompt(4, index), max_tokens=10)
        world.step()
    assert world.finished("large")


def test_prompt_logprobs_keep_the_bound_of_logit_rows():
    world = World(max_num_seqs=2, logit_rows=3, max_num_batched_tokens=32)
    world.submit("a", prompt(20), max_tokens=2, prompt_logprobs=2)
    world.submit("b", prompt(9, 3), max_tokens=6)
    world.drain()
    (entries,) = [out.prompt_logprobs for out in world.outs["a"] if out.prompt_logprobs]
    assert len(entries) == 20
    assert [entry.ids[0] for entry in entries[1:]] == prompt(20)[1:]
    assert all(entry.ranks == (2,) for entry in entries[1:])
    world.check("a")
    world.check("b")


def test_rows_spent_on_prompt_logprobs_make_others_wait_a_step():
    world = World(max_num_seqs=3, logit_rows=3, max_chunk_tokens=2)
    world.submit("d", prompt(3, 3), max_tokens=6)
    world.submit("a", prompt(20), max_tokens=2, prompt_logprobs=2)
    world.submit("b", prompt(4, 4), max_tokens=6)
    world.step()
    world.step()
    assert world.tokens("d")
    assert world.tokens("b") == []
    assert len(world.model.steps[-1].logit_rows) == 3
    world.drain()
    for name in "abd":
        world.check(name)


def test_a_prompt_under_way_gives_its_blocks_to_older_sequences():
    world = World(blocks=12, block_size=4, max_model_len=44, max_chunk_tokens=1)
    for name in ("a", "b"):
        world.submit(name, prompt(2, ord(name)), max_tokens=36)
    for _ in range(6):
        world.step()
    world.submit("c", prompt(20, 9), max_tokens=8)
    for _ in range(14):
        world.step()
    assert world.tokens("c") == []
    assert world.engine.stats().preemptions_total > 0
    world.drain()
    for name in "abc":
        world.check(name)
    world.check_idle()


def test_prompt_logprobs_are_those_of_one_chunk():
    whole, parts = World(logit_rows=64, max_num_batched_tokens=64), World(max_num_seqs=1, logit_rows=3)
    for world in (whole, parts):
        world.submit("a", prompt(20), max_tokens=1, prompt_logprobs=0)
        world.drain()
    assert whole.outs["a"][0].prompt_logprobs == parts.outs["a"][0].prompt_logprobs


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens is 4"),
        ({"logit_rows": 2}, "logit_rows is 2"),
        ({"policy": "best"}, "'best'"),
        ({"max_model_len": 1}, "max_model_len 1"),
        ({"max_chunk_tokens": 0}, "max_chunk_tokens is 0"),
    ],
)
def test_settings_that_cannot_work(wrong, word):
    with pytest.raises(ConfigError, match=word):
        EngineSettings(**{"max_model_len": 32, "max_num_seqs": 8, **wrong})
