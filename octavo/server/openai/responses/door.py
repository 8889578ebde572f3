"""The routes of /v1/responses: create (whole, streamed or in the background), read, cancel, delete."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest, OctavoError, Unavailable
from octavo.log import logger
from octavo.server.database import Database
from octavo.server.errors import describe
from octavo.server.guard import lasting_tenant
from octavo.server.limits import at_most, named_as
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.openai.common import head
from octavo.server.openai.logprobs import Speller
from octavo.server.openai.responses.items import Item, kept
from octavo.server.openai.responses.parse import begun, parse, wants_logprobs
from octavo.server.openai.responses.render import Renderer
from octavo.server.openai.responses.replies import (
    DeletedReply,
    ErrorEvent,
    InputTokensReply,
    ItemList,
    RawMessage,
)
from octavo.server.openai.responses.requests import ResponsesRequest
from octavo.server.openai.responses.store import Record, Store
from octavo.server.openai.responses.truncate import fitting
from octavo.server.runs import Run
from octavo.server.state import State
from octavo.server.wire import Stream, convert, read_object, reply, request_name, salted, unless_gone
from octavo.types.job import Job

log = logger(__name__)

_MOST_LISTED = 100


def routes(state: State) -> list[Route]:
    """The door's routes over one store."""
    door = Door(state)

    async def create(request: Request) -> Response:
        return await unless_gone(request, door.create(request))

    path = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/input_tokens", door.count, methods=["POST"]),
        Route(path, door.read, methods=["GET"]),
        Route(path, door.delete, methods=["DELETE"]),
        Route(f"{path}/cancel", door.cancel, methods=["POST"]),
        Route(f"{path}/input_items", door.items, methods=["GET"]),
    ]


