"""Files of the corpus, as they are and with bytes changed: each is read or refused in a sentence.

A change that breaks this is written to the corpus; mend the reader and commit the file with it.
"""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.config.engine import EngineConfig
from octavo.errors import OctavoError
from octavo.inspection import inspect
from octavo.weights.gguf import open_gguf
from octavo.weights.safetensors import SafetensorsFile

CORPUS = Path(__file__).parent / "corpus"
SEEDS = sorted(CORPUS.iterdir())
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=4)


def tried(path: Path) -> bool:
    """Whether every tensor of a file could be read."""
    try:
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
            for name in file.entries:
                file.get(name).dequantize()
        else:
            checkpoint = open_gguf(path)
            for name in checkpoint.names():
                checkpoint.get(name).dequantize()
            inspect(EngineConfig(model=str(path)))
    except OctavoError:
        return False
    return True


@pytest.mark.parametrize("name", [path.name for path in SEEDS])
def test_kept_files(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = name in {"bytes.safetensors", "plain.safetensors", "types.gguf", "values.gguf", "version-2.gguf"}
    assert tried(CORPUS / name) >= good
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), changes=CHANGES, cut=st.none() | st.integers(0, 2000))
def test_changed_files(tmp_path: Path, seed: Path, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    raw = bytearray(seed.read_bytes())
    for at, change in changes:
        at %= len(raw)
        raw[at : at + len(change)] = change
    path = tmp_path / f"changed{seed.suffix}"
    path.write_bytes(raw[:cut])
    try:
        tried(path)
    except Exception:
        kept = CORPUS / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}{seed.suffix}"
        kept.write_bytes(path.read_bytes())
        raise
