"""What changes while the server runs: loading, ready, draining, failed; and what the doors share."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable
from pathlib import PurePath

from starlette.types import ASGIApp

from octavo.errors import NotFound, Unavailable
from octavo.server.database import Database
from octavo.server.hub import Hub, Vocabulary
from octavo.server.metrics import Metrics
from octavo.server.settings import ServerSettings
from octavo.server.tracing import make_tracer
from octavo.types.lora import Adapter


class State:
    """Held by every door. The service comes later than the routes, because the port is bound first."""

    def __init__(self, settings: ServerSettings, service: Hub | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.metrics_prefix)
        self.tracer = make_tracer(settings.otlp_traces_endpoint)
        self.active = 0
        """POST requests at work, streams included."""
        self.draining = False
        self.asleep = False
        """Whether new requests are refused until somebody wakes the server."""
        self.live: set[tuple[str, str]] = set()
        """(id of the request, id of a job of its) of all that is at work."""
        self.starting = 0
        """Requests that are being made ready for the engine, which knows nothing of them yet."""
        self._going = asyncio.Event()
        self._going.set()
        self.inner: ASGIApp | None = None
        """The routes without what guards them: for requests that come from this process itself."""
        self.on_open: list[Callable[[], None]] = []
        """Called when the model is there."""
        self.on_close: list[Callable[[], None]] = []
        self._service: Hub | None = None
        self._database: Database | None = None
        self._opening = threading.Lock()
        if service is not None:
            self.open(service)

    def open(self, service: Hub) -> None:
        """From now on there is a model."""
        self._service = service
        self.metrics.watch(service, self.names[0])
        for call in self.on_open:
            call()

    @property
    def paused(self) -> bool:
        """Whether new requests wait until somebody resumes."""
        return not self._going.is_set()

    def pause(self) -> None:
        """From now on new requests wait."""
        self._going.clear()

    def resume(self) -> None:
        """Those that waited begin."""
        self._going.set()

    async def going(self) -> None:
        """Return when requests may begin."""
        await self._going.wait()

    def drain(self) -> None:
        """Refuse what is new, and what waited to begin."""
        self.draining = True
        self._going.set()

    def abort(self, request_id: str | None = None) -> None:
        """End the requests of that id (with or without the part before its first ``-`` or ``_``), or all."""
        if self._service is None:
            return
        for name, job in list(self.live):
            if request_id in (None, name, re.split("[-_]", name, maxsplit=1)[-1]):
                self._service.abort(job)

    def close(self) -> None:
        """The service is over: hold it no longer."""
        self.drain()
        for call in self.on_close:
            call()
        if self._database is not None:
            self._database.close()
        self._service = None
        self.metrics.forget()
        self.tracer.close()

    @property
    def database(self) -> Database:
        """What outlives the process, opened at the first use. Raises Unavailable. Any thread may ask."""
        with self._opening:
            if self._database is None:
                self._database = Database(self.settings.batch_dir)
            return self._database

    @property
    def service(self) -> Hub:
        """The service, ready for a job. Raises Unavailable as `loaded` does, and while asleep."""
        found = self.loaded
        if self.asleep:
            raise Unavailable("The server is asleep.", hint="POST /wake_up wakes it.")
        return found

    @property
    def loaded(self) -> Hub:
        """The service, able to work. Raises Unavailable while loading or draining and after a failure."""
        if self.draining:
            raise Unavailable("The server is shutting down.", hint="Send the request to another one.")
        if self._service is None:
            raise Unavailable("The model is still loading.", hint="Try again in a moment.")
        if self._service.failure is not None:
            raise Unavailable("The engine has failed.", hint="Its log says why; restart the server.")
        if not self._service.ready:
            raise Unavailable("The engine is not ready.", hint="Try again in a moment.")
        return self._service

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Single tokens as text; None without a tokenizer."""
        return self._service.tokenizer if self._service is not None else None

    @property
    def ready(self) -> bool:
        """Whether there is a model that works; asleep or not, so that probes leave a sleeper alone."""
        try:
            return self.loaded is not None
        except Unavailable:
            return False

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use for the model. Raises Unavailable while loading."""
        if self._service is None:
            raise Unavailable("The model is still loading.", hint="Try again in a moment.")
        return self.settings.served_names or self._service.info.names

    def choose(self, asked: str | None) -> tuple[str, Adapter | None]:
        """(the name to report, the adapter or None) for a request that asked for `asked`.

        Raises NotFound with the valid names.
        """
        adapters = None if self._service is None else self._service.adapters
        found = adapters.find(untagged(asked)) if adapters is not None and asked else None
        return (asked or "", found) if found is not None else (self.check_model(asked), None)

    def check_model(self, asked: str | None) -> str:
        """The base model's name to report, always the first one, for a request that asked for `asked`.

        A model that has no other name than what it was loaded from answers to every way of writing that.
        Raises NotFound with the valid names.
        """
        names = self.names
        if not asked or asked in names or untagged(asked) in names:
            return names[0]
        if self._service is not None and not self.settings.served_names:
            root = self._service.info.root
            if names == (root,) and same_model(asked, root):
                return names[0]
        shown = asked if len(asked) <= 200 else asked[:197] + "..."
        adapters = self._service.adapters if self._service is not None else None
        tuned = [named.adapter.name for named in adapters.list()] if adapters is not None else []
        raise NotFound(
            f"The model {shown!r} does not exist.",
            hint=f"This server has: {', '.join((*names, *tuned))}.",
            param="model",
        )


def untagged(name: str) -> str:
    """A name without the tag under which Ollama's routes list it; clients use that name on every route."""
    return name.removesuffix(":latest")


def same_model(asked: str, root: str) -> bool:
    """Whether `asked` is another way to write `root`, the path or hub id that a model was loaded from.

    That is the same path, absolute or with ``~``; its last parts (``Qwen2-0.5B``, ``Qwen/Qwen2-0.5B``); or
    the id that a hub's cache folder stands for (Hugging Face: ``models--Qwen--Qwen2-0.5B/snapshots/...``,
    ModelScope: ``___`` for ``.``).
    """
    if "\0" in asked:
        return False
    parts = PurePath(_absolute(root)).parts
    if parts == PurePath(_absolute(asked)).parts:
        return True
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        parts = tuple(parts[-3].removeprefix("models--").split("--"))
    parts = tuple(part.replace("___", ".") for part in parts)
    wanted = tuple(part.replace("___", ".") for part in PurePath(asked).parts)
    return bool(wanted) and parts[-len(wanted) :] == wanted


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
