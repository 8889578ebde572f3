"""The engine's thread: prompt refusals, exactly one finish for everyone, clean ends."""

from __future__ import annotations

import threading
import time

import pytest
from engine_fakes import World, alone, make

from octavo.engine.client import ThreadClient
from octavo.errors import BadRequest, PromptTooLong, QueueFull, Unavailable

WAIT_S = 20.0


class Gate:
    """Lets steps through one by one, or freely; can make the next one fail."""

    def __init__(self, executor) -> None:
        self.executor = executor
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Event()
        self.error: BaseException | None = None
        self.steps = 0

    def run(self, plan):
        self.steps += 1
        self.inside.set()
        assert self.open.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return self.executor.run(plan)


class Inbox:
    """What the callbacks got."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.outs = []
        self.failures = []

    def on_outputs(self, outs) -> None:
        with self.changed:
            self.outs += outs
            self.changed.notify_all()

    def on_failure(self, error) -> None:
        with self.changed:
            self.failures.append(error)
            self.changed.notify_all()

    def finishes(self, name: str) -> list:
        return [out.finish for out in self.outs if out.id == name and out.finish is not None]

    def tokens(self, name: str) -> list[int]:
        return [token for out in self.outs if out.id == name for token in out.tokens]

    def wait(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S)


class Rig:
    def __init__(self, **settings) -> None:
        settings.setdefault("max_model_len", 4000)
        world = World(blocks=2000, **settings)
        self.gate = Gate(world.executor)
        world.engine._executor = self.gate
        self.world, self.engine = world, world.engine
        self.inbox = Inbox()
        self.client = ThreadClient(world.engine)
        self.client.start(self.inbox.on_outputs, self.inbox.on_failure)

    def submit_held(self, name: str = "a", **kw) -> None:
        """Submit while the gate is shut and wait until the step is under way."""
        self.gate.open.clear()
        self.gate.inside.clear()
        self.client.submit(make(name, [1, 2, 3], **kw))
        assert self.gate.inside.wait(WAIT_S)


@pytest.fixture
def rig():
    rigs: list[Rig] = []

    def start(**settings) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield start
    for each in rigs:
        each.gate.open.set()
        each.client.stop(0.0)
        assert not each.client._thread.is_alive()


def test_tokens_arrive(rig):
    one = rig()
    requests = [make(f"r{i}", [i, 2, 3], max_tokens=9, seed=i) for i in range(6)]
    for request in requests:
        one.client.submit(request)
    one.inbox.wait(lambda: all(one.inbox.finishes(r.id) for r in requests))
    for request in requests:
        assert one.inbox.tokens(request.id) == alone(request, 9)
        assert len(one.inbox.finishes(request.id)) == 1
    assert one.client.stats().generation_tokens_total == 54
    assert one.client.stats().output_s > 0
    one.world.check_idle()


def test_idle_means_asleep(rig):
    one = rig()
    one.client.submit(make("a", [1, 2], max_tokens=2))
    one.inbox.wait(lambda: one.inbox.finishes("a"))
    steps, cpu = one.gate.steps, time.process_time()
    time.sleep(0.15)
    assert one.gate.steps == steps
    assert time.process_time() - cpu < 0.05


def test_refusals_come_at_once_even_during_a_long_step(rig):
    one = rig(max_queued_requests=2, max_model_len=32)
    one.submit_held(max_tokens=2)
    begun = time.perf_counter()
    one.client.submit(make("b", [1], max_tokens=1))
    one.client.submit(make("c", [1], max_tokens=1))
    with pytest.raises(QueueFull) as full:
        one.client.submit(make("d", [1]))
    assert full.value.retry_after_s >= 1
    with pytest.raises(PromptTooLong):
        one.client.submit(make("e", [1] * 32))
    with pytest.raises(BadRequest, match="'b'"):
        one.client.submit(make("b", [1]))
    assert time.perf_counter() - begun < 5
    one.gate.open.set()
    one.inbox.wait(lambda: all(one.inbox.finishes(name) for name in "abc"))
    one.client.submit(make("d", [1], max_tokens=1))
    one.inbox.wait(lambda: one.inbox.finishes("d"))


def test_abort_from_another_thread(rig):
    one = rig()
    one.submit_held(max_tokens=3000)
    one.client.submit(make("queued", [4], max_tokens=3000))
    one.client.abort(["a", "queued", "nobody"])
    one.gate.open.set()
    one.inbox.wait(lambda: one.inbox.finishes("a") and one.inbox.finishes("queued"))
    assert [f.reason for f in one.inbox.finishes("a")] == ["abort"]
    assert [f.reason for f in one.inbox.finishes("queued")] == ["abort"]
    one.client.submit(make("a", [1, 2, 3], max_tokens=2))
    one.inbox.wait(lambda: len(one.inbox.finishes("a")) == 2)


def test_a_crash_ends_everyone_with_an_error(rig):
    one = rig()
    one.submit_held(max_tokens=3000)
    one.client.submit(make("queued", [4]))
    one.gate.error = SystemError("lost")
    one.gate.open.set()
    one.inbox.wait(lambda: one.inbox.failures)
    for name in ("a", "queued"):
        (finish,) = one.inbox.finishes(name)
        assert finish.reason == "error"
        assert finish.error == "The engine has failed; its log says why."
    assert str(one.inbox.failures[0]) == "lost"
    assert not one.client.alive
    with pytest.raises(Unavailable):
        one.client.submit(make("late", [1]))


def test_stop_drains(rig):
    one = rig()
    one.submit_held(max_tokens=30)
    stopper = threading.Thread(target=one.client.stop, args=(WAIT_S,))
    stopper.start()
    while one.client._stop_at is None:
        time.sleep(0.001)
    with pytest.raises(Unavailable):
        one.client.submit(make("late", [1]))
    one.gate.open.set()
    stopper.join(WAIT_S)
    assert not stopper.is_alive()
    assert [f.reason for f in one.inbox.finishes("a")] == ["length"]
    assert len(one.inbox.tokens("a")) == 30
    assert not one.client.alive


def test_stop_aborts_what_does_not_end_in_time(rig):
    one = rig()
    one.client.submit(make("a", [1], max_tokens=3900))
    one.inbox.wait(lambda: one.inbox.tokens("a"))
    one.client.stop(0.02)
    assert [f.reason for f in one.inbox.finishes("a")] == ["abort"]
    one.world.check_idle()
    assert one.inbox.failures == []


def test_stop_does_not_hang_on_a_step_that_does_not_end(rig, monkeypatch):
    monkeypatch.setattr("octavo.engine.client._STUCK_S", 0.05)
    one = rig()
    one.submit_held()
    one.client.stop(0.0)
    (finish,) = one.inbox.finishes("a")
    assert finish.reason == "error"
    assert not one.client.alive
    one.gate.open.set()
    one.client._thread.join(WAIT_S)
    assert len(one.inbox.finishes("a")) == 1


def test_stop_before_start_and_twice():
    world = World()
    client = ThreadClient(world.engine)
    assert not client.alive
    with pytest.raises(Unavailable):
        client.submit(make("a", [1]))
    client.stop()
    client.stop()


def test_a_request_that_cannot_be_queued_fails_alone(rig, monkeypatch):
    one = rig()

    def refuse(request):
        raise ValueError("odd")

    one.submit_held(max_tokens=5)
    monkeypatch.setattr(one.engine, "enqueue", refuse)
    one.client.submit(make("odd", [1]))
    one.gate.open.set()
    one.inbox.wait(lambda: one.inbox.finishes("a") and one.inbox.finishes("odd"))
    assert one.inbox.finishes("odd")[0].reason == "error"
    assert one.inbox.finishes("a")[0].reason == "length"
    assert one.client.alive


def test_rest_waits_for_the_step_and_gives_memory_back_only_when_idle(rig):
    one = rig()
    released = threading.Event()
    one.engine._release = released.set
    one.submit_held("a", max_tokens=20)
    one.client.rest()
    one.client.reset_prefix_cache()
    one.gate.open.set()
    one.inbox.wait(lambda: one.inbox.finishes("a"))
    assert not released.is_set(), "something was running"
    one.client.rest()
    assert released.wait(WAIT_S)
    assert one.world.pool.cached == 0
    request = make("b", [1, 2, 3], max_tokens=5)
    one.client.submit(request)
    one.inbox.wait(lambda: one.inbox.finishes("b"))
    assert one.inbox.tokens("b") == alone(request, 5)
