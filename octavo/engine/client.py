"""The engine in a thread of its own: it loops while there is work and sleeps while there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from octavo.engine.core import Engine
from octavo.engine.stats import RunningRequest
from octavo.errors import BadRequest, OctavoError, Unavailable
from octavo.log import logger
from octavo.types.engine import EngineRequest, Finish, TokenOut
from octavo.types.stats import EngineStats

log = logger(__name__)

OnOutputs = Callable[[list[TokenOut]], None]
OnFailure = Callable[[BaseException], None]

_STUCK_S = 10.0
"""How much longer than its drain a stopping client waits for the step under way."""


class ThreadClient:
    """Thread-safe access to an :class:`Engine`. Every accepted sequence gets exactly one finish.

    `submit` answers at once, whatever step is under way; `abort` acts before the next step. Both callbacks
    run in the engine's thread.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._wake = threading.Condition()
        self._inbox: list[EngineRequest] = []
        self._aborts: list[str] = []
        self._chores: list[Callable[[], None]] = []
        self._live: set[str] = set()
        self._stop_at: float | None = None
        self._failed = False
        self._thread: threading.Thread | None = None
        self._on_outputs: OnOutputs = _nowhere
        self._on_failure: OnFailure = _ignore

    def start(self, on_outputs: OnOutputs, on_failure: OnFailure) -> None:
        """Start the thread. `on_outputs` gets each step's news at once, `on_failure` the engine's end."""
        self._on_outputs = on_outputs
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._loop, name="octavo-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the loop runs and takes requests."""
        return self._thread is not None and self._thread.is_alive() and not self._failed

    @property
    def stalled(self) -> bool:
        """True while a step does not come back: the engine may recover, but nobody should wait for it."""
        return self._engine.stalled

    def submit(self, request: EngineRequest) -> None:
        """Hand over a sequence. Raises QueueFull, PromptTooLong, BadRequest or Unavailable; never waits."""
        with self._wake:
            if not self.alive or self._stop_at is not None:
                raise Unavailable("The engine takes no requests now.", hint="It is stopping or has failed.")
            if request.id in self._live:
                raise BadRequest(f"A request with the id {request.id!r} is running.", hint="Use another id.")
            self._engine.admission.enter(request)
            self._live.add(request.id)
            self._inbox.append(request)
            self._wake.notify()

    def abort(self, ids: Iterable[str]) -> None:
        """End sequences before the next step. Unknown ids do nothing."""
        with self._wake:
            self._aborts += (name for name in ids if name in self._live)
            self._wake.notify()

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts before the next step."""
        self._before_next_step(self._engine.reset_prefix_cache)

    def rest(self) -> None:
        """Forget cached prompts and give the KV cache's memory back, if nothing runs then."""
        self._before_next_step(self._engine.rest)

    def _before_next_step(self, chore: Callable[[], None]) -> None:
        with self._wake:
            self._chores.append(chore)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """A snapshot; never waits for a step."""
        return self._engine.stats()

    def running(self) -> list[RunningRequest]:
        """The running sequences, for the log; never waits for a step."""
        return self._engine.running()

    def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing new, finish what runs within `drain_s`, abort the rest, end the thread.

        Not to be called from a callback. Calling it again with less time shortens the drain.
        """
        with self._wake:
            end = self._clock() + drain_s
            self._stop_at = end if self._stop_at is None else min(self._stop_at, end)
            self._wake.notify()
        if self._thread is None:
            return
        self._thread.join(drain_s + _STUCK_S)
        if self._thread.is_alive():
            log.error("A step has not come back within %.0f s of the drain; leaving it.", _STUCK_S)
            self._give_up("The engine was stopped during a step that did not end.")

    # ---- the thread --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._ready():
                self._deliver(self._engine.step())
        except BaseException as error:
            log.exception("The engine has failed.")
            self._give_up("The engine has failed; its log says why.")
            self._on_failure(error)

    def _ready(self) -> bool:
        """Sleep until there is a step to make and take over what was submitted; False to end the loop."""
        with self._wake:
            while not (self._inbox or self._aborts or self._chores or self._engine.busy()):
                if self._stop_at is not None:
                    break
                self._wake.wait()
            inbox, self._inbox = self._inbox, []
            aborts, self._aborts = self._aborts, []
            chores, self._chores = self._chores, []
            stop_at = self._stop_at
        for request in inbox:
            self._enqueue(request)
        self._engine.abort(aborts)
        for chore in chores:
            chore()
        if stop_at is not None and self._clock() >= stop_at:
            self._engine.abort_all()
        return self._engine.busy() or (stop_at is None and not self._failed)

    def _enqueue(self, request: EngineRequest) -> None:
        """A request that cannot even be queued must not take the loop with it."""
        try:
            self._engine.enqueue(request)
        except Exception as error:
            log.exception("Request %s could not be queued.", request.id)
            reason = error.message if isinstance(error, OctavoError) else "The request could not be queued."
            self._deliver([TokenOut(id=request.id, finish=Finish("error", error=reason))])

    def _deliver(self, outs: list[TokenOut]) -> None:
        with self._wake:
            outs = [out for out in outs if out.id in self._live]
            self._live.difference_update(out.id for out in outs if out.finish is not None)
        if outs:
            begun = time.perf_counter()
            self._on_outputs(outs)
            self._engine.counters.output_s += time.perf_counter() - begun

    def _give_up(self, reason: str) -> None:
        """End everything that is unfinished with `error`; nothing is accepted afterwards."""
        with self._wake:
            self._failed = True
            names, self._live = sorted(self._live), set()
        outs = [TokenOut(id=name, finish=Finish("error", error=reason)) for name in names]
        if outs:
            try:
                self._on_outputs(outs)
            except Exception:
                log.exception("The last outputs could not be delivered.")


def _nowhere(outs: list[TokenOut]) -> None:
    """Outputs before `start`: there are none."""


def _ignore(error: BaseException) -> None:
    """Failures before `start`: there are none."""
