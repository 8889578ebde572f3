"""An engine that does what a test says, and the service over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from octavo.errors import QueueFull
from octavo.pipeline.client import OnFailure, OnOutputs
from octavo.pipeline.prepare import ModelInfo, Preparer
from octavo.pipeline.service import Service
from octavo.types.engine import EngineRequest, Finish, TokenLogprobs, TokenOut
from octavo.types.job import Event, Job
from octavo.types.sampling import SamplingParams
from octavo.types.stats import EngineStats, RequestTimes

INFO = ModelInfo(names=("pocket",), max_model_len=4000, vocab_size=1000)


class FakeClient:
    """An engine that does what the test says, when it says it."""

    def __init__(self) -> None:
        self.alive = True
        self.stalled = False
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.room = 1000
        self.stopped: float | None = None

    def start(self, on_outputs: OnOutputs, on_failure: OnFailure) -> None:
        self.on_outputs, self.on_failure = on_outputs, on_failure

    def submit(self, request: EngineRequest) -> None:
        if len(self.requests) >= self.room:
            raise QueueFull("full", retry_after_s=1.0)
        self.requests.append(request)

    def abort(self, ids: Sequence[str]) -> None:
        self.aborted.extend(ids)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.requests))

    def stop(self, drain_s: float) -> None:
        self.stopped = drain_s
        self.alive = False

    def say(
        self, request_id: str, ids: Sequence[int], finish: Finish | None = None, value: float = -1.0
    ) -> None:
        """One output per token, the last with `finish`."""
        for k, i in enumerate(ids):
            end = finish if k == len(ids) - 1 else None
            logprobs = (TokenLogprobs((i,), (value,), (1,)),)
            self.on_outputs([TokenOut(id=request_id, tokens=(i,), logprobs=logprobs, finish=end)])


class FakeRecorder:
    """Remembers what the service reports."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int]] = []
        self.finished: list[RequestTimes] = []

    def on_tokens(self, index: int, n: int, now: float) -> None:
        self.tokens.append((index, n))

    def on_finish(self, times: RequestTimes) -> None:
        self.finished.append(times)


Body = Callable[[Service, FakeClient], Awaitable[None]]


def run(preparer: Preparer, body: Body, **options: Any) -> None:
    """Run `body` with a started service."""

    async def main() -> None:
        client = FakeClient()
        service = Service(preparer, client, **options)
        await service.start()
        try:
            await asyncio.wait_for(body(service, client), 20)
        finally:
            await service.stop()

    asyncio.run(main())


def job(name: str = "j", prompt: str = "the sky", **sampling: Any) -> Job:
    best_of = sampling.pop("best_of", None)
    params = SamplingParams(**{"max_tokens": 100, **sampling})
    params.best_of = best_of
    return Job(id=name, prompt=prompt, sampling=params)


async def drain(stream: Any) -> list[Event]:
    """All events after Started."""
    items = [item async for item in stream]
    return [item for item in items if isinstance(item, Event)]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if event.index == index)


def finishes(events: list[Event], index: int = 0) -> list[Finish]:
    return [event.finish for event in events if event.index == index and event.finish is not None]
