"""Fails when the package names a way to run code from data: pickle, eval and their kind (HARDENING S1)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("torch", "load"),
    ("os", "system"),
}


def findings(path: Path) -> list[str]:
    """`file:line: what` for every forbidden import or call in one file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                found.append(f"{path}:{node.lineno}: {function.id}()")
            if (
                isinstance(function, ast.Attribute)
                and isinstance(function.value, ast.Name)
                and (function.value.id, function.attr) in METHODS
            ):
                found.append(f"{path}:{node.lineno}: {function.value.id}.{function.attr}()")
        found += [f"{path}:{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
    return found


def main() -> int:
    """Scan the package; 1 when anything is found."""
    found = [line for path in sorted(Path("octavo").rglob("*.py")) for line in findings(path)]
    print("\n".join(found) or "No code from data.", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
