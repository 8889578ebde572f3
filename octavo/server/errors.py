"""The one table of error bodies: OpenAI's error object for every status, and nothing of our insides.

Routes whose clients expect another shape stand in `SHAPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from octavo.errors import BadRequest, OctavoError, QueueFull
from octavo.log import logger

log = logger(__name__)


class ErrorInfo(msgspec.Struct, frozen=True):
    """What went wrong, as OpenAI's clients read it; `code` is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every error response."""

    error: ErrorInfo


class SchemaError(BadRequest):
    """A body whose shape is wrong; vLLM's type for it is "Bad Request", and `param` starts with ``body``."""

    kind = "Bad Request"


class TooLarge(OctavoError):
    """A body over the ceiling."""

    status = 413
    kind = "RequestTooLargeError"


class TooSlow(OctavoError):
    """A body that does not come."""

    status = 408
    kind = "RequestTimeoutError"


class Unauthorized(OctavoError):
    """A missing or wrong API key."""

    status = 401
    kind = "AuthenticationError"


class Forbidden(OctavoError):
    """A Host or Origin that is not allowed."""

    status = 403
    kind = "PermissionDeniedError"


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


_INTERNAL = "The server failed while working on this request; its log says more."


def describe(error: BaseException) -> ErrorInfo:
    """The public face of an exception; what is not meant for clients becomes one fixed sentence."""
    if isinstance(error, OctavoError) and (error.status < 500 or error.status == 503):
        return ErrorInfo(error.message, error.kind, error.param, error.status)
    if isinstance(error, EngineFailed):
        return ErrorInfo(error.message, error.kind, None, error.status)
    return ErrorInfo(_INTERNAL, "InternalServerError", None, 500)


class EngineFailed(OctavoError):
    """A sequence that the engine ended with an error of its own."""


class OllamaError(msgspec.Struct, frozen=True):
    """Body of every error response below /api/."""

    error: str


Shape = Callable[[ErrorInfo], tuple[int, object]]
"""(status, body) of an error as the clients of some routes read it."""


def _openai(info: ErrorInfo) -> tuple[int, object]:
    return info.code, ErrorBody(info)


def _ollama(info: ErrorInfo) -> tuple[int, object]:
    """Ollama says 503 where a queue is full."""
    return 503 if info.code == 429 else info.code, OllamaError(info.message)


class AnthropicInfo(msgspec.Struct, frozen=True):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """Body of every error response below /v1/messages."""

    error: AnthropicInfo


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def _anthropic(info: ErrorInfo) -> tuple[int, object]:
    kind = _ANTHROPIC_TYPES.get(info.code, "invalid_request_error")
    return info.code, AnthropicError(AnthropicInfo(kind, info.message))


SHAPES: dict[str, Shape] = {"/api/": _ollama, "/v1/messages": _anthropic}
"""By the beginning of the path below root_path; everything else has OpenAI's shape."""


def shape_of(path: str) -> Shape:
    """How errors look on a path below root_path."""
    return next((shape for start, shape in SHAPES.items() if path.startswith(start)), _openai)


def error_body(error: BaseException, path: str = "") -> bytes:
    """The JSON of an error inside a stream."""
    return msgspec.json.encode(shape_of(path)(describe(error))[1])


def route_path(scope: Scope) -> str:
    """The path below root_path, as starlette's router takes it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def respond(error: BaseException, path: str = "") -> Response:
    """The response for an exception on a route. Unexpected ones are logged with their traceback."""
    info = describe(error)
    if not isinstance(error, OctavoError):
        log.error("unexpected error in a request", exc_info=error)
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if info.code == 503:
        headers["Retry-After"] = "5"
    if info.code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return respond_info(info, headers, path)


def respond_info(info: ErrorInfo, headers: dict[str, str] | None = None, path: str = "") -> Response:
    """A JSON error response on a route."""
    status, body = shape_of(path)(info)
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


_INSTEAD = (
    (
        "This server takes and gives text only.",
        "/v1/audio/transcriptions /v1/audio/translations /v1/audio/speech /v1/realtime "
        "/v1/images/generations /v1/images/edits /reset_mm_cache /reset_encoder_cache",
    ),
    (
        "POST /tokenize has the tokens of a prompt or of messages, POST /detokenize the text of tokens.",
        "/v1/chat/completions/render /v1/completions/render /v1/responses/render /v1/messages/render "
        "/v1/chat/completions/derender /v1/completions/derender",
    ),
    (
        "/v1/completions takes and gives token ids (prompt, return_token_ids).",
        "/inference/v1/generate",
    ),
    (
        "The development routes /abort_requests, /pause and /sleep end requests and give memory back.",
        "/inference/v1/abort_requests /release_kv_cache_memory",
    ),
    (
        "Use /v1/chat/completions; Cohere's /v2/embed and /v2/rerank are here.",
        "/cohere/v2/chat",
    ),
    (
        "Use structured_outputs of /v1/chat/completions, or /generative_scoring.",
        "/v1/systemone",
    ),
    ("octavo bench breakdown tells where the time goes.", "/start_profile /stop_profile"),
    ("/metrics, /version and /v1/models say what runs.", "/server_info"),
    (
        "This server is one process that loads its weights once.",
        "/collective_rpc /update_weights /kv_event_sources /scale_elastic_ep /is_scaling_elastic_ep",
    ),
)
ABSENT = {path: instead for instead, paths in _INSTEAD for path in paths.split()}
"""Routes of vLLM's and OpenAI's servers that are not here, and what to do instead."""


async def not_found(request: Request, error: Exception) -> Response:
    """404 of a path that is no route; 501 of one that is a route elsewhere."""
    path = route_path(request.scope)
    if instead := ABSENT.get(path):
        info = ErrorInfo(f"{path} is not implemented. {instead}", "NotImplementedError", None, 501)
        return respond_info(info, path=path)
    message = f"There is no route {_shown(request)}. GET /docs lists the routes."
    return respond_info(ErrorInfo(message, "NotFoundError", None, 404), path=path)


async def wrong_method(request: Request, error: Exception) -> Response:
    """405, which names the method to use."""
    known = [
        r for r in request.app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE
    ]
    allowed = sorted({method for route in known for method in route.methods or ()})
    use = " or ".join(method for method in allowed if method != "HEAD")
    message = f"{_shown(request)} does not take {request.method}; use {use}."
    info = ErrorInfo(message, "MethodNotAllowedError", None, 405)
    return respond_info(info, {"Allow": ", ".join(allowed)}, route_path(request.scope))


async def unexpected(request: Request, error: Exception) -> Response:
    """Anything that starlette itself raises."""
    if isinstance(error, HTTPException):
        info = ErrorInfo(error.detail, "BadRequestError", None, error.status_code)
        return respond_info(info, path=route_path(request.scope))
    return respond(error, route_path(request.scope))


def _shown(request: Request) -> str:
    """The path, short and printable."""
    path = request.url.path
    return path if len(path) <= 100 else path[:97] + "..."
