"""Usage errors: what was typed cannot be meant. They end with exit code 2, other failures with 1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from octavo.errors import ConfigError


class UsageError(ConfigError):
    """A command line that cannot be read."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn ConfigErrors of the block into UsageErrors with the same message."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error), param=error.param) from None
