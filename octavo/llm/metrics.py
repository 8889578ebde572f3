"""`LLM.get_metrics`: what ``/metrics`` shows of a server, of a model in this process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from octavo.types.metrics import (
    FINISH_REASONS,
    Counter,
    Gauge,
    Histogram,
    Metric,
    Row,
    counters,
    engine_histograms,
    gauges,
    observed,
    request_histograms,
)
from octavo.types.stats import EngineStats, RequestTimes

_PREFIX = "vllm:"


class Recorded:
    """The sequences that have ended so far."""

    def __init__(self, longest: int) -> None:
        """`longest`: the context in tokens."""
        self._tables = {name: _Seen(edges) for name, (_, edges) in request_histograms(longest).items()}
        self._finished = dict.fromkeys(FINISH_REASONS, 0)

    def on_tokens(self, index: int, n: int, now: float) -> None:
        """Times between tokens are not kept."""

    def on_finish(self, times: RequestTimes) -> None:
        """Count one more."""
        reason = times.finish_reason if times.finish_reason in self._finished else "error"
        self._finished[reason] += 1
        for name, value in observed(times):
            self._tables[name].add(value)

    def metrics(self, stats: EngineStats, model: str) -> list[Metric]:
        """All series, those of the engine first."""
        labels = {"model_name": model, "engine": "0"}
        made: list[Metric] = [Gauge(*series) for series in _series(gauges(stats), labels)]
        made += [Counter(name, own, int(value)) for name, own, value in _series(counters(stats), labels)]
        made += [
            Counter(_PREFIX + "request_success", {**labels, "finished_reason": reason}, count)
            for reason, count in self._finished.items()
        ]
        tables = {
            name: _Seen(edges, list(counts), total)
            for name, _, edges, counts, total in engine_histograms(stats)
        } | self._tables
        return made + [seen.histogram(_PREFIX + name, labels) for name, seen in tables.items()]


class _Seen:
    """A histogram that grows."""

    def __init__(self, edges: Iterable[float], counts: list[int] | None = None, total: float = 0.0) -> None:
        self._edges = list(edges)
        self._counts = counts or [0] * (len(self._edges) + 1)
        self._sum = float(total)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def histogram(self, name: str, labels: dict[str, str]) -> Histogram:
        names = [*(str(float(edge)) for edge in self._edges), "+Inf"]
        up_to = list(accumulate(self._counts))
        return Histogram(name, dict(labels), up_to[-1], self._sum, dict(zip(names, up_to, strict=True)))


def _series(rows: Iterable[Row], labels: dict[str, str]) -> Iterator[tuple[str, dict[str, str], float]]:
    for name, _, own, series in rows:
        for values, number in series:
            yield _PREFIX + name, {**labels, **dict(zip(own, values, strict=True))}, float(number)
