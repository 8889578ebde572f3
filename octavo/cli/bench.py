"""``octavo bench``: hands its words to the benchmark's own command line, loaded only then."""

from __future__ import annotations

import importlib
from collections.abc import Sequence


def main(command: str, words: Sequence[str]) -> int:
    """Run ``octavo.bench.cli.main(words)``; its exit code."""
    code: int = importlib.import_module("octavo.bench.cli").main(list(words))
    return code
