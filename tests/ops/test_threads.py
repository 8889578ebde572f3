"""The pool and the number of threads of a step: answers, sleep, and what a busy neighbour does to it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from op_cases import LIMITS, OpModel, step

from octavo import _native
from octavo.build.bind import bind
from octavo.ops.contract import Precision
from octavo.ops.native import NativeRunnable


class Machine:
    """Steps of `work` seconds over cores, of which a neighbour may take one every other time slice."""

    def __init__(self, cores: int, work: float = 0.02) -> None:
        self.team = _native.Team(cores)
        self.cores = cores
        self.work = work
        self.busy = 0
        self.slept = 0.0

    def run(self, seconds: float, tokens: Callable[[int], int] = lambda _: 1) -> float:
        """Decode for that long; mean seconds a step."""
        spent, steps = 0.0, 0
        while spent < seconds:
            threads = self.team.threads(tokens(steps))
            crowded = threads > self.cores - self.busy
            # A thread beside a neighbour has its core half the time at most, and the others wait for it.
            taken = self.work / threads * (2.4 if crowded else 1)
            self.team.stepped(taken, taken / 2 if crowded else 0.0)
            spent += taken
            steps += 1
        return spent / steps


def test_alone_every_thread_works() -> None:
    machine = Machine(2)
    assert machine.run(10) == pytest.approx(0.01, rel=0.01)
    assert machine.team.usual == 2


@pytest.mark.parametrize(("cores", "busy"), [(2, 1), (4, 1), (8, 3), (16, 1)])
def test_beside_neighbours_nobody_shares_a_core(cores: int, busy: int) -> None:
    machine = Machine(cores, 0.01 * cores)
    machine.busy = busy
    machine.run(2)
    assert machine.team.usual <= cores - busy
    best = machine.work / (cores - busy)
    assert machine.run(30) < 1.05 * best


def test_a_neighbour_that_leaves_is_noticed_within_seconds() -> None:
    machine = Machine(4)
    machine.busy = 2
    machine.run(60)
    machine.busy = 0
    machine.run(20)
    assert machine.team.usual == 4


def test_more_threads_stay_when_fewer_are_no_faster() -> None:
    """Steps that lose time for another reason, as on a machine whose hypervisor takes some."""
    team, fewer = _native.Team(2), 0
    for _ in range(1000):
        threads = team.threads(1)
        fewer += threads == 1
        team.stepped(0.02 if threads == 2 else 0.03, 0.004)
    assert team.usual == 2
    assert fewer < 80


def test_steps_of_different_sizes_are_not_compared() -> None:
    """A step of one token is no proof that one thread is faster than two were with thirty-two."""
    team = _native.Team(2)
    for at in range(400):
        tokens = 32 if at % 2 else 1
        team.threads(tokens)
        team.stepped(0.05 if tokens == 32 else 0.005, 0.01 if tokens == 32 else 0.001)
    assert team.usual == 2


def runnable(threads: int | tuple[int, int]) -> NativeRunnable:
    """Two matrices large enough to be cut into tasks, in a model without attention."""
    model = OpModel(3)
    x = model.input("x", model.noise(LIMITS.tokens, 200))
    up = model.param("up", model.noise(1500, 200), kind="matrix")
    down = model.param("down", model.noise(1100, 1500), kind="matrix")
    model.call = lambda op: op.linear(op.linear(x(op), up), down)
    tensors = [(param, model.tensors[param.name]) for _, param in model.named_params()]
    bound = bind(model, tensors, Precision(), LIMITS, "native", threads=threads)  # type: ignore[arg-type]
    assert isinstance(bound, NativeRunnable)
    return bound


DECODE, PROMPT = step([(0, 3, 1), (1, 9, 1)]), step([(0, 0, 30)])


def test_any_number_of_the_pools_threads_gives_the_same_numbers() -> None:
    expected = [np.array(runnable(1).forward(batch)) for batch in (DECODE, PROMPT)]
    bound = runnable(4)
    for _ in range(20):
        for decode, prefill in ((1, 4), (4, 1), (3, 2), (2, 3)):
            bound.plan.set_threads(decode, prefill)
            for batch, right in zip((DECODE, PROMPT), expected, strict=True):
                assert np.array_equal(bound.forward(batch), right)


def test_decode_and_prefill_threads_make_the_pool() -> None:
    bound = runnable((1, 3))
    assert (bound.pool.size, bound.plan.decode_threads) == (3, 1)
    assert runnable((4, 2)).plan.decode_threads == 4


def test_threads_beyond_the_pools_are_refused() -> None:
    bound = runnable(2)
    for pair in ((3, 1), (1, 3), (0, 1), (1, 0)):
        with pytest.raises(ValueError, match="threads"):
            bound.plan.set_threads(*pair)


def test_a_pool_without_work_sleeps() -> None:
    bound = runnable(4)
    bound.forward(PROMPT)
    time.sleep(0.02)
    begun = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - begun < 0.01


def test_several_pools_end_while_others_work() -> None:
    """Workers that sleep, spin or wake late join; nothing of the last op is touched after it."""
    expected = np.array(runnable(1).forward(DECODE))
    for at in range(20):
        bound = runnable(1 + at % 4)
        assert np.array_equal(bound.forward(DECODE), expected)
        del bound
