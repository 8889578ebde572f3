"""What is measured, under vLLM's names: histograms of finished sequences, gauges and counters of the engine.

Plain tables for whoever shows them (``/metrics``, `LLM.get_metrics`); and the values that a program reads,
with the names and fields of vLLM's reader. Seconds and tokens throughout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.types.stats import BLOCK_EDGES_S, STEP_TOKEN_EDGES, EngineStats, RequestTimes

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")

# Bucket edges as in vLLM, so that panels with fixed "le" values keep their meaning.
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_N = (1, 2, 5, 10, 20)

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time to first token.", _TTFT),
    "inter_token_latency_seconds": ("Time between two tokens of a sequence.", _PER_TOKEN),
    "request_time_per_output_token_seconds": ("Mean time per output token of a request.", _PER_TOKEN),
    "e2e_request_latency_seconds": ("Time from arrival to the last token.", _REQUEST),
    "request_queue_time_seconds": ("Time from arrival until it first left the queue.", _REQUEST),
    "request_inference_time_seconds": ("Time from leaving the queue to the last token.", _REQUEST),
    "request_prefill_time_seconds": ("Time from leaving the queue to the first token.", _REQUEST),
    "request_decode_time_seconds": ("Time from the first to the last token.", _REQUEST),
    "request_params_n": ("n of a request.", _N),
    "request_num_preemptions": ("How often a request was put back to wait.", _N),
}
_TOKEN_HISTOGRAMS = {
    "request_prompt_tokens": "Prompt tokens of a request.",
    "request_prefill_kv_computed_tokens": "Prompt tokens of a request that were computed, not from a cache.",
    "request_generation_tokens": "Generated tokens of a request.",
    "request_max_num_generation_tokens": "Longest answer of a request.",
    "request_params_max_tokens": "max_tokens of a request.",
}


def token_buckets(longest: int) -> tuple[float, ...]:
    """Edges 1, 2, 5, 10, ... up to `longest` tokens."""
    edges = [float(m * 10**e) for e in range(10) for m in (1, 2, 5) if m * 10**e <= max(longest, 1)]
    return tuple(edges)


def request_histograms(longest: int) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Name to meaning and bucket edges of every histogram of requests; `longest` is the context in tokens."""
    tokens = token_buckets(longest)
    return _HISTOGRAMS | {name: (text, tokens) for name, text in _TOKEN_HISTOGRAMS.items()}


def observed(times: RequestTimes) -> Iterator[tuple[str, float]]:
    """(histogram, value) of all that a finished sequence adds, but for the times between its tokens."""
    yield "request_prompt_tokens", times.prompt_tokens
    yield "request_generation_tokens", times.output_tokens
    yield "request_max_num_generation_tokens", times.output_tokens
    yield "request_params_n", times.n
    if times.max_tokens is not None:
        yield "request_params_max_tokens", times.max_tokens
    yield "request_num_preemptions", times.preemptions
    started_s = times.arrival_s if times.started_s is None else times.started_s
    yield "request_queue_time_seconds", started_s - times.arrival_s
    if times.first_token_s is None or times.last_token_s is None:
        return
    yield "request_prefill_kv_computed_tokens", times.prompt_tokens - times.cached_tokens
    yield "time_to_first_token_seconds", times.first_token_s - times.arrival_s
    yield "request_prefill_time_seconds", times.first_token_s - started_s
    yield "e2e_request_latency_seconds", times.last_token_s - times.arrival_s
    yield "request_inference_time_seconds", times.last_token_s - started_s
    decode_s = times.last_token_s - times.first_token_s
    yield "request_decode_time_seconds", decode_s
    if times.output_tokens > 1:
        yield "request_time_per_output_token_seconds", decode_s / (times.output_tokens - 1)


Row = tuple[str, str, tuple[str, ...], Sequence[tuple[tuple[str, ...], float]]]
"""(name, meaning, labels of its own, (their values, value) of each series)."""


def _plain(value: float) -> Sequence[tuple[tuple[str, ...], float]]:
    return (((), value),)


