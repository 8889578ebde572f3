"""/v1/files and /v1/batches: create, list, look at, read, cancel, delete. Holders of a key see their own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest, Unavailable
from octavo.log import logger
from octavo.server.batch.bodies import BatchList, BatchObject, BatchRequest, Deleted, FileList
from octavo.server.batch.lines import ENDPOINTS
from octavo.server.batch.store import ACTIVE, Store
from octavo.server.batch.worker import Worker
from octavo.server.database import Database
from octavo.server.guard import lasting_tenant
from octavo.server.inside import serves
from octavo.server.limits import at_most
from octavo.server.multipart import parse_form
from octavo.server.state import State
from octavo.server.wire import Stream, convert, read_body, read_object, reply

log = logger(__name__)

_WINDOW_S = 86_400
_MOST_LISTED = 100
_MOST_FILES_LISTED = 10_000
_MOST_METADATA = 16
_MOST_NAME_CHARS = 255
_KEEP_RANGE_S = (3600, 30 * 86_400)


class Batches:
    """The store and its worker, made at the first use: a server that nobody hands files keeps none."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._store: Store | None = None
        self._worker: Worker | None = None
        state.on_open.append(self._resume)
        state.on_close.append(self._close)

    @property
    def store(self) -> Store:
        """Raises Unavailable."""
        if self._store is None:
            self._store = Store(self._state.database, self._state.settings.batch_store_bytes)
            asyncio.get_running_loop().call_soon(self._wake)
        return self._store

    @property
    def worker(self) -> Worker:
        """Call on the event loop."""
        if self._worker is None:
            inner = self._state.inner
            assert inner is not None
            self._worker = Worker(self._state, self.store, inner)
        return self._worker

    def tenant(self, request: Request) -> str:
        """Whose files a request may see."""
        return lasting_tenant(request, self._state.settings, self._state.database)

    def _resume(self) -> None:
        """The model is there: go on with what an earlier run of the server left."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if Database.exists(self._state.settings.batch_dir):
            loop.call_soon(self._wake)

    def _wake(self) -> None:
        try:
            self.worker.wake()
        except Unavailable as error:
            log.warning("%s", error)

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.stop()


def routes(state: State) -> list[Route]:
    """The routes of files and of batches."""
    batches = Batches(state)
    return [*_file_routes(state, batches), *_batch_routes(state, batches)]


def _file_routes(state: State, batches: Batches) -> list[Route]:
    async def files(request: Request) -> Response:
        if request.method == "POST":
            return await upload(request)
        query = request.query_params
        limit = _limit(query.get("limit"), _MOST_FILES_LISTED, _MOST_FILES_LISTED)
        oldest = query.get("order", "desc") == "asc"
        tenant = batches.tenant(request)
        found = batches.store.files(tenant, query.get("purpose"), query.get("after"), limit + 1, oldest)
        return reply(FileList(**_page(found, limit)))

    async def upload(request: Request) -> Response:
        form = parse_form(await read_body(request, state.settings), request.headers.get("content-type", ""))
        if "file" not in form:
            raise BadRequest("The form has no field 'file'.", param="file")
        purpose = form["purpose"].content.decode("utf-8", "replace") if "purpose" in form else ""
        if purpose != "batch":
            raise BadRequest("purpose must be 'batch': other files have no use here.", param="purpose")
        after = form.get("expires_after[seconds]")
        name = (form["file"].filename or "file").replace("\\", "/").rpartition("/")[2][:_MOST_NAME_CHARS]
        made = await asyncio.to_thread(
            batches.store.add_file,
            batches.tenant(request),
            name,
            purpose,
            form["file"].content,
            None if after is None else _keep_s(after.content.decode("ascii", "replace")),
        )
        return reply(made)

    async def one_file(request: Request) -> Response:
        tenant, name = batches.tenant(request), request.path_params["name"]
        if request.method == "DELETE":
            await asyncio.to_thread(batches.store.delete_file, tenant, name)
            return reply(Deleted(id=name))
        return reply(batches.store.file(tenant, name))

    async def content(request: Request) -> Response:
        pieces = batches.store.content(batches.tenant(request), request.path_params["name"])
        return Stream(
            _threaded(pieces),
            state.settings,
            on_close=_nothing,
            media_type="application/octet-stream",
        )

    return [
        Route("/v1/files", files, methods=["GET", "POST"]),
        Route("/v1/files/{name}", one_file, methods=["GET", "DELETE"]),
        Route("/v1/files/{name}/content", content, methods=["GET"]),
    ]


def _batch_routes(state: State, batches: Batches) -> list[Route]:
    async def all_batches(request: Request) -> Response:
        if request.method == "POST":
            return await create(request)
        limit = _limit(request.query_params.get("limit"), 20, _MOST_LISTED)
        found = batches.store.batches(batches.tenant(request), request.query_params.get("after"), limit + 1)
        return reply(BatchList(**_page(found, limit)))

    async def create(request: Request) -> Response:
        body = convert(await read_object(request, state.settings), BatchRequest)
        _check(body, state)
        tenant = batches.tenant(request)
        batches.store.file(tenant, body.input_file_id)
        now = int(time.time())
        made = BatchObject(
            id=f"batch_{secrets.token_hex(16)}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + _WINDOW_S,
            metadata=body.metadata,
        )
        seconds = (body.output_expires_after or {}).get("seconds")
        batches.store.add_batch(tenant, made, None if seconds is None else _keep_s(seconds))
        batches.worker.wake()
        return reply(made)

    async def one_batch(request: Request) -> Response:
        return reply(batches.store.batch(batches.tenant(request), request.path_params["name"]))

    async def cancel(request: Request) -> Response:
        tenant, name = batches.tenant(request), request.path_params["name"]
        found = batches.store.batch(tenant, name)
        if found.status not in ACTIVE:
            raise BadRequest(f"The batch is {found.status} already.", param="id")
        if found.status not in ("cancelling", "finalizing"):
            batches.store.set_status(name, "cancelling")
            batches.worker.cancel(name)
        return reply(batches.store.batch(tenant, name))

    return [
        Route("/v1/batches", all_batches, methods=["GET", "POST"]),
        Route("/v1/batches/{name}", one_batch, methods=["GET"]),
        Route("/v1/batches/{name}/cancel", cancel, methods=["POST"]),
    ]


def _check(body: BatchRequest, state: State) -> None:
    """Raises BadRequest."""
    if body.endpoint not in ENDPOINTS:
        raise BadRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}.", param="endpoint")
    if not serves(getattr(state.inner, "routes", ()), body.endpoint):
        raise BadRequest(f"This server has no {body.endpoint}.", param="endpoint")
    if body.completion_window != "24h":
        raise BadRequest("completion_window must be '24h'.", param="completion_window")
    at_most("metadata", len(body.metadata or ()), _MOST_METADATA, "entries")
    for key, value in (body.metadata or {}).items():
        if len(key) > 64 or len(value) > 512:
            raise BadRequest("metadata has a key over 64 or a value over 512 characters.", param="metadata")


def _keep_s(seconds: Any) -> int:
    """How long a file is kept. Raises BadRequest."""
    low, high = _KEEP_RANGE_S
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit() and len(seconds) < 10:
        seconds = int(seconds)
    if type(seconds) is not int or not low <= seconds <= high:
        raise BadRequest(f"expires_after must be {low} to {high} seconds.", param="expires_after")
    return seconds


def _limit(given: str | None, default: int, most: int) -> int:
    if given is None:
        return default
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0
    if not 1 <= number <= most:
        raise BadRequest(f"limit must be 1 to {most}.", param="limit")
    return number


def _page(found: list[Any], limit: int) -> dict[str, Any]:
    """The fields of a list of which one more than `limit` was asked for."""
    data = found[:limit]
    ids = [item.id for item in data]
    return {
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(found) > limit,
    }


async def _threaded(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Pieces of a file, read in a thread."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


async def _nothing() -> None:
    """Nothing is held open for a download."""
