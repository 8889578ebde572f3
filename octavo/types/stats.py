"""Snapshots for the log line, the metrics and the benchmark."""

from __future__ import annotations

import msgspec

STEP_TOKEN_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds, in tokens, of the classes of EngineStats.step_tokens; one more class is for all above."""


BLOCK_EDGES_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1200.0, 1800.0),
)
"""The same of BlockTimes, in seconds."""


class BlockTimes(msgspec.Struct, frozen=True):
    """A histogram: how many in each class, and all seconds together."""

    counts: tuple[int, ...] = (0,) * (len(BLOCK_EDGES_S) + 1)
    sum_s: float = 0.0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at one moment. `*_total` only grow; seconds are summed over all steps since the start."""

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    blocks_free: int = 0
    block_size: int = 16
    max_adapters: int = 0
    """Different LoRA adapters that one step may have; 0 without --enable-lora."""
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    """Names, each once."""
    block_times: tuple[BlockTimes, ...] = ()
    """How long KV blocks lived, lay idle before they were lost, and waited between two uses; empty when
    nobody measures.
    """
    steps_total: int = 0
    step_tokens_total: int = 0
    """Tokens that all steps computed, prompts and answers."""
    step_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKEN_EDGES) + 1)
    """How many steps computed at most that many tokens and more than the edge before."""
    prompt_tokens_total: int = 0
    """Prompt tokens computed (not those from the prefix cache)."""
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_queried_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    schedule_s: float = 0.0
    arrays_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    commit_s: float = 0.0
    output_s: float = 0.0

    @property
    def kv_used(self) -> float:
        """Share of KV blocks in use, 0..1."""
        return 1.0 - self.blocks_free / self.blocks if self.blocks else 0.0


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One finished sequence, for latency histograms; all times from time.monotonic(), in seconds."""

    arrival_s: float
    first_token_s: float | None
    last_token_s: float | None
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    n: int = 1
    max_tokens: int | None = None
    started_s: float | None = None
    """When it first left the queue."""
    cached_tokens: int = 0
    """Of the prompt, from the prefix cache."""
    preemptions: int = 0
