"""The engine's loop: failures of steps and of sequences, statistics, the cost of a step."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import numpy as np
import pytest
from engine_fakes import World, make

from octavo.engine.admission import Admission
from octavo.engine.core import Engine
from octavo.engine.settings import EngineSettings
from octavo.errors import QueueFull, StepFailed
from octavo.ops.contract import Limits
from octavo.parallel.inline import InlineExecutor
from octavo.runner.memory import CacheShape
from octavo.runner.runner import Runner


def test_nan_ends_only_the_sequence_it_belongs_to():
    world = World()
    world.model.nan_for = {7}
    world.submit("bad", [7, 1, 2])
    world.submit("good", [8, 1, 2])
    world.drain()
    assert world.finish("bad").reason == "error"
    assert "NaN" in world.finish("bad").error
    assert world.finish("good").reason == "length"
    world.check("good")
    world.check_idle()


def fail_steps(world: World, count: int) -> None:
    """Make the model's next `count` steps raise."""
    forward, left = world.model.forward, [count]

    def broken(batch):
        if left[0]:
            left[0] -= 1
            raise MemoryError("no room")
        return forward(batch)

    world.model.forward = broken


def test_a_failed_step_costs_its_newcomer_and_the_others_go_on():
    world = World()
    world.submit("old", [1, 2, 3, 4, 5], max_tokens=12, seed=3)
    for _ in range(3):
        world.step()
    world.submit("new", [9, 9])
    fail_steps(world, 1)
    world.step()
    assert world.finish("new").reason == "error"
    assert "no room" not in world.finish("new").error, "an exception's words are for the log"
    world.drain()
    assert len(world.tokens("old")) == 12
    world.check("old")
    world.check_idle()


def test_a_failed_step_without_newcomers_ends_everyone_in_it():
    world = World()
    for name in ("a", "b"):
        world.submit(name, [1, 2, 3], max_tokens=12)
    world.step()
    world.step()
    fail_steps(world, 1)
    world.step()
    assert world.finish("a").reason == world.finish("b").reason == "error"
    world.submit("c", [1, 2, 3])
    world.drain()
    world.check("c")
    world.check_idle()


def test_survivors_of_a_failed_step_are_computed_from_the_start():
    """The runner may have failed before or after it took over their new blocks: nothing of it is trusted."""
    for late in range(8):
        world = World(block_size=4)
        world.submit("old", [1, 2, 3], max_tokens=20)
        for _ in range(late + 1):
            world.step()
        add = world.sampler.add

        def refuse(row, spec, prompt, output, grammar, add=add):
            if prompt == (9, 9):
                raise ValueError("odd")
            add(row, spec, prompt, output, grammar)

        world.sampler.add = refuse
        world.submit("new", [9, 9])
        world.drain()
        assert world.finish("new").reason == "error"
        assert world.finish("old").reason == "length"
        world.check("old")
        world.check_idle()


def test_failures_with_good_steps_between_are_survived():
    world = World()
    for index in range(6):
        fail_steps(world, 1)
        world.submit(f"bad{index}", [1, 2])
        world.step()
        assert world.finish(f"bad{index}").reason == "error"
        world.submit(f"good{index}", [1, 2])
        world.drain()
        world.check(f"good{index}")


def test_steps_that_keep_failing_are_the_engines_end():
    world = World(max_num_seqs=1, max_num_batched_tokens=4)
    fail_steps(world, 100)
    for index in range(6):
        world.submit(f"r{index}", [index, 1])
    for _ in range(3):
        world.step()
    with pytest.raises(StepFailed, match="no room"):
        world.step()


def test_counters_and_gauges():
    world = World(blocks=10, block_size=4)
    world.submit("a", list(range(10)), max_tokens=5)
    world.step()
    stats = world.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks, stats.blocks_free) == (1, 0, 10, 7)
    assert stats.kv_used == pytest.approx(0.3)
    (running,) = world.engine.running()
    assert (running.id, running.output_tokens, running.tokens_per_s) == ("a", 1, 0.0)
    world.step()
    (running,) = world.engine.running()
    assert running.text() == "a 2 s, 2 tokens, 0.5 tokens/s"
    world.drain()
    stats = world.engine.stats()
    assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (10, 5)
    assert stats.steps_total == sum(stats.step_tokens) == 5
    assert stats.step_tokens[:3] == (4, 0, 1), "four steps of one token, one of ten"
    assert stats.step_tokens_total == 14
    assert min(stats.schedule_s, stats.arrays_s, stats.forward_s, stats.sample_s, stats.commit_s) > 0


