"""Spans, as a collector on the loopback interface receives them; and collectors that are not well."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo.server.app import build_app
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.server.tracing import NoTracer, OtlpTracer, RequestSpan, make_tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.paths: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    data = gzip.decompress(data)
                for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                collector.paths.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk")
    made = Collector()
    yield made
    made.close()


def run(client: Any, url: str, **kwargs: Any) -> Any:
    """One chat through a server that traces to `url`, with every span sent."""
    app = build_app(client.fake, ServerSettings(otlp_traces_endpoint=url))
    client.app = lambda: app
    body = {"messages": [{"role": "user", "content": "canary"}], **kwargs.pop("fields", {})}
    response = client.post("/v1/chat/completions", body, **kwargs)
    state: State = app.state.octavo
    state.close()
    return response


def values(span: Any) -> dict[str, Any]:
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value"))
        for item in span.attributes
    }  # fmt: skip


def test_a_span_for_a_request(client: Any, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    fields = {"max_tokens": 7, "temperature": 0.25, "stream": True}
    before = time.time()
    assert run(client, collector.url, headers=headers, fields=fields).status_code == 200
    (span,) = collector.spans
    assert collector.paths == ["/v1/traces"]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("llm_request", TRACE, PARENT)
    assert span.kind == span.SPAN_KIND_SERVER
    assert before - 1 < span.start_time_unix_nano / 1e9 <= span.end_time_unix_nano / 1e9 < time.time() + 1
    seen = values(span)
    assert seen["gen_ai.response.model"] == "pocket"
    assert seen["gen_ai.request.max_tokens"] == seen["gen_ai.usage.completion_tokens"] == 7
    assert seen["gen_ai.usage.prompt_tokens"] == len("<user>canary")
    assert (seen["gen_ai.request.temperature"], seen["gen_ai.request.n"]) == (0.25, 1)
    assert 0 <= seen["gen_ai.latency.time_to_first_token"] <= seen["gen_ai.latency.e2e"] < 5
    assert "canary" not in str(span)


def test_refusals_have_a_span_and_a_bad_parent_has_no_effect(client: Any, collector: Collector) -> None:
    client.fake.ready = True
    client.fake.refusal = ConfigError("no")
    assert run(client, collector.url, headers={"traceparent": "00-zz-1"}).status_code >= 400
    (span,) = collector.spans
    assert len(span.trace_id) == 16
    assert span.parent_span_id == b""
    assert span.status.code == span.status.STATUS_CODE_ERROR


def test_a_collector_that_is_gone_costs_requests_nothing(client: Any) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = time.monotonic()
    assert run(client, f"http://127.0.0.1:{port}/v1/traces").status_code == 200
    assert time.monotonic() - before < 10


def test_times_that_never_came_are_left_out() -> None:
    span = RequestSpan(id="a", model="m", caller={}, arrived_s=1.0, started_s=3.0)
    assert span.attributes()["gen_ai.latency.time_in_queue"] == 2.0
    assert "gen_ai.latency.e2e" not in span.attributes()


def test_a_span_that_cannot_be_made_is_dropped() -> None:
    pytest.importorskip("opentelemetry.sdk")

    class Exporter:
        def export(self, spans: object) -> None:
            raise RuntimeError

        def shutdown(self) -> None:
            raise RuntimeError

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    tracer = OtlpTracer(Exporter())
    tracer.record(RequestSpan(id="a", model="m", caller=None, arrived_s=1.0))  # type: ignore[arg-type]


def test_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_tracer(None), NoTracer)
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no URL"):
        make_tracer("ftp://x")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"octavo\[otlp\]"):
        make_tracer("http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match="HTTP port"):
        make_tracer("127.0.0.1:4317")
