"""Steps stay about as long as was asked for, whatever the machine's speed."""

from __future__ import annotations

import pytest
from engine_fakes import World

from octavo.engine.pace import Pace
from octavo.types.engine import Sampled, StepResult


def test_no_target_no_bound():
    assert Pace(None).tokens(3) is None


def test_a_careful_start_then_the_measured_speed():
    pace = Pace(0.5)
    assert pace.tokens(1) == 256
    pace.note(256, 2.56)
    assert pace.tokens(1) == 48
    assert pace.tokens(0) == 192
    pace.note(200, 2.0 / 3)
    assert pace.tokens(1) == 96


def test_never_nothing_and_small_steps_do_not_count():
    pace = Pace(0.5)
    pace.note(64, 64.0)
    assert pace.tokens(1) == 16
    pace.note(8, 1e-6)
    pace.note(64, 0.0)
    assert pace.tokens(1) == 16


@pytest.mark.parametrize("speed", [40.0, 1000.0])
def test_prompt_parts_follow_the_machine(speed):
    """A machine of `speed` tokens/s: steps with decodes take about the target once that is known."""
    world = World(
        blocks=2000, max_model_len=4000, max_num_batched_tokens=2048, max_num_seqs=4, step_target_s=0.4
    )
    world.submit("short", [1, 2, 3], max_tokens=1000)
    world.submit("long", [n % 50 for n in range(3000)], max_tokens=2)
    took = []
    for _ in range(12):
        plan = world.engine.scheduler.plan()
        count = sum(work.count for work in plan.work)
        took.append(count / speed)
        answers = tuple(Sampled(work.key, (5,) if work.sample else ()) for work in plan.work)
        world.engine.scheduler.commit(plan, StepResult(answers, forward_s=count / speed))
    assert took[0] <= 256 / speed
    assert max(took[4:]) <= max(0.4, 17 / speed) + 1 / speed
    assert took[5] > 0.15
