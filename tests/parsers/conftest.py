"""The helpers of this folder are a module beside the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    """No parser of any test fails in silence."""
    from parser_replies import loud

    with loud():
        yield
