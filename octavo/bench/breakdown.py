"""Where the time of steps goes: the parts of a step, the ops of the plan, and the limit that memory sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.bench import report
from octavo.bench.session import PARTS, Session, Step
from octavo.bench.stats import mean, median, percentile

if TYPE_CHECKING:
    from octavo.ops.native import NativeRunnable

READ_BYTES = 256 << 20
"""At most this much is read to learn the memory's speed: far more than any cache holds."""
_MIB = 1 << 20


def parts_of(steps: Sequence[Step]) -> dict[str, Any]:
    """Mean and median milliseconds per step of every part, and of all outside the plan."""
    columns = {part: [step.parts[at] for step in steps] for at, part in enumerate(PARTS)}
    columns["other"] = [step.seconds - sum(step.parts) for step in steps]
    columns["outside_plan"] = [step.outside_s for step in steps]
    columns["step"] = [step.seconds for step in steps]
    return {
        "steps": len(steps),
        "mean_ms": {name: 1e3 * mean(values) for name, values in columns.items()},
        "median_ms": {name: 1e3 * median(values) for name, values in columns.items()},
    }


def parts_table(parts: dict[str, Any], title: str) -> str:
    """The parts as a table."""
    rows = [
        (name.replace("_", " the "), report.number(value, 3), report.number(parts["mean_ms"][name], 3))
        for name, value in parts["median_ms"].items()
    ]
    return report.table((f"{title} ({parts['steps']} steps)", "median ms", "mean ms"), rows)


class MemoryProbe:
    """Reads memory with the model's own threads: what no kernel can beat."""

    def __init__(self, model: NativeRunnable, nbytes: int) -> None:
        """Reads `nbytes` (at least 1 MiB) each time, with the fastest of the instruction sets here."""
        from octavo import _native

        self.nbytes = max(nbytes // _MIB, 1) * _MIB
        self._pool = model.pool
        self._read = _native.read_seconds
        tries = {isa: [self._read(self._pool, isa, self.nbytes) for _ in range(3)] for isa in _native.isas()}
        self._isa = min(tries, key=lambda isa: min(tries[isa][1:]))

    def seconds(self) -> float:
        """Seconds for one read of `nbytes`."""
        return self._read(self._pool, self._isa, self.nbytes)


def against_memory(session: Session, limit: int = 256) -> dict[str, Any] | None:
    """Run what is queued and read memory between its decode steps: read, decode, read, decode ...

    Each step is compared with the mean of the reads before and after it, so that a machine whose memory
    swings changes both sides. After `limit` decode steps the rest is dropped. None without decode steps or
    without the native backend.
    """
    model = session.native
    if model is None:
        return None
    probe = MemoryProbe(model, min(model.step_bytes, READ_BYTES))
    rates: list[float] = []
    fractions: list[float] = []
    seconds: list[float] = []
    tokens = 0
    before = probe.seconds()
    for step in session.steps():
        after = probe.seconds()
        if step.decodes:
            rate = 2 * probe.nbytes / (before + after)
            rates.append(rate)
            seconds.append(step.seconds)
            fractions.append(model.step_bytes / step.seconds / rate)
            tokens += step.tokens
        before = after
        if len(seconds) == limit:
            break
    session.drop()
    if not seconds:
        return None
    per_step = tokens / len(seconds)
    return {
        "step_bytes": model.step_bytes,
        "read_bytes": probe.nbytes,
        "read_bytes_per_s": median(rates),
        "read_bytes_per_s_p10": percentile(rates, 10),
        "read_bytes_per_s_p90": percentile(rates, 90),
        "decode_steps": len(seconds),
        "decode_step_ms": 1e3 * median(seconds),
        "decode_tokens_per_s": per_step / median(seconds),
        "limit_tokens_per_s": per_step * median(rates) / model.step_bytes,
        "fraction_of_limit": median(fractions),
        "fraction_of_limit_p10": percentile(fractions, 10),
        "fraction_of_limit_p90": percentile(fractions, 90),
    }


def memory_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """`against_memory` for people."""
    rate, low, high = (
        report.number(found[f"read_bytes_per_s{end}"] / 1e9, 1) for end in ("", "_p10", "_p90")
    )
    fraction, worst, best = (f"{found[f'fraction_of_limit{end}']:.0%}" for end in ("", "_p10", "_p90"))
    return [
        ("Weights read by a decode step", report.size(found["step_bytes"])),
        ("Memory read limit, same run", f"{rate} GB/s (p10 {low}, p90 {high})"),
        (
            "Decode between the reads",
            f"{report.number(found['decode_tokens_per_s'])} tokens/s "
            f"of at most {report.number(found['limit_tokens_per_s'])}",
        ),
        ("Fraction of the memory limit", f"{fraction} (p10 {worst}, p90 {best})"),
    ]


def profiled_step(session: Session, *, decode: bool) -> dict[str, Any] | None:
    """The op-by-op times of the next step that decodes (or computes prompts); None when none comes."""
    model = session.native
    if model is None:
        return None
    model.plan.set_profiling(True)
    try:
        for step in session.steps():
            if step.decodes == decode:
                return {"step_s": step.seconds, "forward_s": step.forward_s, "ops": _ops(model, step)}
            model.plan.set_profiling(True)
    finally:
        model.plan.set_profiling(False)
    return None


def _ops(model: NativeRunnable, step: Step) -> list[dict[str, Any]]:
    """The plan's ops, those of one name together, slowest first."""
    found: dict[str, list[float]] = {}
    for name, seconds in model.plan.profile():
        found.setdefault(name, []).append(seconds)
    ops = [
        {"op": name, "calls": len(times), "ms": 1e3 * sum(times), "share": sum(times) / step.forward_s}
        for name, times in found.items()
    ]
    return sorted(ops, key=lambda op: -float(op["ms"]))


def profile_table(found: dict[str, Any], title: str) -> str:
    """`profiled_step` for people."""
    rows = [(op["op"], op["calls"], report.number(op["ms"], 3), f"{op['share']:.1%}") for op in found["ops"]]
    rows.append(("the plan", "", report.number(1e3 * found["forward_s"], 3), "100.0%"))
    rows.append(("the whole step", "", report.number(1e3 * found["step_s"], 3), ""))
    return report.table((title, "calls", "ms", "of the plan"), rows)
