"""Logging: to stderr, one line a record, quiet libraries. Results go to stdout and never through here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
_NO = frozenset({"0", "false", "no", "off"})


def logger(name: str) -> logging.Logger:
    """The logger of one module: ``log = logger(__name__)``."""
    return logging.getLogger(name)


def setup(level: str | None = None) -> None:
    """Attach one handler to the ``octavo`` logger (idempotent), as the variables of logging say.

    `level` wins over OCTAVO_LOGGING_LEVEL and VLLM_LOGGING_LEVEL; the default is INFO. Raises OSError for a
    LOGGING_CONFIG_PATH that cannot be used.
    """
    if _variable("CONFIGURE_LOGGING").lower() in _NO:
        return
    if path := _variable("LOGGING_CONFIG_PATH"):
        _from_file(path)
        return
    root = logging.getLogger("octavo")
    chosen = level or _variable("LOGGING_LEVEL") or "INFO"
    root.setLevel(chosen.upper() if chosen.upper() in logging.getLevelNamesMapping() else "INFO")
    if not root.handlers:
        stream = sys.stdout if _variable("LOGGING_STREAM").endswith("stdout") else sys.stderr
        handler = logging.StreamHandler(stream)
        prefix = _variable("LOGGING_PREFIX").replace("%", "%%")
        handler.setFormatter(logging.Formatter(prefix + _FORMAT, "%m-%d %H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False


def _variable(word: str) -> str:
    return os.environ.get(f"OCTAVO_{word}") or os.environ.get(f"VLLM_{word}") or ""


def _from_file(path: str) -> None:
    """A JSON file for `logging.config.dictConfig`; its logger is ``octavo``."""
    import json
    import logging.config

    try:
        logging.config.dictConfig(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise OSError(f"OCTAVO_LOGGING_CONFIG_PATH={path} cannot be used: {error}") from error
