"""Results for people (tables on stdout) and for programs (JSON), with the machine they come from."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from octavo import __version__
from octavo.config import machine


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under their heads: the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    shown = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)
        )
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one a line, the values under each other."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name + ':':<{width + 2}}{value}" for name, value in listed)


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def size(nbytes: float) -> str:
    """Bytes in decimal units, as bandwidths are given."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} bytes" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def stamp() -> str:
    """Now, as vLLM writes it into file names: 20261120-093015."""
    return time.strftime("%Y%m%d-%H%M%S")


def this_machine() -> dict[str, Any]:
    """What a figure must be read with: processor, cores, memory, software."""
    return {
        "cpu": _cpu_name(),
        "cores": machine.cpu_count(),
        "memory_bytes": machine.total_memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "octavo": __version__,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_json(path: str, result: Any) -> None:
    """Write `result`; numbers that JSON has not (NaN, infinities) become null."""
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(finite(result), indent=2) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None, in lists and dictionaries too."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
