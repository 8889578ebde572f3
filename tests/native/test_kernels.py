"""The native code's tests in C++: kernels_test.cpp and parts_test.cpp."""

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


@pytest.fixture(scope="module")
def built() -> None:
    """Configures and compiles what has changed."""
    cmake, ninja = str(tool("cmake")), str(tool("ninja"))
    run([cmake, "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"])
    run([cmake, "--build", str(BUILD)])


def run(command: list[str]) -> str:
    """What a command prints, which must end with 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.skipif(not TOOLS, reason="needs cmake, ninja and a C++ compiler")
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("program", ["kernels_test", "parts_test"])
def test_the_native_code(program: str) -> None:
    """Every instruction set against the scalar kernels; pool, packing, store, sampler and a small plan."""
    assert " 0 failures" in run([str(BUILD / program)])