def gauges(stats: EngineStats) -> Iterator[Row]:
    """What goes up and down."""
    yield "num_requests_running", "Sequences in the running batch.", (), _plain(stats.running)
    yield "num_requests_waiting", "Sequences that wait.", (), _plain(stats.waiting)
    yield (
        *("num_requests_waiting_by_reason", "Sequences that wait."),
        *(("reason",), ((("capacity",), stats.waiting), (("deferred",), 0))),
    )
    yield "kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", (), _plain(stats.kv_used)
    asleep = (("awake", 1), ("weights_offloaded", 0), ("discard_all", 0))
    yield (
        *("engine_sleep_state", "1 for the state that the engine is in."),
        *(("sleep_state",), [((state,), value) for state, value in asleep]),
    )
    blocks = str(stats.blocks)
    yield (
        *("cache_config_info", "The KV cache, as labels."),
        ("block_size", "num_gpu_blocks", "num_cpu_blocks"),
        (((str(stats.block_size), blocks, blocks), 1),),
    )
    if stats.max_adapters:
        running, waiting = ",".join(stats.running_adapters), ",".join(stats.waiting_adapters)
        yield (
            *("lora_requests_info", "LoRA adapters at work, as labels; the time as Unix seconds."),
            ("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
            (((str(stats.max_adapters), waiting, running), time.time()),),
        )


def counters(stats: EngineStats) -> Iterator[Row]:
    """What only grows."""
    cached, computed = stats.prefix_hit_tokens_total, stats.prompt_tokens_total
    nowhere = ("external_kv_transfer",), 0
    yield "prompt_tokens", "Prompt tokens computed.", (), _plain(computed)
    yield (
        *("prompt_tokens_by_source", "Prompt tokens by where their KV entries came from."),
        *(("source",), ((("local_compute",), computed), (("local_cache_hit",), cached), nowhere)),
    )
    yield "prompt_tokens_cached", "Prompt tokens from the prefix cache.", (), _plain(cached)
    yield (
        *("prompt_tokens_cached_by_source", "Prompt tokens from a cache, by which."),
        *(("source",), ((("local_cache_hit",), cached), nowhere)),
    )
    yield "generation_tokens", "Tokens generated.", (), _plain(stats.generation_tokens_total)
    yield "num_preemptions", "Sequences put back to wait.", (), _plain(stats.preemptions_total)
    queried = stats.prefix_queried_tokens_total
    yield "prefix_cache_queries", "Tokens looked up in the prefix cache.", (), _plain(queried)
    yield "prefix_cache_hits", "Tokens found in the prefix cache.", (), _plain(cached)
    for name, text in _NEVER.items():
        yield name, text, (), _plain(0)


_BLOCKS = {
    "kv_block_lifetime_seconds": "Time from when a cached KV block was taken until it was lost.",
    "kv_block_idle_before_evict_seconds": "Time from the last use of such a block until it was lost.",
    "kv_block_reuse_gap_seconds": "Time between two uses of a KV block.",
}


def engine_histograms(
    stats: EngineStats,
) -> Iterator[tuple[str, str, tuple[float, ...], tuple[int, ...], float]]:
    """(name, meaning, bucket edges, how many values in each, their sum)."""
    sums, edges = float(stats.step_tokens_total), tuple(map(float, STEP_TOKEN_EDGES))
    yield "iteration_tokens_total", "Tokens that a step computed.", edges, stats.step_tokens, sums
    for (name, text), times in zip(_BLOCKS.items(), stats.block_times, strict=False):
        yield name, text, BLOCK_EDGES_S, times.counts, times.sum_s


_NEVER = {
    "external_prefix_cache_queries": "0: there is no cache outside of this process.",
    "external_prefix_cache_hits": "0: there is no cache outside of this process.",
    "mm_cache_queries": "0: there are no images or sounds.",
    "mm_cache_hits": "0: there are no images or sounds.",
}
"""vLLM's counters of what Octavo does not have, so that a panel shows 0 rather than nothing."""


@dataclass
class Metric:
    """One series; its name begins with ``vllm:``, as on ``/metrics`` but without ``_total``."""

    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    """It only grows."""

    value: int


@dataclass
class Vector(Metric):
    """Counters in a row; vLLM has one of drafts that were accepted by position."""

    values: list[int]


@dataclass
class Gauge(Metric):
    """It goes up and down."""

    value: float


@dataclass
class Histogram(Metric):
    """`buckets`: upper bound, as text, to how many values were at most that."""

    count: int
    sum: float
    buckets: dict[str, int]
