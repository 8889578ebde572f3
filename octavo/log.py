"""Logging: to stderr, one line a record, quiet libraries. Results go to stdout and never through here."""

from __future__ import annotations

import logging
import os
import sys

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"


def logger(name: str) -> logging.Logger:
    """The logger of one module: ``log = logger(__name__)``."""
    return logging.getLogger(name)


def setup(level: str | None = None) -> None:
    """Attach one stderr handler to the ``octavo`` logger (idempotent).

    `level` wins over OCTAVO_LOGGING_LEVEL and VLLM_LOGGING_LEVEL; the default is INFO.
    """
    root = logging.getLogger("octavo")
    chosen = level or os.environ.get("OCTAVO_LOGGING_LEVEL") or os.environ.get("VLLM_LOGGING_LEVEL") or "INFO"
    root.setLevel(chosen.upper() if chosen.upper() in logging.getLevelNamesMapping() else "INFO")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, "%m-%d %H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
