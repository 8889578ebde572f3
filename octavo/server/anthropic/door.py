"""The routes of /v1/messages, and of /v1/models for clients that say `anthropic-version`."""

from __future__ import annotations

import datetime
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from octavo.server.anthropic.parse import parse, prompt_of
from octavo.server.anthropic.render import PING, Renderer
from octavo.server.anthropic.replies import MessageReply, ModelEntry, ModelPage, TokenCount
from octavo.server.anthropic.requests import CountRequest, MessagesRequest
from octavo.server.errors import error_body
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.runs import Run
from octavo.server.state import State
from octavo.server.wire import Stream, convert, read_object, reply, request_name, salted, unless_gone

PATH = "/v1/messages"


class AnthropicRoute(Route):
    """A route for requests with the header that every client of Anthropic's sends."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """No match without the header."""
        if scope["type"] != "http" or all(name != b"anthropic-version" for name, _ in scope["headers"]):
            return Match.NONE, {}
        return super().matches(scope)


def routes(state: State) -> list[Route]:
    """The door's routes; those of models come before OpenAI's, which share their paths."""

    async def create(request: Request) -> Response:
        return await unless_gone(request, _answer(request, state))

    async def count(request: Request) -> Response:
        body = convert(await read_object(request, state.settings), CountRequest)
        state.choose(body.model)
        prompt = prompt_of(body, state.settings)
        started = await state.service.tokenize(messages=prompt.messages, chat=prompt.chat)
        return reply(TokenCount(input_tokens=len(started.prompt_ids)))

    async def models(request: Request) -> Response:
        found = [_entry(state, name) for name in _names(state)]
        return reply(ModelPage(data=found, first_id=found[0].id, last_id=found[-1].id))

    async def model(request: Request) -> Response:
        name: str = request.path_params["name"]
        if name not in _names(state):
            name = state.check_model(name)
        return reply(_entry(state, name))

    return [
        Route(PATH, create, methods=["POST"]),
        Route(f"{PATH}/count_tokens", count, methods=["POST"]),
        AnthropicRoute("/v1/models", models, methods=["GET"]),
        AnthropicRoute("/v1/models/{name:path}", model, methods=["GET"]),
    ]


def _names(state: State) -> list[str]:
    """Every name that a request may give."""
    adapters = state.service.adapters
    return [*state.names, *(named.adapter.name for named in (adapters.list() if adapters else ()))]


def _entry(state: State, name: str) -> ModelEntry:
    info = state.service.info
    created = datetime.datetime.fromtimestamp(info.created, datetime.UTC)
    limit = info.max_model_len
    return ModelEntry(
        id=name,
        display_name=name,
        created_at=created.isoformat().replace("+00:00", "Z"),
        max_input_tokens=limit,
        max_tokens=limit,
    )


async def _answer(request: Request, state: State) -> Response:
    """The whole life of a request. Raises OctavoError for what cannot be."""
    raw = await read_object(request, state.settings)
    body = convert(raw, MessagesRequest)
    headers = warning_headers(misspelt(raw, MessagesRequest))
    model, adapter = state.choose(body.model)
    name = request_name(request)
    job = parse(body, state, name, model, salted(request, body.cache_salt))
    job = msgspec.structs.replace(job, adapter=adapter)
    run = await Run.begin(state, [job], "/v1/messages", streaming=bool(body.stream))
    renderer = Renderer(
        name,
        model,
        run.usage,
        max_tokens=body.max_tokens,
        streaming=bool(body.stream),
        show=body.thinking is None or body.thinking.display != "omitted",
    )
    if body.stream:
        return Stream(
            _events(run, renderer),
            state.settings,
            on_close=run.close,
            on_error=_error_event,
            headers=headers,
            keep_alive=PING,
        )
    async with run:
        response = reply(await _collect(run, renderer))
    response.headers.update(headers)
    return response


async def _collect(run: Run, renderer: Renderer) -> MessageReply:
    """A whole message. Raises EngineFailed, Unavailable."""
    async for _, event in run.events():
        renderer.add(event)
    return renderer.reply


async def _events(run: Run, renderer: Renderer) -> AsyncGenerator[bytes, None]:
    """The stream."""
    renderer.begin()
    yield renderer.take()
    async for _, event in run.events():
        renderer.add(event)
        if made := renderer.take():
            yield made


def _error_event(error: BaseException) -> bytes:
    """How an error looks inside a stream: its last event."""
    return b"event: error\ndata: " + error_body(error, PATH) + b"\n\n"
