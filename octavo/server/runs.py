"""One HTTP request at work: its jobs submitted together, their events merged, all ended together."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType

import msgspec

from octavo.errors import BadRequest, OctavoError
from octavo.log import logger
from octavo.pipeline.beam import search
from octavo.server.errors import EngineFailed
from octavo.server.hub import JobEvents
from octavo.server.state import State
from octavo.server.tracing import RequestSpan, caller
from octavo.types.engine import NOT_FINITE, NOTHING_TO_DRAW, Finish
from octavo.types.grammar import TOO_MUCH
from octavo.types.job import CallPiece, Event, Job, Started
from octavo.types.sampling import SamplingParams

log = logger(__name__)

_MERGED_EVENTS = 64
"""Events held between the jobs of one request and a slow client."""


class Usage:
    """Token counts of one HTTP request, kept as events pass."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt = prompt_tokens
        self.completion = 0
        self.reasoning = 0
        """How many of `completion`."""
        self.cached = 0


class Clock:
    """When a request came, was taken, and gave its first and its last token; time.monotonic(), in seconds."""

    def __init__(self) -> None:
        self.arrived_s = self.taken_s = self.first_s = self.last_s = time.monotonic()
        self.started_s: float | None = None
        """When the first sequence left the queue."""
        self.begun = False
        """Whether there has been a token."""

    def taken(self) -> None:
        """Every job stands in the queue."""
        self.taken_s = self.first_s = self.last_s = time.monotonic()

    def token(self, event: Event) -> None:
        """An event with tokens, or the end, has come."""
        self.last_s = time.monotonic()
        if self.started_s is None:
            self.started_s = event.started_s
        if not self.begun:
            self.begun, self.first_s = True, self.last_s


