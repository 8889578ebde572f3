"""Ollama's names of models: `name:tag`, where `:latest` goes without saying."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import PurePath

from octavo.errors import BadRequest, NotFound
from octavo.server.state import State
from octavo.types.lora import Adapter

LATEST = ":latest"
_HUBS = ("hf.co/", "huggingface.co/", "www.huggingface.co/")
_MOST_CHARS = 512


def bare(name: str) -> str:
    """A name without `:latest` and without the hub's address."""
    plain = name.strip().removesuffix(LATEST)
    return next((plain.removeprefix(hub) for hub in _HUBS if plain.startswith(hub)), plain)


def shown(name: str) -> str:
    """How a served name stands in a list: with a tag, and a path by its last part."""
    plain = PurePath(name).name if name.startswith(("/", ".", "~")) else name
    return plain if ":" in plain.rpartition("/")[2] else plain + LATEST


def choose(state: State, asked: str) -> tuple[str, Adapter | None]:
    """(the base model's or the adapter's name, the adapter or None).

    Raises BadRequest without a name, NotFound in Ollama's words.
    """
    if not asked.strip():
        raise BadRequest("model is required", param="model")
    for name in dict.fromkeys((asked, bare(asked))):
        try:
            return state.choose(name)
        except NotFound:
            pass
    for served in state.names:
        if shown(served).casefold() == shown(bare(asked)).casefold():
            return state.names[0], None
    have = ", ".join(shown(name) for name in state.names)
    raise NotFound(f"model {asked[:_MOST_CHARS]!r} not found.", hint=f"This server has: {have}.")


def now() -> str:
    """The time as Ollama writes it (RFC 3339, UTC)."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """A UTC time in RFC 3339."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
