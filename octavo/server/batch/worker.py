"""Works on batches one after the other, in order, a few lines at a time, while nobody else waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp

from octavo.errors import NotFound, Unavailable
from octavo.log import logger
from octavo.server.batch.bodies import BatchObject, BatchProblem
from octavo.server.batch.lines import Line, answer, read_all, unanswered
from octavo.server.batch.store import Store
from octavo.server.state import State

log = logger(__name__)

_POLL_S = 0.05
_UNREADY_S = 0.5


class _Leaving(Exception):
    """The server shuts down: what is not done stays for the next start."""


class Worker:
    """One task for all batches of a store; `wake` starts it, and it ends when nothing is left."""

    def __init__(self, state: State, store: Store, inner: ASGIApp) -> None:
        self._state = state
        self._store = store
        self._inner = inner
        self._task: asyncio.Task[None] | None = None
        self._cancelled = asyncio.Event()
        self._current = ""

    def wake(self) -> None:
        """There may be work; call on the event loop."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="octavo-batches")

    def cancel(self, batch_id: str) -> None:
        """A batch is to be cancelled: it says so itself, this ends its lines at once."""
        if batch_id == self._current:
            self._cancelled.set()
        self.wake()

    def stop(self) -> None:
        """Leave everything as it stands."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while (found := self._store.next_batch()) is not None:
            tenant, batch = found
            self._current = batch.id
            self._cancelled.clear()
            try:
                await self._work(tenant, batch)
            except _Leaving:
                return
            except Exception as error:
                log.error("batch %s failed", batch.id, exc_info=error)
                problem = BatchProblem(code="internal_error", message="The server failed; its log says more.")
                self._store.set_status(batch.id, "failed", problems=[problem])

    async def _work(self, tenant: str, batch: BatchObject) -> None:
        """One batch from where it stands to its end."""
        if batch.status == "cancelling" or batch.status == "finalizing":
            self._store.finish(tenant, batch.id, "cancelled" if batch.status == "cancelling" else "completed")
            return
        lines = await self._read(tenant, batch)
        if lines is None:
            return
        if batch.status == "validating":
            self._store.set_total(batch.id, len(lines))
            self._store.set_status(batch.id, "in_progress")
            log.info("batch %s: %d lines for %s", batch.id, len(lines), batch.endpoint)
        done = self._store.answered(batch.id)
        left = [line for line in lines if line.number not in done]
        end = await self._lines(tenant, batch, left)
        if end == "expired":
            self._expire(batch, left)
        if end == "completed":
            self._store.set_status(batch.id, "finalizing")
        self._store.finish(tenant, batch.id, end)
        log.info("batch %s: %s", batch.id, end)

    async def _read(self, tenant: str, batch: BatchObject) -> list[Line] | None:
        """The lines, or None when the batch has failed."""

        def read() -> tuple[list[Line], list[BatchProblem]]:
            try:
                content = b"".join(self._store.content(tenant, batch.input_file_id))
            except NotFound:
                return [], [BatchProblem(code="file_not_found", message="The input file is gone.")]
            return read_all(content, batch.endpoint)

        lines, problems = await asyncio.to_thread(read)
        if problems:
            self._store.set_status(batch.id, "failed", problems=problems)
            return None
        return lines

    async def _lines(self, tenant: str, batch: BatchObject, left: list[Line]) -> str:
        """Answer the lines; "completed", "cancelled" or "expired". Raises _Leaving."""
        if self._store.batch(tenant, batch.id).status == "cancelling":
            return "cancelled"
        waiting = iter(left)
        count = min(self._state.settings.batch_concurrency, max(len(left), 1))
        pulls = [asyncio.ensure_future(self._pull(tenant, batch, waiting)) for _ in range(count)]
        cancelled = asyncio.ensure_future(self._cancelled.wait())
        work: asyncio.Future[list[None]] = asyncio.gather(*pulls)
        try:
            limit_s = max(batch.expires_at - time.time(), 0.0)
            first: set[asyncio.Future[Any]] = {work, cancelled}
            await asyncio.wait(first, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return "completed"
            return "cancelled" if cancelled.done() else "expired"
        finally:
            for task in (*pulls, cancelled):
                task.cancel()
            await asyncio.gather(*pulls, cancelled, work, return_exceptions=True)

    async def _pull(self, tenant: str, batch: BatchObject, waiting: Iterator[Line]) -> None:
        for line in waiting:
            await self._one(tenant, batch, line)

    async def _one(self, tenant: str, batch: BatchObject, line: Line) -> None:
        """Answer one line, as often as the engine is full."""
        while True:
            await self._turn()
            made = await answer(self._inner, line, tenant)
            if self._state.draining:
                raise _Leaving  # what came may be cut short
            if not isinstance(made, float):
                self._store.record(batch.id, line.number, made)
                return
            await asyncio.sleep(made)

    async def _turn(self) -> None:
        """Wait while others' requests wait, or the model is not there."""
        while True:
            if self._state.draining:
                raise _Leaving
            try:
                if not self._state.service.stats().waiting:
                    return
                await asyncio.sleep(_POLL_S)
            except Unavailable:
                await asyncio.sleep(_UNREADY_S)

    def _expire(self, batch: BatchObject, left: list[Line]) -> None:
        """Every line without an answer says why."""
        done = self._store.answered(batch.id)
        for line in left:
            if line.number not in done:
                told = unanswered(line.custom_id, "batch_expired", "The batch expired before this line.")
                self._store.record(batch.id, line.number, told)
