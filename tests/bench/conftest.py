"""A session over the bundled model, shared by the folder's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def session():
    pytest.importorskip("octavo._native", reason="the C++ extension is not built")
    from octavo import launch
    from octavo.bench.session import Session
    from octavo.config.engine import EngineConfig

    config = EngineConfig(quiet=True, max_model_len=256, enable_prefix_caching=False)
    return Session(launch.build(config))
