"""The figures of a serving run, with the names that vLLM's result files have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.bench.client import Answer
from octavo.bench.stats import deviation, mean, median, percentile
from octavo.errors import ConfigError

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_WIDTH = 50


@dataclass(frozen=True)
class Shown:
    """Which figures are wanted."""

    metrics: tuple[str, ...] = tuple(METRICS)
    percentiles: tuple[float, ...] = (99.0,)
    goodput: Mapping[str, float] | None = None
    """Metric to bound in ms."""


def read_shown(metrics: str, percentiles: str, goodput: Sequence[str]) -> Shown:
    """From the flags' words. ConfigError names what is not known."""
    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"--percentile-metrics: there is no {name!r}.", hint=f"There are: {', '.join(METRICS)}."
            )
    try:
        shares = tuple(float(word) for word in percentiles.split(",") if word.strip())
    except ValueError:
        raise ConfigError(f"--metric-percentiles: {percentiles!r} is not like 50,90,99.") from None
    if any(not 0 <= share <= 100 for share in shares):
        raise ConfigError(f"--metric-percentiles: {percentiles!r}; percentiles are 0 to 100.")
    return Shown(names, shares, _bounds(goodput) if goodput else None)


def _bounds(words: Sequence[str]) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            bounds[name] = float(value)
        except ValueError:
            raise ConfigError(f"--goodput: {word!r} is not like ttft:500 (milliseconds).") from None
        if name not in ("ttft", "tpot", "e2el"):
            raise ConfigError(f"--goodput: {name!r} has no bound.", hint="There are: ttft, tpot, e2el.")
    return bounds


def figures(answers: Sequence[Answer], seconds: float, shown: Shown) -> dict[str, Any]:
    """Everything that vLLM's result file says of a run of `seconds`; times in ms where the name ends so."""
    good = [answer for answer in answers if answer.ok]
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    output_tokens = sum(answer.output_tokens for answer in good)
    values = times_ms(good)
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(good) / seconds,
        "request_goodput": _goodput(good, shown.goodput, seconds) if shown.goodput else None,
        "output_throughput": output_tokens / seconds,
        "total_token_throughput": (prompt_tokens + output_tokens) / seconds,
        "max_output_tokens_per_s": _peak_tokens(good),
        "max_concurrent_requests": _peak_requests(good),
        "percentile_metrics": list(shown.metrics),
        "metric_percentiles": list(shown.percentiles),
    }
    for name in METRICS:
        result[f"mean_{name}_ms"] = mean(values[name])
        result[f"median_{name}_ms"] = median(values[name])
        result[f"std_{name}_ms"] = deviation(values[name])
        for share in shown.percentiles:
            result[f"p{share:g}_{name}_ms"] = percentile(values[name], share)
    return result


def times_ms(good: Sequence[Answer]) -> dict[str, list[float]]:
    """Every time of the run by metric, in ms."""
    return {
        "ttft": [1e3 * answer.ttft_s for answer in good],
        "tpot": [1e3 * tpot for answer in good if (tpot := answer.tpot_s) is not None],
        "itl": [1e3 * gap for answer in good for gap in answer.itl_s],
        "e2el": [1e3 * answer.latency_s for answer in good],
    }


def _goodput(good: Sequence[Answer], bounds: Mapping[str, float], seconds: float) -> float:
    """Requests per second that met every bound (DistServe, Zhong et al. 2024)."""
    met = 0
    for answer in good:
        found = {"ttft": answer.ttft_s, "tpot": answer.tpot_s or 0.0, "e2el": answer.latency_s}
        met += all(1e3 * found[name] <= bound for name, bound in bounds.items())
    return met / seconds


def _peak_tokens(good: Sequence[Answer]) -> float:
    """Most tokens that arrived in one second; an answer's tokens are spread evenly over its pieces."""
    counts: dict[int, float] = {}
    for answer in good:
        now = answer.started_s + answer.ttft_s
        for gap in [0.0, *answer.itl_s]:
            now += gap
            tokens = answer.output_tokens / (1 + len(answer.itl_s))
            counts[math.floor(now)] = counts.get(math.floor(now), 0.0) + tokens
    return max(counts.values(), default=0.0)


def _peak_requests(good: Sequence[Answer]) -> int:
    """Most requests under way at one moment."""
    changes = [(answer.started_s, 1) for answer in good]
    changes += [(answer.started_s + answer.latency_s, -1) for answer in good]
    peak = current = 0
    for _, change in sorted(changes):
        current += change
        peak = max(peak, current)
    return peak


def text(result: Mapping[str, Any]) -> str:
    """vLLM's table."""
    lines = [" Serving Benchmark Result ".center(_WIDTH, "=")]
    lines += [
        _line("Successful requests:", result["completed"]),
        _line("Failed requests:", result["failed"]),
    ]
    if result.get("max_concurrency") is not None:
        lines.append(_line("Maximum request concurrency:", result["max_concurrency"]))
    if result.get("request_rate") not in (None, "inf"):
        lines.append(_line("Request rate configured (RPS):", float(result["request_rate"])))
    lines += [
        _line("Benchmark duration (s):", result["duration"]),
        _line("Total input tokens:", result["total_input_tokens"]),
        _line("Total generated tokens:", result["total_output_tokens"]),
        _line("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result["request_goodput"] is not None:
        lines.append(_line("Request goodput (req/s):", result["request_goodput"]))
    lines += [
        _line("Output token throughput (tok/s):", result["output_throughput"]),
        _line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", result["max_concurrent_requests"]),
        _line("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    for name in result["percentile_metrics"]:
        short = name.upper()
        lines.append(METRICS[name].center(_WIDTH, "-"))
        lines.append(_line(f"Mean {short} (ms):", result[f"mean_{name}_ms"]))
        lines.append(_line(f"Median {short} (ms):", result[f"median_{name}_ms"]))
        lines += [
            _line(f"P{p:g} {short} (ms):", result[f"p{p:g}_{name}_ms"]) for p in result["metric_percentiles"]
        ]
    return "\n".join([*lines, "=" * _WIDTH])


def _line(name: str, value: float) -> str:
    shown = str(value) if isinstance(value, int) else f"{value:.2f}"
    return f"{name:<40}{shown:<10}".rstrip()
