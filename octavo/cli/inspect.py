"""``octavo inspect``: what a model is and needs, from its headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from octavo.cli.common import read_words, wants_help
from octavo.cli.inspect_flags import INSPECT
from octavo.config.environment import show_bytes

if TYPE_CHECKING:
    from octavo.inspection import Memory, Report
    from octavo.lora.report import AdapterReport


def main(command: str, words: Sequence[str]) -> int:
    """Print the report; 0 also for a model that does not run here: the report says why."""
    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    settings = read_words(words, INSPECT)
    from octavo import log

    log.setup()
    from octavo.config.engine import EngineConfig
    from octavo.inspection import Report, inspect

    report = inspect(EngineConfig(**settings.engine), settings.cli.get("base"))
    if settings.cli.get("json"):
        print(json.dumps(report.plain(), indent=2))
    else:
        print("\n".join(_lines(report) if isinstance(report, Report) else _adapter(report)))
    return 0


def _adapter(report: AdapterReport) -> Iterator[str]:
    yield f"{report.model}: a LoRA adapter for {report.base or 'a base that it does not name'}"
    alpha = "" if report.alpha is None else f", alpha {report.alpha:g}"
    yield _row("rank", ", ".join([f"{report.rank}{alpha}", *report.kinds]))
    yield _row(
        "adapts", ", ".join(f"{name} ({count})" for name, count in report.modules.items()) or "nothing"
    )
    yield _row("parameters", f"{_count(report.parameters)}, {', '.join(report.dtypes)}")
    yield _row("files", ", ".join(f"{name}, {show_bytes(nbytes)}" for name, nbytes in report.files.items()))
    if report.checked_against is None:
        yield _row("base", "not looked at: name it with --base MODEL")
    else:
        yield _row("base", f"looked at in {report.checked_against}")
    yield _row("can be served", "yes" if report.runs else f"no. {report.why_not}")


def _lines(report: Report) -> Iterator[str]:
    family = f"octavo/models/{report.family}.py" if report.family else "not supported"
    yield f"{report.model}: {report.architecture} ({family})"
    if report.shape:
        yield _row("shape", ", ".join(f"{key.replace('_', ' ')} {n:,}" for key, n in report.shape.items()))
    active = report.active_parameters
    used = f", {_count(active)} of them for each token" if 0 < active < report.parameters else ""
    yield _row("parameters", _count(report.parameters) + used)
    names = list(report.files)
    shown = names[0] if len(names) == 1 else f"{len(names)} files"
    if names:
        yield _row("files", f"{shown}, {show_bytes(sum(report.files.values()))} ({report.storage})")
    stored = report.quantization or report.dtype or "not said"
    yield _row("stored as", stored + (f", runs in {report.runs_in}" if report.runs_in else ""))
    for group in report.groups:
        bits = group.bits_per_weight
        said = f"{bits:.2f} bits a weight" if bits is not None else "bits unknown"
        yield f"  {group.role:<14}{group.format}: {group.tensors} tensors, {show_bytes(group.bytes)}, {said}"
    yield _row("tokenizer", report.tokenizer or "none")
    yield _row("chat template", report.chat_template or "none")
    if report.memory:
        yield from _memory(report.memory, report.context_limit)
    yield _row("runs here", "yes" if report.runs else f"no. {report.why_not}")


def _memory(memory: Memory, limit: int) -> Iterator[str]:
    yield _row(
        "memory",
        f"{show_bytes(memory.total)}: weights {show_bytes(memory.weights)}, "
        f"KV cache {show_bytes(memory.kv)} for {memory.context:,} tokens "
        f"({show_bytes(memory.kv_per_token)} a token), process about {show_bytes(memory.process)}; "
        f"{show_bytes(memory.free)} are free",
    )
    yield _row(
        "context",
        f"the model's {limit:,} tokens; {memory.largest_context:,} fit in memory, "
        f"{memory.default_context:,} are taken by default",
    )


def _row(key: str, text: str) -> str:
    return f"{key:<16}{text}"


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:,}"
