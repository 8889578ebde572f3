"""How fast a service believes its engine to be."""

from __future__ import annotations

import pytest

from octavo.pipeline.service import Speed


def test_speed_ignores_pauses() -> None:
    speed = Speed()
    assert speed.per_sequence is None
    for now in (0.0, 0.1, 0.2):
        speed.step(2, 2, now)
    assert speed.per_sequence == pytest.approx(10.0)
    speed.step(2, 2, 100.0)
    assert speed.per_sequence == pytest.approx(10.0)
