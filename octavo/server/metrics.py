"""Prometheus metrics under vLLM's names, so that dashboards made for it work.

Counters and gauges of the engine are read from its statistics when somebody scrapes; latencies come from the
service, which calls this object as its recorder. Seconds and tokens throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.types.metrics import (
    FINISH_REASONS,
    counters,
    engine_histograms,
    gauges,
    observed,
    request_histograms,
)
from octavo.types.stats import BlockTimes, EngineStats, RequestTimes

if TYPE_CHECKING:
    from octavo.server.hub import Hub
    from octavo.server.state import State

LABELS = ("model_name", "engine")
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_MODES = ("non_streaming", "streaming")
_OUTCOMES = ("no_tool_call", "tool_call")
_KIND_OF = {"/v1/chat/completions": "chat_completions", "/v1/responses": "responses"}
_KINDS = (*_KIND_OF.values(), "other")

_MOST_REMEMBERED = 4096
"""Sequences whose last token's time is kept; far more than run at once."""


class Metrics:
    """The server's private registry. Every method may be called from any thread."""

    def __init__(self, prefix: str = "vllm:") -> None:
        self._prefix = prefix
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._http = Counter(
            "http_requests", "Requests by status.", ("method", "status", "handler"), registry=self.registry
        )
        self._http_s = Histogram(
            "http_request_duration_seconds",
            "Time from a request's head to the last byte of its answer.",
            ("method", "handler"),
            buckets=_HTTP,
            registry=self.registry,
        )
        self._histograms: dict[str, Histogram] = {}
        self._finished: dict[str, Counter] = {}
        self._inter_token: Histogram | None = None
        self._rejected: Counter | None = None
        self._corrupted: Counter | None = None
        self._read: Counter | None = None
        self._model = ""
        self._engine: _EngineCollector | None = None
        self._last_s: dict[int, float] = {}
        """When a sequence last got a token; the least recently served is dropped first."""

    def watch(self, service: Hub, model_name: str) -> None:
        """Begin to report `service` under `model_name`; call once, before the first request."""
        labels = (model_name, "0")
        for name, (text, edges) in request_histograms(service.info.max_model_len).items():
            family = Histogram(self._prefix + name, text, LABELS, buckets=edges, registry=self.registry)
            self._histograms[name] = family.labels(*labels)
        self._inter_token = self._histograms["inter_token_latency_seconds"]
        finished = Counter(
            self._prefix + "request_success",
            "Finished sequences by reason.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._finished = {reason: finished.labels(*labels, reason) for reason in FINISH_REASONS}
        rejected = Counter(
            self._prefix + "admission_rejections",
            "Requests refused because the queue was full.",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self._rejected = rejected.labels(*labels, "queue_full")
        corrupted = Counter(
            self._prefix + "corrupted_requests",
            "Sequences whose logits were not finite.",
            LABELS,
            registry=self.registry,
        )
        self._corrupted = corrupted.labels(*labels)
        self._model = model_name
        self._read = Counter(
            self._prefix + "tool_call_parser_invocations",
            "Answers that were read for tool calls.",
            ("model_name", "mode", "outcome", "request_type"),
            registry=self.registry,
        )
        for mode, outcome, kind in product(_MODES, _OUTCOMES, _KINDS):
            self._read.labels(model_name, mode, outcome, kind)
        self._engine = _EngineCollector(service, self._prefix, labels)
        self.registry.register(self._engine)

    def forget(self) -> None:
        """Let go of the service, so that its memory can be freed."""
        if self._engine is not None:
            self.registry.unregister(self._engine)
            self._engine = None

    def on_tokens(self, index: int, n: int, now: float) -> None:
        """The service's report: sequence number `index` got `n` tokens at time.monotonic() `now`."""
        before = self._last_s.pop(index, None)
        self._last_s[index] = now
        if len(self._last_s) > _MOST_REMEMBERED:
            del self._last_s[next(iter(self._last_s))]
        if before is not None and self._inter_token is not None:
            self._inter_token.observe(now - before)

    def on_rejection(self) -> None:
        """A request was refused because the queue is full."""
        if self._rejected is not None:
            self._rejected.inc()

    def on_corrupted(self) -> None:
        """A sequence ended because its logits were not finite."""
        if self._corrupted is not None:
            self._corrupted.inc()

    def on_read(self, path: str, *, streaming: bool, called: bool) -> None:
        """An answer of a chat with tools has ended; `called`: it held a call."""
        if self._read is not None:
            kind = _KIND_OF.get(path, "other")
            self._read.labels(self._model, _MODES[streaming], _OUTCOMES[called], kind).inc()

    def on_http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """A request has been answered. `handler`: the path of its route."""
        self._http.labels(method, f"{status // 100}xx", handler).inc()
        self._http_s.labels(method, handler).observe(seconds)

    def on_finish(self, times: RequestTimes) -> None:
        """The service's report of a finished sequence."""
        seen = self._histograms
        if not seen:
            return
        self._finished.get(times.finish_reason, self._finished["error"]).inc()
        for name, value in observed(times):
            seen[name].observe(value)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class _EngineCollector:
    """Reads the engine's statistics once per scrape."""

    def __init__(self, service: Hub, prefix: str, labels: tuple[str, str]) -> None:
        self._service = service
        self._prefix = prefix
        self._labels = labels

    def describe(self) -> Iterable[Metric]:
        """Names only, so that registering does not ask the engine."""
        return self._families(EngineStats(max_adapters=1, block_times=(BlockTimes(),) * 3))

    def collect(self) -> Iterator[Metric]:
        """One family per statistic."""
        yield from self._families(self._service.stats())

    def _families(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, label, values in gauges(stats):
            gauge = GaugeMetricFamily(self._prefix + name, text, labels=(*LABELS, *label))
            for more, value in values:
                gauge.add_metric((*self._labels, *more), value)
            yield gauge
        for name, text, label, values in counters(stats):
            counter = CounterMetricFamily(self._prefix + name, text, labels=(*LABELS, *label))
            for more, value in values:
                counter.add_metric((*self._labels, *more), value)
            yield counter
        for name, text, edges, counts, total in engine_histograms(stats):
            histogram = HistogramMetricFamily(self._prefix + name, text, labels=LABELS)
            names = [*map(str, edges), "+Inf"]
            buckets = list(zip(names, accumulate(counts), strict=True))
            histogram.add_metric(self._labels, buckets=buckets, sum_value=total)
            yield histogram


def routes(state: State) -> list[Route]:
    """GET /metrics."""

    async def metrics(request: Request) -> Response:
        return Response(state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/metrics", metrics, methods=["GET"])]
