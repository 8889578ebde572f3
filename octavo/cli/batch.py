"""``octavo run-batch``: the requests of a file through the server's own routes, without a server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from octavo.cli.batch_flags import BATCH
from octavo.cli.common import read_words, wants_help
from octavo.cli.usage import UsageError
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.server.hub import Hub
    from octavo.server.settings import ServerSettings

_CONCURRENCY = 256
_MOST_LINE_BYTES = 64 << 20


def main(command: str, words: Sequence[str]) -> int:
    """Answer every line; 0 also when some could not be answered: their lines say why."""
    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    settings = read_words(words, BATCH)
    source, target = (_path(settings.cli.get(name), name) for name in ("input_file", "output_file"))
    from octavo import log

    log.setup()
    from octavo import launch
    from octavo.cli.serve import server_settings
    from octavo.config.environment import read_environment
    from octavo.config.start import engine_config

    with source.open("rb") as lines:
        config = engine_config(settings)
        server = server_settings(settings, read_environment())
        launched = launch.build(config, server.served_names)
        count = settings.cli.get("concurrency") or _CONCURRENCY
        with target.open("wb") as out:
            good, bad = asyncio.run(run(launch.service(launched), server, lines, out, count))
    sys.stderr.write(f"{good + bad} lines: {good} answered, {bad} not. The answers are in {target}.\n")
    return 0


def _path(given: str | None, name: str) -> Path:
    """A file here. Raises UsageError for none, ConfigError for an address."""
    flag = "-i" if name == "input_file" else "-o"
    if not given:
        raise UsageError(f"octavo run-batch needs {flag} FILE.")
    if "://" in given:
        raise ConfigError(f"{flag} {given[:200]!r} is an address.", hint="Give a file; copy it here before.")
    return Path(given).expanduser()


async def run(
    service: Hub, settings: ServerSettings, lines: BinaryIO, out: BinaryIO, count: int
) -> tuple[int, int]:
    """(lines answered with 200, others): every line of `lines` answered into `out`, in their order.

    `count` are at work together; `service` is started and stopped here.
    """
    from octavo.server.app import build_app

    await service.start()
    try:
        inner = build_app(service, settings).router
        return await _Queue(inner, out).run(_numbered(lines), count)
    finally:
        await service.stop(0.0)


def _numbered(lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the lines that are not blank."""
    number = 0
    while text := lines.readline(_MOST_LINE_BYTES):
        if text.strip():
            yield number, text.strip()
        number += 1


class _Queue:
    """Lines at work, and answers that wait for the ones before them."""

    def __init__(self, inner: Any, out: BinaryIO) -> None:
        self._inner = inner
        self._out = out
        self._ready: dict[int, bytes] = {}
        self._taken = self._written = 0
        self._counts = {True: 0, False: 0}

    async def run(self, lines: Iterator[tuple[int, bytes]], count: int) -> tuple[int, int]:
        """(good, bad)."""
        await asyncio.gather(*(self._pull(lines) for _ in range(count)))
        return self._counts[True], self._counts[False]

    async def _pull(self, lines: Iterator[tuple[int, bytes]]) -> None:
        from octavo.server.batch.lines import OFFLINE_ENDPOINTS, Refused, answer, read_line, unanswered

        for number, text in lines:
            place = self._taken
            self._taken += 1
            try:
                line = read_line(number, text, OFFLINE_ENDPOINTS)
                while isinstance(made := await answer(self._inner, line), float):
                    await asyncio.sleep(made)
            except Refused as refused:
                told = refused.problem
                made = unanswered(f"line-{number + 1}", told.code, told.message)
            self._counts[made.good] += 1
            self._ready[place] = made.text
            self._write()

    def _write(self) -> None:
        """Everything whose turn it is."""
        while (text := self._ready.pop(self._written, None)) is not None:
            self._out.write(text + b"\n")
            self._written += 1
        self._out.flush()
