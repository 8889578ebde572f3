"""Running the server: the port first, then the model, then requests, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import errno
import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import uvicorn
import uvicorn.config

from octavo.errors import ConfigError
from octavo.log import logger
from octavo.server.app import make_app
from octavo.server.hub import Hub
from octavo.server.metrics import Metrics
from octavo.server.settings import ServerSettings, is_loopback
from octavo.server.state import State
from octavo.server.tls import check_tls

log = logger(__name__)

ServiceFactory = Callable[[Metrics], Hub]
"""Loads the model and makes a service, not started yet, that reports to the given recorder. May take long."""

_POLL_S = 0.02
_SAME_SIGNAL_S = 0.2
"""A signal this soon after the first is the same one, come by way of the process group (timeout, make)."""
_MAPPED_BYTES, _KEPT_BYTES = 32 << 20, 16 << 20
"""Larger blocks are pages of their own; of smaller ones a thread's heap keeps so much when they are free."""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LAST_WORDS_S = 2.0
"""How long aborted streams may take to send their end."""


def announce_ready(url: str) -> None:
    """The one line that says where the server is; at a terminal a second one says what to do with it."""
    print(f"Octavo is ready at {url}", file=sys.stderr, flush=True)
    if sys.stderr.isatty() and url.startswith("http"):
        print(
            f"Open it in a browser, or type: octavo chat --url {url}   (Ctrl-C ends the server)",
            file=sys.stderr,
            flush=True,
        )


def serve(
    service_factory: ServiceFactory,
    settings: ServerSettings,
    *,
    announce: Callable[[str], None] = announce_ready,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises OctavoError when the port or the model fails.

    The port is taken before the model loads, so that a taken port fails at once; until the model is there
    every request is answered with 503. A second signal ends the process at once.
    """
    check_tls(settings)
    bound_heaps()
    listener = bind(settings)
    if settings.uds is None and settings.port == 0:
        settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    warn_exposed(settings)
    runner = _Runner(service_factory, settings, listener, announce)
    try:
        code = asyncio.run(runner.run())
    finally:
        listener.close()
        if settings.uds is not None:
            with contextlib.suppress(OSError):
                os.unlink(settings.uds)
    if runner.loading:
        # The interpreter's own end would cut the thread off inside native code, which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def bound_heaps() -> None:
    """Fix what glibc keeps of freed memory, which else grows with large texts; elsewhere do nothing."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises ConfigError when the address is taken or not ours."""
    try:
        return _bind_unix(settings.uds) if settings.uds is not None else _bind_tcp(settings)
    except (OSError, OverflowError) as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and (error.errno or 0) > 0:  # asyncio's own texts hold the address
            why = os.strerror(error.errno or 0)
        hint = "Choose another with --port, --host or --uds."
        if settings.uds is None and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            hint = (
                f"Perhaps it already serves; else --port {settings.port + 1}, or --port 0 for any free one."
            )
        raise ConfigError(f"Cannot listen on {where}: {why}.", hint=hint) from None


def _bind_tcp(settings: ServerSettings) -> socket.socket:
    found = socket.getaddrinfo(
        settings.host or "0.0.0.0", settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_unix(path: str) -> socket.socket:
    """A unix socket; one that nobody listens on any more is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    """Whether a server listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def warn_exposed(settings: ServerSettings) -> None:
    """Three lines when other machines can use the server without a key."""
    if settings.uds is not None or is_loopback(settings.host) or settings.has_keys:
        return
    log.warning(
        "The server listens on %s: every machine that reaches it can use it.", settings.host or "0.0.0.0"
    )
    log.warning("Nobody is asked for a key. Set one with --api-key KEY (clients send it as a Bearer token),")
    log.warning("or keep the server to this machine with --host 127.0.0.1.")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers: the runner decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _Runner:
    """One run from load to drain, on one event loop."""

    def __init__(
        self,
        factory: ServiceFactory,
        settings: ServerSettings,
        listener: socket.socket,
        announce: Callable[[str], None],
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._listener = listener
        self._announce = announce
        self._state = State(settings)
        self._server = _Uvicorn(_uvicorn_config(settings, make_app(self._state)))
        self._loader: threading.Thread | None = None

    @property
    def loading(self) -> bool:
        """Whether the model is still being loaded, which goes on after a signal."""
        return self._loader is not None and self._loader.is_alive()

    async def run(self) -> int:
        """Everything; 0 after an orderly end."""
        self._stop = asyncio.Event()
        self._stopped_s = 0.0
        handled = self._handle_signals()
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._listener]))
        service: Hub | None = None
        try:
            service = await self._load(serving)
            if service is not None:
                await service.start()
                self._state.open(service)
                self._announce(self._settings.url)
                await self._until_stop(serving)
        finally:
            await self._end(service, serving)
            for number in handled:
                asyncio.get_running_loop().remove_signal_handler(number)
        if serving.done():
            serving.result()  # raises what made uvicorn give up
        return 0

    def _handle_signals(self) -> list[signal.Signals]:
        """SIGTERM and SIGINT end the run; only the main thread may ask for that."""
        if threading.current_thread() is not threading.main_thread():
            return []
        numbers = [signal.SIGTERM, signal.SIGINT]
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        return numbers

    def _on_signal(self, number: signal.Signals) -> None:
        """First: drain. Second: out."""
        now = asyncio.get_running_loop().time()
        if self._stop.is_set():
            if now - self._stopped_s > _SAME_SIGNAL_S:
                os._exit(128 + number)
            return
        self._stopped_s = now
        self._state.drain()
        self._stop.set()
        log.info("Shutting down; requests at work may finish (%.0f s).", self._settings.shutdown_timeout_s)

    async def _load(self, serving: asyncio.Future[None]) -> Hub | None:
        """The service, made in a thread of its own; None when a signal came first. Raises ConfigError when
        it takes too long."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Hub] = loop.create_future()

        def settle(service: Hub | None, error: BaseException | None) -> None:
            if loaded.done():
                return
            if error is not None:
                loaded.set_exception(error)
            elif service is not None:
                loaded.set_result(service)

        def work() -> None:
            service: Hub | None = None
            failed: BaseException | None = None
            try:
                service = self._factory(self._state.metrics)
            except BaseException as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is gone after a signal
                loop.call_soon_threadsafe(settle, service, failed)

        # A daemon: a signal during a long load must not wait for it.
        self._loader = threading.Thread(target=work, name="octavo-load", daemon=True)
        self._loader.start()
        stopped = asyncio.ensure_future(self._stop.wait())
        first: set[asyncio.Future[Any]] = {loaded, stopped, serving}
        try:
            limit_s = self._settings.ready_timeout_s or None
            done, _ = await asyncio.wait(first, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if loaded.done():
            return loaded.result()
        loaded.cancel()
        if not done:
            raise ConfigError(
                f"The model was not ready within {limit_s:g} s.", hint="Raise OCTAVO_ENGINE_READY_TIMEOUT_S."
            )
        return None

    async def _until_stop(self, serving: asyncio.Future[None]) -> None:
        """Until a signal, or until uvicorn ends by itself."""
        stopped = asyncio.ensure_future(self._stop.wait())
        first: set[asyncio.Future[Any]] = {stopped, serving}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    async def _end(self, service: Hub | None, serving: asyncio.Future[None]) -> None:
        """Refuse what is new, let what runs finish, abort the rest, close."""
        self._state.drain()
        await self._quiet_within(self._settings.shutdown_timeout_s)
        if service is not None:
            await service.stop(0.0)
            await self._quiet_within(_LAST_WORDS_S)
        self._server.should_exit = True
        if self._state.active:
            self._server.force_exit = True
        await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
        self._state.close()

    async def _quiet_within(self, timeout_s: float) -> None:
        """Wait until no request is at work, at most `timeout_s` seconds."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while self._state.active and loop.time() < end_s:
            await asyncio.sleep(_POLL_S)


