"""Prints where the tree stands against its size budget (docs/design.md): lines by folder, long files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

BUDGET = {"Python": 20_000, "C++": 8_000}
LONG_FILE = 500


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """One line per folder, the totals beside the budget, and the files past the comfortable length."""
    python = {p: lines(p) for p in Path("octavo").rglob("*.py")}
    native = {p: lines(p) for p in Path("csrc").iterdir() if p.suffix in {".cpp", ".h", ".inl"}}
    folders: Counter[str] = Counter()
    for path, n in python.items():
        folders["/".join(path.parts[:2])] += n
    for folder, n in sorted(folders.items()):
        print(f"{n:7,}  {folder}")
    for name, files in (("Python", python), ("C++", native)):
        print(f"{sum(files.values()):7,}  {name} (budget {BUDGET[name]:,})")
    for path, n in sorted((python | native).items(), key=lambda item: -item[1]):
        if n > LONG_FILE:
            print(f"{n:7,}  long: {path}")


if __name__ == "__main__":
    main()
