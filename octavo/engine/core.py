"""The engine: a scheduler, an executor and three lines between them. Synchronous: no threads, no locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from octavo.engine.admission import Admission
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Sequence
from octavo.engine.settings import EngineSettings
from octavo.engine.stats import Counters, RunningRequest
from octavo.engine.watch import StepWatch
from octavo.errors import StepFailed
from octavo.log import logger
from octavo.types.engine import EngineRequest, Finish, StepPlan, StepResult, TokenOut
from octavo.types.stats import EngineStats

log = logger(__name__)

_FAILURES_IN_A_ROW = 3
_STEP_FAILED = "The engine failed while it worked on this request; its log says why."
"""What a client reads: an exception's own words may hold paths and numbers that are for the log."""


class Executor(Protocol):
    """Runs steps. Raises StepFailed when a step went wrong and the next one may still go well."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step; the answers stand in the order of the plan's work."""


class CacheSize(Protocol):
    """What the engine needs to know of the KV cache (see runner.memory.CacheShape)."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...


class Engine:
    """Continues sequences until each has ended in exactly one finish.

    `submit` and `abort` come between steps; only `admission.enter` and `stats` may come from other threads.
    """

    def __init__(
        self,
        executor: Executor,
        cache: CacheSize,
        settings: EngineSettings,
        *,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
        release: Callable[[], None] | None = None,
    ) -> None:
        """`secret` keys the prefix cache (drawn when None); `clock` gives seconds; `release` gives back the
        memory of a KV cache that holds nothing.
        """
        self.settings = settings
        self.counters = Counters()
        self.admission = Admission(settings, cache.blocks * cache.block_size)
        self.scheduler = Scheduler(
            settings,
            cache.blocks,
            cache.block_size,
            self.admission,
            self.counters,
            secret=secret,
            clock=clock,
        )
        self._executor = executor
        self._clock = clock
        self._release = release
        self._undelivered: list[TokenOut] = []
        self._failures = 0
        self._watch = StepWatch()

    def submit(self, request: EngineRequest) -> None:
        """Queue a sequence. Raises QueueFull, PromptTooLong or BadRequest, and then nothing is queued."""
        self.admission.enter(request)
        self.enqueue(request)

    def enqueue(self, request: EngineRequest) -> None:
        """Queue a sequence that has already passed `admission.enter`."""
        try:
            self.scheduler.add(request)
        except Exception:
            self.admission.leave(request)
            raise

    def abort(self, ids: Iterable[str]) -> None:
        """End sequences; their last TokenOut comes with the next step. Unknown ids do nothing."""
        self._undelivered += self.scheduler.finish(ids, Finish("abort"))

    def abort_all(self) -> None:
        """End everything that waits or runs."""
        self.abort(self.scheduler.unfinished)

    def busy(self) -> bool:
        """True while `step` has something to do or to say."""
        return bool(self._undelivered) or self.scheduler.busy()

    def step(self) -> list[TokenOut]:
        """Plan, run, commit. Any exception (but StepFailed, up to three in a row) means: broken."""
        begun = time.perf_counter()
        plan = self.scheduler.plan()
        planned = time.perf_counter()
        tokens = sum(work.count for work in plan.work)
        self._watch.begin(tokens, self._clock())
        try:
            result = self._executor.run(plan)
        except StepFailed as error:
            return self._take_undelivered() + self._recover(plan, error)
        finally:
            self._watch.end(self._clock())
        ran = time.perf_counter()
        prompt_tokens = self.counters.prompt_tokens
        outs = self.scheduler.commit(plan, result)
        done = time.perf_counter()
        self._failures = 0
        self.counters.step(planned - begun, result, done - ran, tokens)
        self.admission.note(self.counters.prompt_tokens - prompt_tokens, done - begun)
        return self._take_undelivered() + outs if self._undelivered else outs

    def _recover(self, plan: StepPlan, error: StepFailed) -> list[TokenOut]:
        """A failed step costs its newcomers, or everyone in it; several in a row cost the engine."""
        self._failures += 1
        if self._failures > _FAILURES_IN_A_ROW:
            raise error
        log.error("A step failed: %s", error, exc_info=error.__cause__)
        return self.scheduler.retry(plan, _STEP_FAILED)

    def _take_undelivered(self) -> list[TokenOut]:
        outs, self._undelivered = self._undelivered, []
        return outs

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts; running sequences keep their blocks."""
        self.scheduler.pool.forget()

    def rest(self) -> None:
        """Forget cached prompts and, unless something runs, give the KV cache's memory back."""
        self.reset_prefix_cache()
        if self._release is not None and not self.busy():
            self._release()

    @property
    def stalled(self) -> bool:
        """Whether the step under way takes far too long; may be read from any thread."""
        return self._watch.stalled(self._clock())

    def stats(self) -> EngineStats:
        """A snapshot; may be called from any thread."""
        scheduler = self.scheduler
        running, waiting = tuple(scheduler.running), tuple(scheduler.waiting)
        return self.counters.snapshot(
            running=len(running),
            waiting=len(waiting),
            max_adapters=self.settings.max_adapters,
            running_adapters=_adapters(running),
            waiting_adapters=_adapters(waiting),
            blocks=scheduler.pool.blocks,
            blocks_free=scheduler.pool.free,
            block_size=scheduler.block_size,
            block_times=scheduler.pool.watch.times() if scheduler.pool.watch is not None else (),
        )

    def running(self) -> list[RunningRequest]:
        """The running sequences, for the log; may be called from any thread."""
        now = self._clock()
        return [_describe(sequence, now) for sequence in tuple(self.scheduler.running)]


def _adapters(sequences: Iterable[Sequence]) -> tuple[str, ...]:
    """The names of the adapters that these ask for, each once."""
    adapters = (sequence.request.adapter for sequence in sequences)
    return tuple(dict.fromkeys(adapter.name for adapter in adapters if adapter is not None))


def _describe(sequence: Sequence, now: float) -> RunningRequest:
    first_s, tokens = sequence.first_token_s, sequence.output_tokens
    speed = (tokens - 1) / (now - first_s) if first_s is not None and tokens > 1 and now > first_s else 0.0
    return RunningRequest(sequence.request.id, now - sequence.arrival_s, tokens, speed)
