"""Who may speak to the server: Host and Origin lists, API keys, and the count of requests at work."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.database import Database
from octavo.server.errors import Forbidden, Unauthorized, respond, route_path
from octavo.server.limits import good_id
from octavo.server.page import page, wants_page
from octavo.server.scopes import OPEN_PATHS, RIGHT, Right, right_without_keys
from octavo.server.settings import ServerSettings, is_loopback
from octavo.server.state import State

ROUTE = "octavo.route"
"""Where the ASGI scope says which route has taken a request."""
_METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})
_UNMEASURED = frozenset({"/metrics", "/health", "/ping", "/load", "/version"})
"""Routes that come every second and say nothing of the service, as vLLM leaves them out."""

TENANT = "octavo.tenant"
"""Where the ASGI scope says whose key came with the request; absent without keys."""


class Keys:
    """API keys as keyed hashes, compared in constant time."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._salt = secrets.token_bytes(32)
        self._hashes = tuple(self._hash(key) for key in keys)

    def __bool__(self) -> bool:
        """Whether any key is set."""
        return bool(self._hashes)

    def tenant(self, given: str) -> str | None:
        """A name for who holds the key `given`, None when it is no key; always takes the same time."""
        hashed = self._hash(given)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(hashed, known)
        return hashed.hex()[:16] if found else None

    def _hash(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._salt).digest()


class Guard:
    """ASGI middleware around every route; decides on the very path that the router sees."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, state: State) -> None:
        self._app = app
        self._settings = settings
        self._state = state
        self._keys = {
            Right.INFERENCE: Keys(settings.api_keys),
            Right.MANAGEMENT: Keys(settings.management_api_keys),
            Right.ADMIN: Keys(settings.admin_api_keys),
        }
        self._highest = max((right for right, keys in self._keys.items() if keys), default=None)
        """Keys of this kind open everything; None without any key."""
        self._anybody = right_without_keys(settings)
        self._check_host = settings.on_loopback and "*" not in settings.allowed_hosts
        self._hosts = frozenset(h.lower() for h in (*settings.allowed_hosts, settings.host))
        self._origins = frozenset(o.lower().rstrip("/") for o in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on, and measure."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun_s, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, sending)
        finally:
            handler = str(scope.get(ROUTE, "none"))
            if handler not in _UNMEASURED:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._state.metrics.on_http(method, handler, status, time.monotonic() - begun_s)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = self._settings.prefix
        headers = Headers(scope=scope)
        if self._settings.enable_request_id_headers:
            send = _echo_request_id(headers, send)
        if route_path(scope).startswith("/v1/messages"):
            send = _echo_request_id(headers, send, "request-id", "req_")  # Anthropic's clients report it
        try:
            self._admit(scope, headers)
        except (Forbidden, Unauthorized) as error:
            asked = wants_page(scope["method"], route_path(scope), headers)
            if asked and isinstance(error, Unauthorized) and not self._settings.disable_docs:
                return await page(error.status)(scope, receive, send)
            return await respond(error, route_path(scope))(scope, receive, send)
        if len(path := route_path(scope)) > 1 and path.endswith("/"):
            # Answered as it is meant: a redirect would trust the Host header.
            scope["path"] = scope["path"][:-1]
        counted = scope["method"] == "POST" and route_path(scope) not in OPEN_PATHS
        self._state.active += counted
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.active -= counted

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raises Forbidden or Unauthorized."""
        if self._check_host:
            self._check_names(headers)
        if self._highest is None or route_path(scope) in OPEN_PATHS:
            scope[RIGHT] = self._anybody
            return
        if self._origins and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return  # a preflight: browsers send it without the key, and the CORS layer answers it
        given = given_key(headers)
        found = [(right, keys.tenant(given)) for right, keys in self._keys.items() if given]
        right, tenant = max(((right, tenant) for right, tenant in found if tenant), default=(None, None))
        if right is None:
            raise Unauthorized(
                "A valid API key is missing.",
                hint="Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        scope[TENANT] = tenant
        scope[RIGHT] = Right.ADMIN if right == self._highest else right

    def _check_names(self, headers: Headers) -> None:
        """Against DNS rebinding: other sites' pages must not reach a server that is for this machine only."""
        for host in headers.getlist("host"):
            if not self._known(_host_name(host)):
                raise Forbidden(
                    "This server listens for this machine only and does not answer to that Host header.",
                    hint="Start it with --allowed-hosts NAME when a proxy passes that name on.",
                )
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower().rstrip("/") in self._origins:
            return
        if not self._known(_host_name(urlsplit(origin).netloc)):
            raise Forbidden(
                "Pages of that origin may not use this server.",
                hint="Start it with --allowed-origins '[\"ORIGIN\"]' to allow it.",
            )

    def _known(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts


def given_key(headers: Headers) -> str:
    """The API key that a request brings; "" for none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def lasting_tenant(request: Request, settings: ServerSettings, database: Database) -> str:
    """Whose stored things a request may see, the same name after a restart; "" without keys.

    A line of a batch brings no key but the name of the batch's owner.
    """
    key = given_key(request.headers) if settings.has_keys else ""
    return database.tenant(key) if key else str(request.scope.get(TENANT, ""))


def _host_name(value: str) -> str:
    """The name of a Host header without its port; IPv6 brackets stay off."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


def _echo_request_id(headers: Headers, send: Send, header: str = "X-Request-Id", prefix: str = "") -> Send:
    """`send` with the request's id on the response: the client's X-Request-Id, or a fresh one."""
    given = headers.get("x-request-id")
    name = given if given is not None and good_id(given) else prefix + secrets.token_hex(16)

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).setdefault(header, name)
        await send(message)

    return sending
