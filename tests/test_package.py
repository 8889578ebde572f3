"""What is installed: every folder of the package, and nothing heavy."""

from __future__ import annotations

import tomllib
from pathlib import Path

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
