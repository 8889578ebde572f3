"""A real server on a loopback port, for the length of a ``with``."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from octavo.server.run import _Runner, bind
from octavo.server.settings import ServerSettings

LIMIT_S = 15


class Running:
    """A server in a thread, stopped at the end of ``with``."""

    def __init__(self, service: Any, **settings: Any) -> None:
        """`service`: a service, or what makes one from a recorder."""
        self._settings = ServerSettings(**{"port": 0, "disable_access_log": True, **settings})
        self._listener = bind(self._settings)
        port = 0 if self._settings.uds else self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.service: Any = None
        self._ready = threading.Event()
        self._error: BaseException | None = None

        def load(metrics: Any) -> Any:
            if callable(service):
                self.service = service(metrics)
            else:
                self.service = service
                service.recorder = metrics
            return self.service

        self._runner = _Runner(load, self._settings, self._listener, lambda url: self._ready.set())
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def go() -> None:
            self._loop = asyncio.get_running_loop()
            await self._runner.run()

        try:
            asyncio.run(go())
        except BaseException as error:
            self._error = error
            self._ready.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._runner._stop.set)
        self._thread.join(LIMIT_S)
        self._listener.close()
        self.service = None
        assert not self._thread.is_alive()


def serving(settings: dict[str, Any] | None = None, **config: Any) -> Running:
    """A server of the bundled model or of another small one; it needs the extension."""
    from octavo import launch
    from octavo.config.engine import EngineConfig

    def load(metrics: Any) -> Any:
        small = {"kv_cache_memory_bytes": 16 << 20, "max_num_seqs": 32, "threads": 1, "quiet": True}
        return launch.service(launch.build(EngineConfig(**{**small, **config})), metrics)

    return Running(load, **(settings or {}))
