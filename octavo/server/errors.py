"""The one table of error bodies: OpenAI's error object for every status, and nothing of our insides."""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

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


def respond(error: BaseException) -> Response:
    """The response for an exception. Unexpected ones are logged with their traceback."""
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
    return respond_info(info, headers)


def respond_info(info: ErrorInfo, headers: dict[str, str] | None = None) -> Response:
    """A JSON error response."""
    body = msgspec.json.encode(ErrorBody(info))
    return Response(body, info.code, headers, media_type="application/json")


async def not_found(request: Request, error: Exception) -> Response:
    """404 of a path that is no route."""
    message = f"There is no route {_shown(request)}. GET /docs lists the routes."
    return respond_info(ErrorInfo(message, "NotFoundError", None, 404))


async def wrong_method(request: Request, error: Exception) -> Response:
    """405, which names the method to use."""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    allowed = [m for m in headers.get("Allow", headers.get("allow", "")).split(", ") if m and m != "HEAD"]
    use = " or ".join(sorted(allowed)) or "another method"
    message = f"{_shown(request)} does not take {request.method}; use {use}."
    return respond_info(ErrorInfo(message, "MethodNotAllowedError", None, 405), headers)


async def unexpected(request: Request, error: Exception) -> Response:
    """Anything that starlette itself raises."""
    if isinstance(error, HTTPException):
        return respond_info(ErrorInfo(error.detail, "BadRequestError", None, error.status_code))
    return respond(error)


def _shown(request: Request) -> str:
    """The path, short and printable."""
    path = request.url.path
    return path if len(path) <= 100 else path[:97] + "..."
