"""Counters of the engine, snapshots of them, and the line that the log gets every ten seconds."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from octavo.types.engine import StepResult
from octavo.types.stats import STEP_TOKEN_EDGES, EngineStats


class Counters:
    """What only grows. Written by the engine's thread, read by any."""

    __slots__ = (
        "arrays_s",
        "commit_s",
        "forward_s",
        "generation_tokens",
        "output_s",
        "preemptions",
        "prefix_hit_tokens",
        "prefix_queried_tokens",
        "prompt_tokens",
        "sample_s",
        "schedule_s",
        "step_tokens",
        "steps",
        "tokens",
    )

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.step_tokens = [0] * (len(STEP_TOKEN_EDGES) + 1)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.prefix_queried_tokens = 0
        self.prefix_hit_tokens = 0
        self.schedule_s = 0.0
        self.arrays_s = 0.0
        self.forward_s = 0.0
        self.sample_s = 0.0
        self.commit_s = 0.0
        self.output_s = 0.0

    def step(self, schedule_s: float, result: StepResult, commit_s: float, tokens: int) -> None:
        """Add one step's times, and how many tokens it computed."""
        self.steps += 1
        self.tokens += tokens
        self.step_tokens[bisect_left(STEP_TOKEN_EDGES, tokens)] += 1
        self.schedule_s += schedule_s
        self.arrays_s += result.arrays_s
        self.forward_s += result.forward_s
        self.sample_s += result.sample_s
        self.commit_s += commit_s

    def snapshot(self, **gauges: Any) -> EngineStats:
        """The counters and `gauges`, fields of EngineStats, as one frozen value."""
        return EngineStats(
            **gauges,
            steps_total=self.steps,
            step_tokens_total=self.tokens,
            step_tokens=tuple(self.step_tokens),
            prompt_tokens_total=self.prompt_tokens,
            generation_tokens_total=self.generation_tokens,
            preemptions_total=self.preemptions,
            prefix_queried_tokens_total=self.prefix_queried_tokens,
            prefix_hit_tokens_total=self.prefix_hit_tokens,
            schedule_s=self.schedule_s,
            arrays_s=self.arrays_s,
            forward_s=self.forward_s,
            sample_s=self.sample_s,
            commit_s=self.commit_s,
            output_s=self.output_s,
        )


class RunningRequest(msgspec.Struct, frozen=True):
    """One running sequence, for the log."""

    id: str
    age_s: float
    """Since arrival."""
    output_tokens: int
    tokens_per_s: float
    """Output tokens after the first, over the time since the first; 0 before there are two."""

    def text(self) -> str:
        """`chat-abc 93 s, 812 tokens, 8.7 tokens/s`"""
        return f"{self.id} {self.age_s:.0f} s, {self.output_tokens} tokens, {self.tokens_per_s:.1f} tokens/s"


class StatsLine:
    """The periodic log line: at most one each `interval_s`, and none while nothing happens."""

    def __init__(
        self, interval_s: float = 10.0, *, longest: int = 3, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`longest`: how many of the running requests older than the interval are named."""
        self._interval_s = interval_s
        self._longest = longest
        self._clock = clock
        self._last_s = clock()
        self._last = EngineStats()

    def line(self, stats: EngineStats, running: Sequence[RunningRequest] = ()) -> str | None:
        """The line, or None when it is not due or the engine was idle."""
        now = self._clock()
        passed_s = now - self._last_s
        if passed_s < self._interval_s:
            return None
        prompt = stats.prompt_tokens_total - self._last.prompt_tokens_total
        generated = stats.generation_tokens_total - self._last.generation_tokens_total
        preemptions = stats.preemptions_total - self._last.preemptions_total
        self._last_s, self._last = now, stats
        if not (stats.running or stats.waiting or prompt or generated):
            return None
        queried = stats.prefix_queried_tokens_total
        hits = 100.0 * stats.prefix_hit_tokens_total / queried if queried else 0.0
        text = (
            f"Avg prompt throughput: {prompt / passed_s:.1f} tokens/s, "
            f"Avg generation throughput: {generated / passed_s:.1f} tokens/s, "
            f"Running: {stats.running} reqs, Waiting: {stats.waiting} reqs, "
            + (f"Preemptions: {preemptions}, " if preemptions else "")
            + f"KV cache usage: {100.0 * stats.kv_used:.1f}%, Prefix cache hit rate: {hits:.1f}%"
        )
        old = sorted((r for r in running if r.age_s >= self._interval_s), key=lambda r: -r.age_s)
        named = "; ".join(request.text() for request in old[: self._longest])
        return f"{text}, longest: {named}" if named else text
