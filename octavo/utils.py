"""Small things that scripts for vLLM import beside the classes."""

from __future__ import annotations

import argparse
import enum
import logging
import sys
import uuid
from collections.abc import Iterable
from typing import Any


class UsageContext(enum.Enum):
    """Where an engine runs, as vLLM reports it; Octavo reports nothing."""

    UNKNOWN_CONTEXT = "UNKNOWN_CONTEXT"
    LLM_CLASS = "LLM_CLASS"
    API_SERVER = "API_SERVER"
    OPENAI_API_SERVER = "OPENAI_API_SERVER"
    ENGINE_CONTEXT = "ENGINE_CONTEXT"


def random_uuid() -> str:
    """A new id, 32 hexadecimal digits."""
    return uuid.uuid4().hex


def init_logger(name: str) -> logging.Logger:
    """A logger that shares Octavo's handler."""
    return logging.getLogger(name if name.startswith("octavo") else f"octavo.{name}")


class FlexibleArgumentParser(argparse.ArgumentParser):
    """argparse, where ``_`` in a flag's name equals ``-``."""

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, after hyphens have taken the place of underscores in the flags' names."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([self._hyphens(word) for word in words], namespace)

    def _hyphens(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        return "--" + name[2:].replace("_", "-") + equals + value


class Counter:
    """Numbers one after the other: `next(counter)`."""

    def __init__(self, start: int = 0) -> None:
        self.counter = start

    def __next__(self) -> int:
        """The number that is due."""
        self.counter += 1
        return self.counter - 1

    def reset(self) -> None:
        """Begin at 0."""
        self.counter = 0


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Nothing: the memory of an LLM goes with the object."""
