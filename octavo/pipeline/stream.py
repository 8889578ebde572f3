"""The reader's end of one job: events wait here, merged while nobody reads, so memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from octavo.pipeline.output import SequenceText
from octavo.pipeline.prepare import Prepared
from octavo.types.engine import Finish, TokenLogprobs, TokenOut
from octavo.types.job import Event, Started
from octavo.types.stats import RequestTimes


class Pending:
    """Events of one sequence that nobody has read yet, put together."""

    def __init__(self, event: Event) -> None:
        self._first = event
        self._rest: list[Event] = []

    def add(self, event: Event) -> None:
        """Append news of the same sequence."""
        self._rest.append(event)
        if len(self._rest) >= 64:
            # Join now and then: the parts of a reader who sleeps would weigh far more than the joined event.
            self._first, self._rest = self.take(), []

    def take(self) -> Event:
        """All of it as one event."""
        if not self._rest:
            return self._first
        events = [self._first, *self._rest]
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        for event in events:
            tokens.extend(event.tokens)
            logprobs.extend(event.logprobs)
        return Event(
            index=self._first.index,
            text="".join(event.text for event in events),
            reasoning="".join(event.reasoning for event in events),
            calls=tuple(piece for event in events for piece in event.calls),
            reasoning_tokens=sum(event.reasoning_tokens for event in events),
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            prompt_logprobs=self._first.prompt_logprobs,
            cached_tokens=max(event.cached_tokens for event in events),
            started_s=events[0].started_s,
            finish=events[-1].finish,
        )


class Sequence:
    """One running sequence of a job, with the times that the metrics want."""

    def __init__(self, stream: JobStream, text: SequenceText, request_id: str, serial: int) -> None:
        self.stream = stream
        self.text = text
        self.id = request_id
        self.serial = serial
        """Unique in this process."""
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._news: TokenOut | None = None

    def note(self, out: TokenOut) -> None:
        """Remember what the engine says of the sequence."""
        self._news = out

    def times(self, reason: str) -> RequestTimes:
        """What the metrics get at the end."""
        prepared, news = self.stream.prepared, self._news
        request = prepared.requests[self.text.index]
        return RequestTimes(
            arrival_s=request.arrival_s,
            first_token_s=self.first_token_s,
            last_token_s=self.last_token_s,
            prompt_tokens=len(request.prompt),
            output_tokens=self.text.count,
            finish_reason=reason,
            n=prepared.n,
            max_tokens=request.sampling.max_tokens,
            started_s=news.started_s if news else None,
            cached_tokens=news.cached_tokens if news else 0,
            preemptions=news.preemptions if news else 0,
        )


class JobStream:
    """What ``Service.submit`` returns: Started first, then Events until every sequence has finished.

    An asynchronous iterator, and a context manager that closes it; closing before the end aborts the job.
    """

    def __init__(self, job_id: str, prepared: Prepared, on_close: Callable[[JobStream], None]) -> None:
        self.id = job_id
        self.prepared = prepared
        self.closed = False
        self._on_close = on_close
        self._started = False
        self._open = len(prepared.texts)
        self._pending: dict[int, Pending] = {}
        self._news = asyncio.Event()
        self._best = _BestOf(prepared.n) if prepared.best_of else None
        self._held: dict[int, Pending] = {}
        """What waits for more tokens, by the request's stream_interval."""
        self._room: dict[int, int] = {}
        """How many more tokens a sequence's piece takes; the first one goes at once."""

    def put(self, event: Event) -> None:
        """Take one event (event loop only)."""
        if event.finish is not None:
            self._open -= 1
        if self.closed:
            return
        if self._best is not None:
            self._best.add(event)
            if self._open == 0:
                for chosen in self._best.chosen(strip=self.prepared.strip_logprobs):
                    self._pending[chosen.index] = Pending(chosen)
                self._news.set()
            return
        if self.prepared.interval > 1:
            piece = self._piece(event)
            if piece is None:
                return
            event = piece
        waiting = self._pending.get(event.index)
        if waiting is None:
            self._pending[event.index] = Pending(event)
        else:
            waiting.add(event)
        self._news.set()

    def _piece(self, event: Event) -> Event | None:
        """What was held of a sequence and this event together, None while there are too few tokens."""
        index = event.index
        if index in self._held:
            self._held[index].add(event)
        else:
            self._held[index] = Pending(event)
        self._room[index] = self._room.get(index, 1) - len(event.tokens)
        if self._room[index] > 0 and event.finish is None:
            return None
        self._room[index] = self.prepared.interval
        return self._held.pop(index).take()

    @property
    def done(self) -> bool:
        """Every sequence has finished (its events may still wait to be read)."""
        return self._open == 0

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Started | Event:
        if not self._started:
            self._started = True
            return self.prepared.started
        while not self._pending:
            if self._open == 0 or self.closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending))).take()

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """Stop caring: whatever still runs is aborted. Harmless when all is over."""
        self.close()

    def close(self) -> None:
        """The same without await (event loop only)."""
        if self.closed:
            return
        self.closed = True
        self._pending.clear()
        self._news.set()
        self._on_close(self)


class _BestOf:
    """Collects whole sequences and picks the likeliest."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._parts: dict[int, Pending] = {}

    def add(self, event: Event) -> None:
        """Take a part of a sequence."""
        waiting = self._parts.get(event.index)
        if waiting is None:
            self._parts[event.index] = Pending(event)
        else:
            waiting.add(event)

    def chosen(self, strip: bool) -> list[Event]:
        """The n best by cumulative log-probability, best first, renumbered from 0; failed ones come last."""
        whole = [part.take() for part in self._parts.values()]
        whole.sort(key=_rank)
        return [_renumbered(event, i, strip) for i, event in enumerate(whole[: self._n])]


def _rank(event: Event) -> tuple[bool, float, int]:
    """Sort key: finished by itself first, then cumulative log-probability, descending, then index."""
    failed = event.finish is None or event.finish.reason in ("abort", "error")
    return failed, -sum(entry.values[0] for entry in event.logprobs), event.index


def _renumbered(event: Event, index: int, strip: bool) -> Event:
    finish = event.finish if event.finish is not None else Finish("error", error="the sequence never ended")
    logprobs = () if strip else event.logprobs
    return msgspec.structs.replace(event, index=index, logprobs=logprobs, finish=finish)