class Run:
    """The jobs of one request: choice number ``job * n + sequence``.

    ``await Run.begin(state, jobs)`` submits every job (all or none; OctavoError when one is refused);
    ``close``, or leaving ``async with run``, aborts whatever has not finished.
    """

    def __init__(self, state: State, jobs: Sequence[Job], path: str, streaming: bool) -> None:
        self._path = path
        self._streaming = streaming
        self._calling: set[int] = set()
        """Choices that have called a tool."""
        self._state = state
        self._service = state.service
        self._jobs = [msgspec.structs.replace(job, id=f"{job.id}-{uuid.uuid4().hex[:8]}") for job in jobs]
        self._streams: list[JobEvents] = []
        self._open = {job.id for job in self._jobs}
        self._live = {(jobs[0].id, job.id) for job in self._jobs}
        state.live |= self._live
        self.n = jobs[0].sampling.n
        self.started: list[Started] = []
        self.usage = Usage(0)
        self.clock = Clock()
        self._caller = caller.get()
        self._model = jobs[0].adapter.name if jobs[0].adapter else state.names[0]
        self._over = False

    @classmethod
    async def begin(
        cls, state: State, jobs: Sequence[Job], path: str = "", *, streaming: bool = False
    ) -> Run:
        """A run whose jobs are all accepted. `path`: of the door, for the metrics. Raises OctavoError."""
        await state.going()
        run = cls(state, jobs, path, streaming)
        state.starting += 1
        try:
            await run._submit()
        except BaseException as error:
            await run.close(type(error).__name__)
            raise
        finally:
            state.starting -= 1
        return run

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return self.n * len(self._jobs)

    async def _submit(self) -> None:
        for job in self._jobs:
            self._log(job)
            stream = self._search(job) if job.sampling.use_beam_search else await self._service.submit(job)
            self._streams.append(stream)
            first = await anext(stream)
            if not isinstance(first, Started):
                raise RuntimeError("a job must begin with Started")
            self.started.append(first)
        self.usage = Usage(sum(len(s.prompt_ids) for s in self.started))
        self.clock.taken()

    def _search(self, job: Job) -> JobEvents:
        """Beam search: many small jobs that look like one."""
        service = self._service
        limits = {"max_model_len": service.info.max_model_len, "max_logprobs": service.info.max_logprobs}
        return search(service, job, service.preparer.ends, limits)

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(kind.__name__ if kind is not None else None)

    async def close(self, error: str | None = None) -> None:
        """Abort what still runs; safe to call twice. `error`: why it ends, for the trace."""
        open_ids, self._open = self._open, set()
        self._state.live -= self._live
        if not self._over:
            self._over = True
            self._state.tracer.record(self._span(error or ("abort" if open_ids else None)))
        for job_id in open_ids:
            self._service.abort(job_id)
        for stream in self._streams:
            with contextlib.suppress(Exception):
                await stream.aclose()

    def _span(self, error: str | None) -> RequestSpan:
        """What the trace keeps of the request."""
        job, clock = self._jobs[0], self.clock
        return RequestSpan(
            id=job.id,
            model=self._model,
            caller=self._caller,
            arrived_s=clock.arrived_s,
            started_s=clock.started_s,
            first_token_s=clock.first_s if clock.begun else None,
            last_token_s=clock.last_s if clock.begun else None,
            prompt_tokens=self.usage.prompt,
            completion_tokens=self.usage.completion,
            n=self.choices,
            max_tokens=job.sampling.max_tokens,
            temperature=job.sampling.temperature,
            top_p=job.sampling.top_p,
            error=error,
        )

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """(choice, event) until every choice has finished. Raises OctavoError when one ends in an error."""
        source = self._single() if len(self._streams) == 1 else self._merged()
        counted = self.usage
        seen: set[int] = set()
        finished = 0
        async for choice, event in source:
            counted.completion += len(event.tokens)
            counted.reasoning += event.reasoning_tokens
            self.clock.token(event)
            if event.index == 0 and choice not in seen:
                counted.cached += event.cached_tokens
                seen.add(choice)
            if event.calls:
                self._calling.add(choice)
            if event.finish is not None:
                finished += 1
                self._count(choice, event.finish)
                if event.finish.reason == "error":
                    raise _failed(event.finish.error)
            yield choice, event
        if finished != self.choices:
            raise EngineFailed("The engine stopped before this request was finished.")

    def _count(self, choice: int, finish: Finish) -> None:
        """What the metrics say of an answer that has ended."""
        metrics, chat = self._state.metrics, self._jobs[choice // self.n].chat
        if finish.error is not None and finish.error.startswith(NOT_FINITE):
            metrics.on_corrupted()
        if chat is not None and chat.tools and chat.parse:
            metrics.on_read(self._path, streaming=self._streaming, called=choice in self._calling)

    async def _single(self) -> AsyncGenerator[tuple[int, Event], None]:
        async for event in self._streams[0]:
            if isinstance(event, Event):
                yield event.index, event
        self._open.clear()

    async def _merged(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Several jobs' events in the order of their arrival."""
        queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue(_MERGED_EVENTS)
        pumps = [asyncio.ensure_future(self._pump(i, queue)) for i in range(len(self._streams))]
        try:
            left = len(pumps)
            while left:
                item = await queue.get()
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, i: int, queue: asyncio.Queue[tuple[int, Event] | BaseException | None]) -> None:
        try:
            async for event in self._streams[i]:
                if isinstance(event, Event):
                    await queue.put((i * self.n + event.index, event))
            self._open.discard(self._jobs[i].id)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    def _log(self, job: Job) -> None:
        """One line per job when that is wanted: never the text itself."""
        if self._state.settings.enable_log_requests:
            log.info("request %s: %s", job.id, _described(job.sampling))


def _described(sampling: SamplingParams) -> str:
    """The numbers that a client set, and the names of what may hold its words."""
    fields = msgspec.structs.fields(SamplingParams)
    given = {field.name: getattr(sampling, field.name) for field in fields}
    given = {field.name: given[field.name] for field in fields if given[field.name] != field.default}
    numbers = [f"{name}={value}" for name, value in given.items() if isinstance(value, (int, float))]
    others = [name for name, value in given.items() if value and not isinstance(value, (int, float))]
    return ", ".join([*numbers, *others]) or "defaults"


def _failed(said: str | None) -> OctavoError:
    """What ended a sequence: the engine's fault, but for what no sampler could obey."""
    if said == NOTHING_TO_DRAW:
        return BadRequest(said)
    if said is not None and said.startswith(TOO_MUCH):
        return BadRequest(said, hint="Ask for a simpler form.", param="structured_outputs")
    return EngineFailed(said or "The engine ended this request with an error.")


class Call:
    """A tool call, put together from its pieces."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = ""

    def add(self, piece: CallPiece) -> None:
        """Take in one piece."""
        self.id = self.id or piece.id
        self.name = self.name or piece.name
        self.arguments += piece.arguments


class Answer:
    """One choice collected to its end, for replies that are not streamed."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: dict[int, Call] = {}
        """By their index, in order."""
        self.tokens: list[int] = []
        self.events: list[Event] = []
        self.finish: Finish | None = None

    def add(self, event: Event) -> None:
        """Take in one event."""
        self.text += event.text
        self.reasoning += event.reasoning
        for piece in event.calls:
            self.calls.setdefault(piece.index, Call()).add(piece)
        self.tokens.extend(event.tokens)
        if event.logprobs or event.prompt_logprobs:
            self.events.append(event)
        if event.finish is not None:
            self.finish = event.finish


async def collect(run: Run) -> list[Answer]:
    """All answers of a run, in the order of the choices."""
    answers = [Answer() for _ in range(run.choices)]
    async for choice, event in run.events():
        answers[choice].add(event)
    return answers