class _Quiet(logging.Filter):
    """Drops the access log's lines about some paths."""

    def __init__(self, paths: frozenset[str]) -> None:
        super().__init__()
        self._paths = paths

    def filter(self, record: logging.LogRecord) -> bool:
        """uvicorn's record holds (client, method, path with query, HTTP version, status)."""
        path = record.args[2] if isinstance(record.args, tuple) and len(record.args) > 2 else ""
        return str(path).partition("?")[0] not in self._paths


def _uvicorn_config(settings: ServerSettings, app: object) -> uvicorn.Config:
    """uvicorn's settings: no WebSockets, no lifespan, all logs on stderr."""
    level = settings.uvicorn_log_level
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"
    quiet = frozenset(f"{settings.prefix}{path.strip()}" for path in settings.quiet_endpoints.split(","))
    logs["filters"] = {"quiet": {"()": lambda: _Quiet(quiet)}}
    logs["handlers"]["access"]["filters"] = ["quiet"]
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=logs,
        log_level=level,
        access_log=not settings.disable_access_log,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=int(_LAST_WORDS_S),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password=settings.ssl_keyfile_password,
        ssl_certfile=settings.ssl_certfile,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_cert_reqs=settings.ssl_cert_reqs,
        ssl_ciphers=settings.ssl_ciphers or "TLSv1",  # uvicorn's default
    )
    if level == "info":  # uvicorn's own start-up lines say what the ready line says better
        logger("uvicorn.error").setLevel("WARNING")
    return config
