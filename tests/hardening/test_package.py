"""Rules over the whole package: no code from data, no cache without a bound, one listening port."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
from live import Start

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "octavo").rglob("*.py"))


def script(path: str) -> ModuleType:
    """A script outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_runs_code_from_data(tmp_path: Path) -> None:
    findings = script("tools/forbidden.py").findings
    assert [line for path in FILES for line in findings(path)] == []
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nimport torch\ntorch.load('x')\neval('1')\n")
    assert len(findings(bad)) == 3


def test_every_cache_has_a_bound() -> None:
    unbounded = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for mark in node.decorator_list:
                call = mark.func if isinstance(mark, ast.Call) else mark
                name = call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")
                without_arguments = not (node.args.args or node.args.kwonlyargs)
                bounded = isinstance(mark, ast.Call) and any(
                    k.arg == "maxsize" and isinstance(k.value, ast.Constant) and k.value.value
                    for k in mark.keywords
                )
                if name in ("cache", "lru_cache") and not bounded and not without_arguments:
                    unbounded.append(f"{path}:{node.lineno} {node.name}")
    assert unbounded == []


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_one_listening_port_on_loopback(start: Start) -> None:
    def listening() -> set[tuple[str, int]]:
        own = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                own.add(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                    address, port = fields[1].split(":")
                    found.add((address, int(port, 16)))
        return found

    before = listening()
    live = start()
    assert listening() - before == {("0100007F", live.port)}
