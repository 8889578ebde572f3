"""``octavo collect-env``: what a bug report needs, and nothing private (no paths, hosts or keys)."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "numpy",
    "tokenizers",
    "sentencepiece",
    "jinja2",
    "msgspec",
    "starlette",
    "uvicorn",
    "prometheus-client",
    "huggingface_hub",
    "pyyaml",
    "tqdm",
    "torch",
    "transformers",
)

_KERNEL_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def main(command: str, words: Sequence[str]) -> int:
    """Print one line per fact; always succeeds."""
    from octavo.cli.common import wants_help

    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    for name, value in facts():
        print(f"{name:<20}{value}")
    return 0


def facts() -> list[tuple[str, str]]:
    """(name, value) of everything that is known here."""
    from octavo import __version__

    found = [
        ("octavo", __version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        ("libc", " ".join(platform.libc_ver()) or "unknown"),
        ("cpu", _cpu_name()),
        ("cpu flags", _cpu_flags()),
        ("cores", _known(_cores)),
        ("memory", _known(_memory)),
        ("native", _native()),
    ]
    found += [(name, _version(name)) for name in PACKAGES]
    found += [(name, value) for name, value in sorted(os.environ.items()) if _worth_showing(name)]
    return found


def _worth_showing(name: str) -> bool:
    secret = any(word in name for word in ("KEY", "TOKEN", "SECRET", "PASSWORD"))
    return name.startswith(("OCTAVO_", "VLLM_CPU", "OMP_", "HF_HUB_OFFLINE")) and not secret


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _known(read: Callable[[], str]) -> str:
    """The fact, or why it is not known: this command must answer on every machine."""
    try:
        return read()
    except Exception as error:
        return f"unknown ({type(error).__name__})"


def _cores() -> str:
    from octavo.config import machine

    allowed, physical = len(machine.affinity()), len(machine.physical_cpus())
    return f"{os.cpu_count()} logical, {allowed} allowed, {physical} physical, {machine.cpu_count()} to use"


def _memory() -> str:
    from octavo.config import machine

    total, free = machine.total_memory_bytes(), machine.free_memory_bytes()
    return f"{total / 2**30:.1f} GiB in all, {free / 2**30:.1f} GiB free (containers' limits counted)"


def _native() -> str:
    try:
        from octavo import _native
    except ImportError:
        return "not built for this Python"
    return f"built; this machine runs {', '.join(_native.isas())}"


def _cpu_lines() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _cpu_name() -> str:
    lines = _cpu_lines()
    return lines.get("model name") or lines.get("Hardware") or platform.processor() or platform.machine()


def _cpu_flags() -> str:
    """The flags that choose kernels."""
    flags = (_cpu_lines().get("flags") or _cpu_lines().get("Features") or "").split()
    return " ".join(flag for flag in _KERNEL_FLAGS if flag in flags) or f"unknown on {sys.platform}"
