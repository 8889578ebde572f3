"""The log line: rates between two calls, silence when idle, long requests by name."""

from __future__ import annotations

import pytest

from octavo.engine.stats import RunningRequest, StatsLine
from octavo.types.stats import EngineStats


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def line(clock):
    return StatsLine(10.0, clock=lambda: clock[0])


def stats(**kw) -> EngineStats:
    return EngineStats(**{"blocks": 100, "blocks_free": 75, **kw})


def test_the_whole_line(line, clock):
    clock[0] += 10
    text = line.line(
        stats(
            running=2,
            waiting=1,
            prompt_tokens_total=1000,
            generation_tokens_total=55,
            prefix_queried_tokens_total=400,
            prefix_hit_tokens_total=100,
        ),
        [RunningRequest("chat-abc", 93.4, 812, 8.71), RunningRequest("young", 2.0, 3, 1.0)],
    )
    assert text == (
        "Avg prompt throughput: 100.0 tokens/s, Avg generation throughput: 5.5 tokens/s, "
        "Running: 2 reqs, Waiting: 1 reqs, KV cache usage: 25.0%, Prefix cache hit rate: 25.0%, "
        "longest: chat-abc 93 s, 812 tokens, 8.7 tokens/s"
    )


def test_rates_are_of_the_last_interval(line, clock):
    clock[0] += 10
    line.line(stats(generation_tokens_total=1000))
    clock[0] += 20
    assert "generation throughput: 2.0 tokens/s" in line.line(
        stats(generation_tokens_total=1040, preemptions_total=3)
    )


def test_not_before_it_is_due(line, clock):
    clock[0] += 9.9
    assert line.line(stats(running=1)) is None
    clock[0] += 0.1
    assert line.line(stats(running=1)) is not None


def test_silent_when_idle_but_not_about_the_last_tokens(line, clock):
    clock[0] += 10
    assert line.line(stats()) is None
    clock[0] += 10
    assert line.line(stats(generation_tokens_total=5)) is not None
    clock[0] += 10
    assert line.line(stats(generation_tokens_total=5)) is None


def test_the_oldest_come_first_and_preemptions_show(line, clock):
    clock[0] += 10
    running = [RunningRequest(f"r{age}", float(age), 10, 1.0) for age in (12, 50, 30, 40)]
    text = line.line(stats(running=4, preemptions_total=2), running)
    assert "Preemptions: 2" in text
    assert [part.split()[0] for part in text.split("longest: ")[1].split("; ")] == ["r50", "r40", "r30"]
