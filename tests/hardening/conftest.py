"""The real server over the bundled model, in this process, with its insides at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """start(engine={...}, **server settings): a server that ends with the test."""
    pytest.importorskip("octavo._native", reason="the extension is not built")
    from live import Live
    from running import Running

    from octavo import launch
    from octavo.config.engine import EngineConfig

    with ExitStack() as stack:

        def begin(engine: dict[str, Any] | None = None, **settings: Any) -> Any:
            made: list[Any] = []

            def load(metrics: Any) -> Any:
                config = {"kv_cache_memory_bytes": 8 << 20, "max_num_seqs": 8, "threads": 1, "quiet": True}
                launched = launch.build(EngineConfig(**{**config, **(engine or {})}))
                made.extend((launched, launch.service(launched, metrics)))
                return made[1]

            running = stack.enter_context(Running(load, **settings))
            live = Live(running, *made)
            made.clear()
            return live

        yield begin