class Door:
    """Creates responses and keeps them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._opened: tuple[Database, Store] | None = None
        self._opening = threading.Lock()

    def _open(self) -> tuple[Database, Store]:
        """The store, made at the first use; in memory where the folder of batches cannot be had."""
        with self._opening:
            if self._opened is None:
                settings = self._state.settings
                try:
                    database = self._state.database
                except Unavailable as error:
                    log.warning("%s Responses are kept in memory.", error)
                    database = Database(None)
                store = Store(database, settings.max_stored_responses, settings.max_stored_bytes)
                self._opened = database, store
            return self._opened

    @property
    def _store(self) -> Store:
        return self._open()[1]

    def _tenant(self, request: Request) -> str:
        """Whose responses a request may see."""
        return lasting_tenant(request, self._state.settings, self._open()[0])

    async def create(self, request: Request) -> Response:
        """POST /v1/responses. Raises OctavoError for what cannot be."""
        raw = await read_object(request, self._state.settings)
        body = convert(raw, ResponsesRequest)
        headers = warning_headers(misspelt(raw, ResponsesRequest))
        record, job, tenant = await self._prepare(request, body)
        if body.background:
            await asyncio.to_thread(self._store.hold, tenant, record)
        try:
            run = await Run.begin(self._state, [job], "/v1/responses", streaming=bool(body.stream))
        except BaseException:
            if body.background:
                self._store.remove(tenant, record.reply.id)
            raise
        if body.enable_response_messages:
            started = run.started[0]
            said = RawMessage(message=started.prompt or "", tokens=list(started.prompt_ids))
            record.reply.input_messages = [said]
        renderer = self._renderer(body, record)
        if body.background:
            return self._in_background(body, run, record, renderer, tenant, headers)
        if body.stream:
            return self._stream(self._events(run, record, renderer, tenant), headers, run)
        async with run:
            await _collect(run, renderer)
        await self._keep(tenant, record)
        response = reply(record.reply)
        response.headers.update(headers)
        return response

    async def _prepare(self, request: Request, body: ResponsesRequest) -> tuple[Record, Job, str]:
        """The response as it begins, the job that makes it, and whose it is. Raises OctavoError."""
        state = self._state
        model, adapter = state.choose(body.model)
        if isinstance(body.input, list):
            at_most("input", len(body.input), state.settings.max_messages, "items")
        with named_as("previous_response_id", "response_id"):
            name, before, given, tenant = await asyncio.to_thread(self._look_up, request, body)
        top = msgspec.structs.replace(head("resp", name, model), id=f"resp_{name}")
        job = parse(body, state, top, salted(request, body.cache_salt), (*before, *given))
        job = msgspec.structs.replace(job, adapter=adapter)
        if body.truncation == "auto":
            job = await fitting(state, job)
        record = Record(begun(body, top, job, state.settings), given, before)
        if body.background and body.stream:
            record.events = []
        return record, job, tenant

    def _look_up(
        self, request: Request, body: ResponsesRequest
    ) -> tuple[str, tuple[Item, ...], tuple[Item, ...], str]:
        """(name, earlier items, items of this request, whose it is), with what the store has of them.

        A request that wants nothing stored and refers to nothing leaves the store alone. Raises OctavoError.
        """
        name = request_name(request, body.request_id)
        stored = body.store is not False and self._state.settings.max_stored_responses > 0
        refers = body.previous_response_id is not None or isinstance(body.input, list)
        tenant = self._tenant(request) if stored or refers else ""
        if stored and self._store.has(tenant, f"resp_{name}"):
            name = uuid.uuid4().hex
        before = self._before(tenant, body.previous_response_id)
        given = kept(body.input or [], lambda item: self._store.find_item(tenant, item))
        return name, before, given, tenant

    def _before(self, tenant: str, name: str | None) -> tuple[Item, ...]:
        """The conversation up to and with an earlier response. Raises NotFound, BadRequest."""
        if name is None:
            return ()
        record = self._store.get(tenant, name)
        if not record.done or record.reply.status not in ("completed", "incomplete"):
            raise BadRequest(
                f"The response {name!r} is {record.reply.status} and cannot be continued.",
                param="previous_response_id",
            )
        return (*record.before, *record.given, *record.output)

    def _renderer(self, body: ResponsesRequest, record: Record) -> Renderer:
        vocabulary = self._state.vocabulary
        as_ids = self._state.settings.return_tokens_as_token_ids
        return Renderer(
            record.reply,
            streaming=bool(body.stream),
            speller=Speller(vocabulary, as_ids) if wants_logprobs(body) else None,
            top=body.top_logprobs or 0,
            reasoning=body.include_reasoning is not False,
            decode=vocabulary.decode if body.enable_response_messages and vocabulary else None,
        )

    def _stream(
        self, pieces: AsyncGenerator[bytes, None], headers: dict[str, str], run: Run | None = None
    ) -> Stream:
        """`pieces` as the events of a response; ending it early ends the run."""

        async def close() -> None:
            if run is not None:
                await run.close()

        return Stream(pieces, self._state.settings, on_close=close, on_error=_error_event, headers=headers)

    async def _events(
        self, run: Run, record: Record, renderer: Renderer, tenant: str
    ) -> AsyncGenerator[bytes, None]:
        """The stream; what goes wrong on the way is its response.failed."""
        renderer.begin()
        yield renderer.take()
        try:
            async for _, event in run.events():
                renderer.add(event)
                if event.finish is not None:
                    renderer.finish(event.finish, run.usage)
                    await self._keep(tenant, record)  # before the client knows, who may go on at once
                if made := renderer.take():
                    yield made
        except Exception as error:
            _failed(renderer, error)
            await self._keep(tenant, record)
            yield renderer.take()

    async def _keep(self, tenant: str, record: Record) -> None:
        """Store a finished response where that is wanted."""
        if record.reply.store:
            await _stored(self._store.keep, tenant, record)

    def _in_background(
        self,
        body: ResponsesRequest,
        run: Run,
        record: Record,
        renderer: Renderer,
        tenant: str,
        headers: dict[str, str],
    ) -> Response:
        """Answer at once, or follow the events; going away ends nothing."""
        first = msgspec.json.encode(record.reply)
        record.task = asyncio.ensure_future(self._work(run, record, renderer, tenant))
        if body.stream:
            return self._stream(record.follow(0), headers)
        return Response(first, headers=headers, media_type="application/json")

    async def _work(self, run: Run, record: Record, renderer: Renderer, tenant: str) -> None:
        """Make a response that nobody waits for."""
        try:
            async with run:
                renderer.begin()
                async for _, event in run.events():
                    renderer.add(event)
                    if event.finish is not None:
                        renderer.finish(event.finish, run.usage)
                    record.tell(renderer.take())
        except asyncio.CancelledError:
            renderer.cancel()
        except Exception as error:
            _failed(renderer, error)
        finally:
            record.tell(renderer.take(), done=True)
            await _stored(self._store.finish, tenant, record)

    async def read(self, request: Request) -> Response:
        """GET /v1/responses/{id}: the response as it is now, or its stream once more."""
        record = await self._find(request)
        if request.query_params.get("stream", "false").lower() != "true":
            return reply(record.reply)
        if record.events is None:
            raise BadRequest(
                "Only a response made with background and stream can be streamed again.", param="stream"
            )
        after = _number(request, "starting_after", -1)
        return self._stream(record.follow(after + 1), {})

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: end a background response; a finished one stays as it is."""
        record = await self._find(request)
        if not record.reply.background:
            raise BadRequest("Only a response made with background can be cancelled.", param="response_id")
        await _end(record)
        return reply(record.reply)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        tenant, name = await asyncio.to_thread(self._tenant, request), request.path_params["response_id"]
        record = await asyncio.to_thread(self._store.remove, tenant, name)
        await _end(record)
        return reply(DeletedReply(id=record.reply.id))

    async def items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items: a page of what it was asked."""
        record = await self._find(request)
        found: Sequence[Item] = (*record.before, *record.given)
        if request.query_params.get("order", "desc") != "asc":
            found = found[::-1]
        if after := request.query_params.get("after"):
            places = [i for i, item in enumerate(found) if item["id"] == after]
            found = found[places[0] + 1 :] if places else ()
        limit = _number(request, "limit", 20)
        if not 1 <= limit <= _MOST_LISTED:
            raise BadRequest(f"limit must be in 1..{_MOST_LISTED}.", param="limit")
        page = list(found[:limit])
        ends = (page[0]["id"], page[-1]["id"]) if page else ("", "")
        return reply(ItemList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit))

    async def count(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens: how long the prompt would be."""
        body = convert(await read_object(request, self._state.settings), ResponsesRequest)
        _, job, _ = await self._prepare(request, body)
        started = await self._state.service.tokenize(messages=job.messages, chat=job.chat)
        return reply(InputTokensReply(input_tokens=len(started.prompt_ids)))

    async def _find(self, request: Request) -> Record:
        """The response that the path names. Raises NotFound."""

        def find() -> Record:
            return self._store.get(self._tenant(request), request.path_params["response_id"])

        return await asyncio.to_thread(find)


