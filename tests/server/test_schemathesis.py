"""Requests drawn from the server's own OpenAPI document: no 500, no hang, and nothing stays at work."""

from __future__ import annotations

from typing import Any

import pytest
from fake_service import FakeService
from hypothesis import HealthCheck, Phase, given, settings

from octavo.server.app import build_app
from octavo.server.settings import ServerSettings


def test_drawn_requests() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    fake = FakeService("ab")
    app = build_app(fake, ServerSettings(max_stored_responses=20, allowed_hosts=("*",)))
    operations = [
        found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
    ]
    assert len(operations) > 20
    for operation in operations:
        draw(operation)
        assert fake.live == set(), operation.label


def draw(operation: Any) -> None:
    """A few requests to one route."""

    @settings(
        max_examples=5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        response = case.call(timeout=10)
        assert response.status_code < 500, (operation.label, response.text)

    send()
