"""Scripts in the manner of those that people have for vLLM, one for each thing they do (tests/llm/scripts).

Each is run twice in a process of its own: unchanged under ``octavo.as_vllm``, and as a script for Octavo.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")
ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.py"))
ELSEWHERE = {"vllm.v1.metrics.reader": "octavo.types.metrics", "vllm.config": "octavo.llm.configs"}
"""Modules that a script for Octavo finds under another name."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.parametrize("own", [True, False], ids=["octavo", "as_vllm"])
def test_a_script_runs(script: Path, own: bool, tmp_path: Path) -> None:
    code = script.read_text()
    if own:
        for theirs, ours in ELSEWHERE.items():
            code = code.replace(theirs, ours)
        code = code.replace("from vllm", "from octavo")
    copy = tmp_path / script.name
    copy.write_text(code)
    words = [str(copy)] if own else ["-m", "octavo.as_vllm", str(copy)]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, timeout=120, check=False, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(script.stem), "the last line of the script"


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10
