"""What is installed: every folder of the package, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"torch", "transformers", "ray", "vllm", "fastapi", "pydantic", "scipy"}


def test_patterns_are_anchored() -> None:
    """An exclude of `build` once left octavo/build out of the wheel, and .gitignore is read as one too."""
    ignored = [
        line
        for line in (ROOT / ".gitignore").read_text().splitlines()
        if line.rstrip("/") in ("build", "dist")
    ]
    excluded = PROJECT["tool"]["scikit-build"]["sdist"]["exclude"]
    assert ignored == []
    assert [pattern for pattern in excluded if not pattern.startswith("/")] == []


def test_the_base_install_is_light() -> None:
    names = {name.split(">")[0].split("=")[0].lower() for name in PROJECT["project"]["dependencies"]}
    assert names.isdisjoint(HEAVY)


_NOT_AT_FIRST = {*HEAVY, "jinja2", "llguidance", "numba", "pandas", "PIL", "tokenizers", "tqdm"}
_MOST_MODULES = 700
"""A module more costs a third of a millisecond of every start; the standard library's share differs."""


def test_a_server_imports_little_before_it_loads() -> None:
    """Counted, not timed: what `octavo serve` has imported when it takes its port."""
    code = "import sys, octavo.cli.serve, octavo.launch, octavo.server.run; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert _NOT_AT_FIRST & set(found) == set()
    assert len(found) < _MOST_MODULES


def test_code_that_is_not_built_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(octavo, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "octavo._native", None)
    with pytest.raises(ImportError, match=r"native code is not built for this Python. Build it with: pip"):
        from octavo import _native  # noqa: F401
