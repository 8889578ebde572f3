"""A step that does not come back is noticed; a slow machine is not mistaken for a stuck one."""

from __future__ import annotations

import pytest

from octavo.engine.watch import StepWatch


@pytest.mark.parametrize(
    ("tokens", "seconds", "healthy_s", "stuck_s"),
    [(1, 0.01, 9.9, 10.1), (1, 4.0, 19.9, 20.1), (256, 4.0, 5119, 5121)],
)
def test_patience_follows_the_longest_step(
    tokens: int, seconds: float, healthy_s: float, stuck_s: float
) -> None:
    watch = StepWatch()
    watch.begin(1, 100.0)
    watch.end(100.0 + seconds)
    assert not watch.stalled(1e9), "nothing is under way"
    watch.begin(tokens, 200.0)
    assert not watch.stalled(200.0 + healthy_s)
    assert watch.stalled(200.0 + stuck_s)
    watch.end(200.0 + stuck_s)
    assert not watch.stalled(1e9)


def test_the_first_step_may_take_minutes() -> None:
    watch = StepWatch()
    watch.begin(256, 0.0)
    assert not watch.stalled(299.0)
    assert watch.stalled(301.0)