def test_recomputed_and_cached_prompt_tokens_are_not_counted_again():
    world = World(blocks=14, block_size=4, max_model_len=48)
    for index in range(5):
        world.submit(f"r{index}", [index, 1, 2, 3, 4, 5, 6], max_tokens=30)
    world.drain()
    stats = world.engine.stats()
    assert stats.preemptions_total > 0
    assert sum(outs[-1].preemptions for outs in world.outs.values()) == stats.preemptions_total
    assert stats.prompt_tokens_total == 35
    world.submit("again", [0, 1, 2, 3, 4, 5, 6], max_tokens=1)
    world.drain()
    hit = world.outs["again"][0].cached_tokens
    assert hit in (0, 4)
    assert world.engine.stats().prompt_tokens_total == 35 + 7 - hit


def test_a_sequence_knows_when_it_left_the_queue():
    world = World(blocks=4, block_size=4, max_num_seqs=1)
    world.submit("a", [1, 2, 3], max_tokens=4)
    world.submit("b", [4, 5, 6], max_tokens=2)
    world.drain()
    first, second = world.outs["a"], world.outs["b"]
    assert len({out.started_s for out in first}) == 1
    assert second[0].started_s > first[0].started_s


def bounds(**kw) -> Admission:
    return Admission(EngineSettings(max_model_len=100, **kw), 1000)


def test_queue_bound_by_requests():
    queue = bounds(max_queued_requests=2)
    for name in "ab":
        queue.enter(make(name, [1]))
    with pytest.raises(QueueFull, match="2 requests with 2 prompt tokens"):
        queue.enter(make("c", [1]))
    queue.leave(make("a", [1]))
    queue.enter(make("c", [1]))


def test_queue_bound_by_tokens_lets_one_large_prompt_in():
    queue = bounds(max_queued_tokens=20)
    large = make("large", [1] * 50)
    queue.enter(large)
    with pytest.raises(QueueFull):
        queue.enter(make("b", [1]))
    queue.leave(large)
    queue.enter(make("b", [1] * 20))
    with pytest.raises(QueueFull):
        queue.enter(make("c", [1]))


def test_retry_after_follows_the_prompt_rate():
    queue = bounds(max_queued_requests=10)
    for index in range(10):
        queue.enter(make(f"r{index}", [1] * 80))
    with pytest.raises(QueueFull) as unknown:
        queue.enter(make("x", [1]))
    assert unknown.value.retry_after_s == 1.0
    queue.note(20, 1.0)
    with pytest.raises(QueueFull) as known:
        queue.enter(make("x", [1]))
    assert known.value.retry_after_s == 20.0


def test_waiting_queue_of_the_engine_is_bounded():
    world = World(max_num_seqs=1, max_queued_requests=3)
    for index in range(3):
        world.submit(f"r{index}", [1, 2])
    with pytest.raises(QueueFull):
        world.submit("late", [1, 2])
    world.step()
    world.submit("late", [1, 2])
    world.drain()
    world.check_idle()


class FastModel:
    """Costs nothing: the same logits for every row."""

    def __init__(self, vocab: int) -> None:
        self.logits = np.zeros((64, vocab), np.float32)

    def allocate_cache(self, blocks: int) -> None: ...

    def forward(self, batch):
        return self.logits[: len(batch.logit_rows)]


class FastSampler:
    """Costs nothing: always token 1."""

    choice = SimpleNamespace(token=1, logprobs=None, error=None, complete=False)

    def add(self, row, spec, prompt, output, grammar=None): ...

    def remove(self, row): ...

    def sample(self, logits, rows):
        return [self.choice] * len(rows)


def step_cost_s(sequences: int, steps: int) -> float:
    """Median seconds of one step of `sequences` decodes around a model that costs nothing."""
    settings = EngineSettings(max_model_len=4096, max_num_seqs=64)
    limits = Limits(tokens=2048, sequences=64, logit_rows=256, max_model_len=4096)
    runner = Runner(FastModel(1000), limits, 1000, FastSampler())
    engine = Engine(InlineExecutor(runner), CacheShape(20_000, 16, 1, 4096), settings)
    for index in range(sequences):
        engine.submit(make(f"r{index}", [index] * 500, max_tokens=3000))
    while len(engine.step()) < sequences:
        pass
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        assert len(engine.step()) == sequences
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def test_a_step_of_32_decodes_is_cheap():
    """Scheduling, arrays and commit together: 0.2 ms when quiet; the bound leaves room for a busy machine."""
    assert step_cost_s(32, 300) < 1e-3
