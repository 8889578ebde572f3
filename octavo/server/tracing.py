"""OpenTelemetry: one span for each request, with vLLM's attribute names (``--otlp-traces-endpoint``).

Spans are put into a bounded queue and sent by a thread of the library's own; a collector that is slow or gone
costs spans, never requests. The library is imported only where an endpoint is given (extra ``otlp``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from octavo.errors import ConfigError
from octavo.log import logger

log = logger(__name__)

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C Trace Context: what a client says of the trace that its request belongs to."""

caller: ContextVar[Mapping[str, str]] = ContextVar("octavo_caller", default=MappingProxyType({}))
"""TRACE_HEADERS of the HTTP request that this task works on."""

_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GRPC_PORT = 4317
_CLOSE_S = 2.0
"""What is not sent by then is lost."""


class RequestSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is over; times from time.monotonic(), in seconds."""

    id: str
    model: str
    caller: Mapping[str, str]
    arrived_s: float
    started_s: float | None = None
    """When its first sequence left the queue."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    error: str | None = None
    """Why it ended early."""

    def attributes(self) -> dict[str, str | int | float]:
        """vLLM's names; those of times that never came are left out."""
        found: dict[str, str | int | float | None] = {
            "gen_ai.request.id": self.id,
            "gen_ai.response.model": self.model,
            "gen_ai.request.n": self.n,
            "gen_ai.request.max_tokens": self.max_tokens,
            "gen_ai.request.temperature": self.temperature,
            "gen_ai.request.top_p": self.top_p,
            "gen_ai.usage.prompt_tokens": self.prompt_tokens,
            "gen_ai.usage.completion_tokens": self.completion_tokens,
            "gen_ai.latency.time_in_queue": _between(self.arrived_s, self.started_s),
            "gen_ai.latency.time_to_first_token": _between(self.arrived_s, self.first_token_s),
            "gen_ai.latency.time_in_model_prefill": _between(self.started_s, self.first_token_s),
            "gen_ai.latency.time_in_model_decode": _between(self.first_token_s, self.last_token_s),
            "gen_ai.latency.time_in_model_inference": _between(self.started_s, self.last_token_s),
            "gen_ai.latency.e2e": _between(self.arrived_s, self.last_token_s),
        }
        return {name: value for name, value in found.items() if value is not None}


def _between(begun_s: float | None, ended_s: float | None) -> float | None:
    return None if begun_s is None or ended_s is None else ended_s - begun_s


class Tracer(Protocol):
    """Where requests that are over are reported."""

    def record(self, span: RequestSpan) -> None:
        """Take one; never blocks, never raises."""

    def close(self) -> None:
        """Send what is left, for at most some seconds."""


class NoTracer:
    """Without an endpoint."""

    def record(self, span: RequestSpan) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def make_tracer(endpoint: str | None) -> Tracer:
    """Where `endpoint` (an OTLP collector's URL) says; without one, a tracer that does nothing.

    Raises ConfigError for what is no URL, and when the library is missing.
    """
    if not endpoint:
        return NoTracer()
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--otlp-traces-endpoint {endpoint} is no URL of a collector.",
            hint="Write http://localhost:4318/v1/traces (HTTP) or http://localhost:4317 (gRPC).",
        )
    return OtlpTracer(_exporter(parts.geturl()))


def _exporter(endpoint: str) -> Any:
    """The library's exporter: by the environment's protocol, else gRPC on its usual port, HTTP elsewhere."""
    parts = urlsplit(endpoint)
    named = next((os.environ[name] for name in _PROTOCOL if os.environ.get(name)), None)
    grpc = named == "grpc" if named else parts.port == _GRPC_PORT
    try:
        if grpc:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            return Grpc(endpoint=endpoint, insecure=parts.scheme == "http")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
    except ImportError as error:
        how = "opentelemetry-exporter-otlp-proto-grpc" if grpc else "'octavo[otlp]'"
        raise ConfigError(
            f"--otlp-traces-endpoint needs OpenTelemetry, which is not there: {error}.",
            hint=f"pip install {how}" + (", or name the collector's HTTP port (4318)." if grpc else ""),
        ) from None
    return Http(endpoint=endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces")


class OtlpTracer:
    """Sends spans through an exporter of the OpenTelemetry SDK."""

    def __init__(self, exporter: Any) -> None:
        """`exporter`: a SpanExporter."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or "octavo"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, span: RequestSpan) -> None:
        """Queue one span."""
        try:
            self._record(span)
        except Exception:  # watching a request must not harm it
            log.debug("A span could not be recorded.", exc_info=True)

    def _record(self, span: RequestSpan) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        clock_s = time.time() - time.monotonic()
        end_s = span.last_token_s or time.monotonic()
        made = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(dict(span.caller)),
            kind=SpanKind.SERVER,
            start_time=int((clock_s + span.arrived_s) * 1e9),
            attributes=span.attributes(),
        )
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(int((clock_s + end_s) * 1e9))

    def close(self) -> None:
        """Send what is queued; a collector that does not answer is given up."""
        ending = threading.Thread(target=self._provider.shutdown, name="octavo-traces", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)
