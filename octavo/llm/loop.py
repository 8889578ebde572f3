"""The engine driven from the caller's own thread: submit, step, and give each run its events."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from octavo.errors import QueueFull, Unavailable
from octavo.types.engine import EngineRequest, TokenOut
from octavo.types.job import Event
from octavo.types.stats import RequestTimes

if TYPE_CHECKING:
    from octavo.engine.core import Engine
    from octavo.pipeline.client import Recorder
    from octavo.pipeline.prepare import Prepared

_WINDOW = 512
"""Sequences of one run in the engine at a time; the rest waits here, not in its bounded queue."""


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while the engine's state is between two consistent points; raise it afterwards.

    Only in the main thread and only when nobody has a handler of their own.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    hits: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: hits.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hits:
        raise KeyboardInterrupt


class Loop:
    """Shares one engine between runs, also when their iterators are read in turns or from several threads."""

    def __init__(self, engine: Engine, recorder: Recorder | None = None) -> None:
        """`recorder` hears of every sequence that has ended."""
        self._engine = engine
        self._recorder = recorder
        self._queues: dict[str, deque[TokenOut]] = {}
        self._lock = threading.RLock()
        self.asleep = False
        """Nothing is run."""

    def run(self, prepared: Sequence[Prepared]) -> Generator[tuple[int, Event]]:
        """Yield (number of the job, event) until every sequence of every job has ended.

        Whatever ends the generator early (an exception, Ctrl-C, closing it) aborts what still runs. Raises
        what `submit` and `step` raise, and Unavailable when the engine is asleep or stops with work left.
        """
        self.check_awake()
        run = self.begin()
        for number, one in enumerate(prepared):
            run.add(number, one)
        try:
            while run.going:
                yield from run.turn()
        finally:
            run.close()

    def begin(self) -> Run:
        """A run without jobs."""
        return Run(self)

    def check_awake(self) -> None:
        """Raises Unavailable when the engine is asleep."""
        if self.asleep:
            raise Unavailable("This LLM is asleep.", hint="Call wake_up() first.")

    def enter(self, request: EngineRequest, outs: deque[TokenOut]) -> bool:
        """Give the engine a sequence, whose news go to `outs`; False: its queue is full for now."""
        try:
            self._engine.submit(request)
        except QueueFull:
            if not self._engine.busy():
                raise
            return False
        self._queues[request.id] = outs
        return True

    def step(self, live: int) -> None:
        """One step, for whoever waits; `live` sequences do here."""
        with self.held():
            if not self._engine.busy():
                raise Unavailable(f"The engine stopped with {live} sequences unfinished.")
            for out in self._engine.step():
                queue = self._queues.get(out.id)
                if queue is not None:
                    queue.append(out)

    def forget(self, ids: Sequence[str], *, abort: bool) -> None:
        """News of these sequences go nowhere from now on."""
        with self._lock:
            for one in ids:
                self._queues.pop(one, None)
            if abort:
                self._engine.abort(ids)

    def ended(self, live: Live, reason: str) -> None:
        """Report a sequence."""
        if self._recorder is not None:
            self._recorder.on_finish(live.times(reason))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The engine is this thread's, and Ctrl-C waits."""
        with self._lock, deferred_interrupt():
            yield


class Live:
    """One sequence that runs: whose it is, the way back to text, and its times."""

    def __init__(self, number: int, one: Prepared, index: int) -> None:
        self.number = number
        self.n = one.n
        self.request = one.requests[index]
        self.text = one.texts[index]
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.out: TokenOut | None = None

    def push(self, out: TokenOut) -> Event | None:
        """What the engine's news mean."""
        self.out = out
        if out.tokens:
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
        return self.text.push(out)

    def times(self, reason: str) -> RequestTimes:
        """For the metrics."""
        out = self.out
        return RequestTimes(
            arrival_s=self.request.arrival_s,
            first_token_s=self.first_s,
            last_token_s=self.last_s,
            prompt_tokens=len(self.request.prompt),
            output_tokens=self.text.count,
            finish_reason=reason,
            n=self.n,
            max_tokens=self.request.sampling.max_tokens,
            started_s=out.started_s if out else None,
            cached_tokens=out.cached_tokens if out else 0,
            preemptions=out.preemptions if out else 0,
        )


class Run:
    """Jobs that go through the engine together. Not for several threads."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Live] = deque()
        self._live: dict[str, Live] = {}
        self._outs: deque[TokenOut] = deque()

    @property
    def going(self) -> bool:
        """Whether a sequence has not ended."""
        return bool(self._waiting or self._live)

    def add(self, number: int, one: Prepared) -> None:
        """One more job, whose events bear `number`."""
        self._waiting.extend(Live(number, one, index) for index in range(len(one.requests)))

    def turn(self) -> Generator[tuple[int, Event]]:
        """Put in what fits, take a step unless there is news, and give the news."""
        self.submit()
        if not self._outs:
            self._loop.step(len(self._live))
        while self._outs:
            out = self._outs.popleft()
            if out.id in self._live:
                yield from self._event(out)

    def submit(self) -> None:
        """Put in what fits. Raises what the engine's `submit` raises."""
        with self._loop.held():
            while self._waiting and len(self._live) < _WINDOW:
                first = self._waiting[0]
                if not self._loop.enter(first.request, self._outs):
                    return
                self._waiting.popleft()
                self._live[first.request.id] = first

    def _event(self, out: TokenOut) -> Generator[tuple[int, Event]]:
        live = self._live[out.id]
        event = live.push(out)
        finish = out.finish if event is None else event.finish or out.finish
        if finish is not None:
            del self._live[out.id]
            self._loop.forget([out.id], abort=out.finish is None)
            self._loop.ended(live, finish.reason)
        if event is not None:
            yield live.number, event

    def drop(self, number: int) -> None:
        """Abort a job; none of its news come any more."""
        self._waiting = deque(one for one in self._waiting if one.number != number)
        gone = [name for name, one in self._live.items() if one.number == number]
        for name in gone:
            del self._live[name]
        self._loop.forget(gone, abort=True)

    def close(self) -> None:
        """Abort what still runs."""
        if self._live:
            with contextlib.suppress(Exception):
                self._loop.forget(list(self._live), abort=True)
