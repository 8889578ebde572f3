"""The application: every door's routes, the guard around them, and one error shape for all."""

from __future__ import annotations

import functools

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import QueueFull
from octavo.server import adapters, document, invocations, legacy, metrics, probes, sleep, tokens
from octavo.server.anthropic import door as anthropic
from octavo.server.batch import door as batch
from octavo.server.errors import ClientGone, not_found, respond, unexpected, wrong_method
from octavo.server.guard import ROUTE, Guard
from octavo.server.hub import Hub
from octavo.server.ollama import door as ollama
from octavo.server.openai import chat, chats, completions, models, scoring
from octavo.server.openai.responses import door as responses
from octavo.server.pooling import cohere, embeddings, scores
from octavo.server.scopes import RIGHTS, demand
from octavo.server.settings import ServerSettings
from octavo.server.state import State
from octavo.server.tracing import TRACE_HEADERS, caller
from octavo.server.wire import Handler

DOORS = (
    *(chat, chats, completions, responses, anthropic, batch, models, adapters, tokens, legacy, ollama),
    *(embeddings, cohere, scores, scoring),
    *(probes, sleep, metrics, document),
)
"""Each has ``routes(state)``; none knows another. The first that matches takes a request."""

_CLIENT_GONE = 499
"""nginx's status for a client that left; only logs ever see it."""


def build_app(service: Hub | None, settings: ServerSettings) -> Starlette:
    """The ASGI application over a started service.

    With None every route that needs a model answers 503 until ``app.state.octavo.open(service)``.
    """
    return make_app(State(settings, service))


def make_app(state: State) -> Starlette:
    """The application around a given state."""
    settings = state.settings
    routes = [_sheltered(route, state) for door in DOORS for route in door.routes(state)]
    routes.append(_sheltered(invocations.route(state, routes), state))
    middleware = [Middleware(Guard, settings=settings, state=state)]
    if settings.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=settings.allowed_methods,
                allow_headers=settings.allowed_headers,
                allow_credentials=settings.allow_credentials,
            )
        )
    if settings.middleware:
        from octavo.server.middleware import load

        middleware += load(settings.middleware)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={404: not_found, 405: wrong_method, HTTPException: unexpected},
    )
    app.router.redirect_slashes = False
    app.state.octavo = state
    state.inner = app.router
    return app


def _sheltered(route: Route, state: State) -> Route:
    """The route with its right demanded and every exception turned into a response.

    A bad request ends only itself. KeyError for a route without a rule in `RIGHTS`.
    """
    handler: Handler = route.endpoint
    right = RIGHTS[route.path]

    @functools.wraps(handler)
    async def endpoint(request: Request) -> Response:
        request.scope[ROUTE] = route.path
        caller.set({name: request.headers[name] for name in TRACE_HEADERS if name in request.headers})
        try:
            demand(request.scope, right)
            return await handler(request)
        except ClientGone:
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            if isinstance(error, QueueFull):
                state.metrics.on_rejection()
            return respond(error, route.path)

    return type(route)(route.path, endpoint, methods=sorted(route.methods or ()))
