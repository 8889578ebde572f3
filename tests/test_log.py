"""Where log lines go, as the variables say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = """
import logging
from octavo import log
log.setup()
log.setup()
log.logger("octavo.x").info("hello")
logging.getLogger("octavo.x").debug("quiet")
"""


def run(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, check=False, timeout=60, env={"PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip


@pytest.mark.parametrize("maker", ["VLLM", "OCTAVO"])
def test_one_line_with_a_prefix_to_the_stream_that_is_named(maker: str) -> None:
    done = run()
    assert done.stdout == ""
    assert done.stderr.startswith("INFO ")
    assert done.stderr.endswith("[octavo.x] hello\n")
    other = run(**{f"{maker}_LOGGING_PREFIX": "(100% a) ", f"{maker}_LOGGING_STREAM": "ext://sys.stdout"})
    assert other.stderr == ""
    assert other.stdout.startswith("(100% a) INFO ")
    assert "quiet" in run(**{f"{maker}_LOGGING_LEVEL": "debug"}).stderr


def test_logging_may_be_the_programs_own() -> None:
    assert run(VLLM_CONFIGURE_LOGGING="0").stderr == ""


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "out.txt")}
    config = {
        "version": 1,
        "handlers": {"f": handler},
        "loggers": {"octavo": {"handlers": ["f"], "level": "DEBUG"}},
    }
    file.write_text(json.dumps(config))
    done = run(VLLM_LOGGING_CONFIG_PATH=str(file))
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "out.txt").read_text() == "hello\nquiet\n"
    for bad in ("{", json.dumps({"version": 7}), "[]"):
        file.write_text(bad)
        done = run(OCTAVO_LOGGING_CONFIG_PATH=str(file))
        assert done.returncode == 1
        assert f"OSError: OCTAVO_LOGGING_CONFIG_PATH={file} cannot be used" in done.stderr