async def _stored(work: Callable[[str, Record], None], tenant: str, record: Record) -> None:
    """Store in a thread; a disk that fails costs the stored copy, never the answer."""
    try:
        await asyncio.to_thread(work, tenant, record)
    except sqlite3.Error as error:
        log.warning("%s is not stored: %s", record.reply.id, error)


def _number(request: Request, name: str, default: int) -> int:
    """An integer of the query. Raises BadRequest."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise BadRequest(f"{name} must be a whole number.", param=name)
    return int(given)


async def _collect(run: Run, renderer: Renderer) -> None:
    """A whole answer. Raises EngineFailed."""
    renderer.begin()
    async for _, event in run.events():
        renderer.add(event)
        if event.finish is not None:
            renderer.finish(event.finish, run.usage)


async def _end(record: Record) -> None:
    """Stop the work on a response, if there is any, and wait until it is over."""
    if record.task is not None and not record.done:
        record.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await record.task


def _failed(renderer: Renderer, error: Exception) -> None:
    """Turn an error into a failed response; an unexpected one is logged."""
    if not isinstance(error, OctavoError):
        log.error("unexpected error in a response", exc_info=error)
    renderer.fail(describe(error))


def _error_event(error: BaseException) -> bytes:
    """How an error looks that is not a response's own."""
    info = describe(error)
    event = ErrorEvent(code="server_error", message=info.message, param=info.param, sequence_number=0)
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
