"""The kernels of every instruction set against the scalar ones, in C++: see kernels_test.cpp."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "kernels_test"
"""Kept between runs: a second run compiles what changed."""


def tool(name: str) -> str | None:
    """A build tool, from this environment or the system's path."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else shutil.which(name)


TOOLS = bool(tool("cmake") and tool("ninja") and shutil.which("c++"))


@pytest.mark.skipif(not TOOLS, reason="needs cmake, ninja and a C++ compiler")
def test_every_instruction_set_computes_what_the_scalar_kernels_do() -> None:
    cmake, ninja = str(tool("cmake")), str(tool("ninja"))
    configure = [cmake, "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (configure, [cmake, "--build", str(BUILD)], [str(BUILD / "kernels_test")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "0 failures" in done.stdout
