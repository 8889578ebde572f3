"""``octavo bench sweep SUBCOMMAND``: one benchmark over every combination of some flags' values."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.bench import flags, plots, report
from octavo.bench.options import Asked, read_words
from octavo.errors import ConfigError

_SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "latency": (
        ("prefill_tokens_per_s", "prefill tok/s"),
        ("decode_tokens_per_s", "decode tok/s"),
        ("memory.fraction_of_limit", "of the limit"),
        ("avg_latency", "latency s"),
        ("breakdown.decode.median_ms.outside_plan", "outside ms"),
    ),
    "throughput": (
        ("requests_per_second", "req/s"),
        ("tokens_per_second", "total tok/s"),
        ("output_tokens_per_second", "output tok/s"),
    ),
    "serve": (
        ("request_throughput", "req/s"),
        ("output_throughput", "output tok/s"),
        ("median_ttft_ms", "TTFT p50 ms"),
        ("p99_ttft_ms", "TTFT p99 ms"),
        ("median_tpot_ms", "TPOT p50 ms"),
        ("p99_tpot_ms", "TPOT p99 ms"),
        ("request_goodput", "goodput req/s"),
    ),
}
"""Subcommand to the figures of its table: where they stand in its result, and their heads."""
_DRAWN = {
    "latency": "decode_tokens_per_s",
    "throughput": "output_tokens_per_second",
    "serve": "output_throughput",
}


@dataclass(frozen=True)
class Options:
    """The sweep's own flags."""

    benchmark: str
    """Which subcommand is repeated."""
    vary: tuple[str, ...] = ()
    plot: str | None = None
    plot_metric: str | None = None
    output_json: str | None = None


def run(asked: Asked) -> dict[str, Any]:
    """Run every combination, one after another, each with a fresh engine or server; all their figures."""
    options = Options(**asked.own)
    name = options.benchmark
    names, combinations = varied(options.vary)
    if options.plot:
        plots.check_name(options.plot)
    module = importlib.import_module(f"octavo.bench.{name}")
    runs = []
    for values in combinations:
        words = [word for pair in zip(names, values, strict=True) for word in (f"--{pair[0]}", pair[1])]
        one = read_words([*asked.server_words, *words], flags.OWN[name])
        runs.append({"varied": dict(zip(names, values, strict=True)), "result": module.run(one)})
        print(_progress(runs[-1], name), flush=True)
    result = {"date": report.stamp(), "benchmark": name, "varied": names, "runs": runs}
    if options.plot:
        plots.save(options.plot, drawn(result, options.plot_metric or _DRAWN[name]))
    return {**result, "machine": report.this_machine()}


def varied(words: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names of flags, and every combination of their values, from words like ``batch-size=1,2,4``."""
    values: dict[str, list[str]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        values[name.lstrip("-")] = [value for value in listed.split(",") if value]
        if not equals or not name or not values[name.lstrip("-")]:
            raise ConfigError(f"--vary: {word!r} is not like batch-size=1,2,4.")
    if not values:
        raise ConfigError(
            "octavo bench sweep needs something to vary.", hint="Such as --vary batch-size=1,2,4."
        )
    return list(values), list(itertools.product(*values.values()))


def figure(result: Mapping[str, Any], path: str) -> float | None:
    """The number at ``a.b.c`` of a result; None when it is not there."""
    value: Any = result
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _progress(one: Mapping[str, Any], name: str) -> str:
    asked = " ".join(f"{key}={value}" for key, value in one["varied"].items())
    path, head = _SHOWN[name][0]
    return f"{asked}: {report.number(figure(one['result'], path))} {head}"


def drawn(result: Mapping[str, Any], metric: str) -> plots.Drawing:
    """A chart: `metric` over the first varied flag, a curve for each combination of the others."""
    first, *others = result["varied"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in result["runs"]:
        value = figure(one["result"], metric)
        try:
            x = float(one["varied"][first])
        except ValueError:
            raise ConfigError(
                f"--plot: the values of {first} are no numbers.", hint="Vary a number first."
            ) from None
        if value is not None:
            name = " ".join(f"{key}={one['varied'][key]}" for key in others) or metric
            curves.setdefault(name, []).append((x, value))
    lines = [plots.Line(name, sorted(points)) for name, points in curves.items()]
    return plots.chart(f"octavo bench {result['benchmark']}", first, metric, lines)


def text(result: Mapping[str, Any]) -> str:
    """One row for each run."""
    shown = _SHOWN[result["benchmark"]]
    rows = [
        (*one["varied"].values(), *(report.number(figure(one["result"], path)) for path, _ in shown))
        for one in result["runs"]
    ]
    return "\n" + report.table((*result["varied"], *(head for _, head in shown)), rows)
