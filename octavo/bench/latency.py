"""``octavo bench latency``: one batch of equal requests, run again and again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.bench import breakdown, figures, report
from octavo.bench.options import Asked, at_least, engine_config
from octavo.bench.session import Session, Step, random_asks
from octavo.bench.stats import mean, percentile

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig

PERCENTILES = (10, 25, 50, 75, 90, 99)
GRID = ("pp128", "pp512", "pp2048", "b1@0", "b1@2048", "b1@8192")
_GRID_OUTPUT = 32


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags; vLLM's names. From `against` on: see octavo.bench.against."""

    input_len: int = 32
    output_len: int = 128
    batch_size: int = 8
    n: int = 1
    temperature: float = 1.0
    num_iters_warmup: int = 2
    num_iters: int = 10
    profile: bool = False
    grid: bool = False
    against: str | None = None
    figures: tuple[str, ...] = ()
    peer_command: tuple[str, ...] = ()
    peer_model: tuple[str, ...] = ()
    rounds: int = 5
    disable_detokenize: bool = False
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "batch_size", "n", "num_iters", "rounds"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)


def run(asked: Asked) -> dict[str, Any]:
    """Load the model and measure; the figures as the JSON holds them."""
    options = Options(**asked.own)
    if options.against is not None:
        from octavo.bench import against

        return against.run(asked)
    if options.grid:
        return _grid(options, asked)
    config = engine_config(asked, engine_defaults(options))
    from octavo import launch

    session = Session(launch.build(config))
    return {**_asked_for(options, config), **measure(session, options, asked.seed)}


def _grid(options: Options, asked: Asked) -> dict[str, Any]:
    """Prompts and contexts of several lengths, on one engine."""
    from octavo import launch

    wanted = figures.read(options.figures or GRID, asked.own.get("output_len", _GRID_OUTPUT))
    config = engine_config(asked, figures.engine_defaults(wanted))
    session = Session(launch.build(config))
    facts = {name: value for name, value in _asked_for(options, config).items() if not name.endswith("_len")}
    return {**facts, "grid": figures.measure(session, config, wanted, options.rounds, asked.seed)}


def engine_defaults(options: Options) -> dict[str, Any]:
    """Room for the batch; no prefix cache, as in vLLM's own."""
    return {"max_num_seqs": max(64, options.batch_size * options.n), "enable_prefix_caching": False}


def measure(session: Session, options: Options, seed: int = 0) -> dict[str, Any]:
    """Everything that is measured, as the JSON holds it. Times in seconds unless the name says otherwise."""
    rng = random.Random(seed)
    for _ in range(options.num_iters_warmup):
        _run_batch(session, options, rng)
    runs = [_run_batch(session, options, rng) for _ in range(options.num_iters)]
    latencies = [seconds for seconds, _ in runs]
    steps = [step for _, taken in runs for step in taken]
    prefills = [step for step in steps if step.prompt_tokens]
    decodes = [step for step in steps if step.decodes]
    result: dict[str, Any] = {
        "avg_latency": mean(latencies),
        "latencies": latencies,
        "percentiles": {str(p): percentile(latencies, p) for p in PERCENTILES},
        "prefill_tokens_per_s": _rate(sum(step.prompt_tokens for step in prefills), prefills),
        "decode_tokens_per_s": _rate(sum(step.tokens for step in decodes), decodes),
        "breakdown": {"prefill": breakdown.parts_of(prefills), "decode": breakdown.parts_of(decodes)},
    }
    _submit(session, options, rng)
    result["memory"] = breakdown.against_memory(session)
    result["profile"] = _profile(session, options, rng) if options.profile else None
    return result


def _submit(session: Session, options: Options, rng: random.Random) -> None:
    vocab = session.launched.arch.vocab
    asks = random_asks(options.batch_size, options.input_len, options.output_len, vocab, rng)
    session.submit(
        asks, n=options.n, temperature=options.temperature, detokenize=not options.disable_detokenize
    )


def _run_batch(session: Session, options: Options, rng: random.Random) -> tuple[float, list[Step]]:
    begun = time.perf_counter()
    _submit(session, options, rng)
    steps = list(session.steps())
    return time.perf_counter() - begun, steps


def _rate(tokens: int, steps: list[Step]) -> float | None:
    seconds = sum(step.seconds for step in steps)
    return tokens / seconds if seconds else None


def _profile(session: Session, options: Options, rng: random.Random) -> dict[str, Any]:
    """One prefill step, and the first decode step after it, op by op."""
    _submit(session, options, rng)
    prefill = breakdown.profiled_step(session, decode=False)
    decode = breakdown.profiled_step(session, decode=True)
    session.drop()
    return {"prefill": prefill, "decode": decode}


def _asked_for(options: Options, config: EngineConfig) -> dict[str, Any]:
    return {
        "date": report.stamp(),
        "model": options.dummy or config.model or "pocket",
        "dtype": config.dtype,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "batch_size": options.batch_size,
        "n": options.n,
        "machine": report.this_machine(),
    }


def text(result: dict[str, Any]) -> str:
    """The report for people; its first lines are vLLM's."""
    if "against" in result:
        from octavo.bench import against

        return against.text(result)
    if "grid" in result:
        return figures.text(result["grid"])
    lines = [f"Avg latency: {result['avg_latency']} seconds"]
    lines += [f"{p}% percentile latency: {value} seconds" for p, value in result["percentiles"].items()]
    rows = [
        ("Prefill", f"{report.number(result['prefill_tokens_per_s'])} tokens/s"),
        ("Decode", f"{report.number(result['decode_tokens_per_s'])} tokens/s"),
    ]
    if result["memory"]:
        rows += breakdown.memory_rows(result["memory"])
    lines += ["", report.pairs(rows)]
    for kind in ("decode", "prefill"):
        if result["breakdown"][kind]["steps"]:
            lines += ["", breakdown.parts_table(result["breakdown"][kind], f"A {kind} step")]
    for kind, found in (result["profile"] or {}).items():
        if found:
            lines += ["", breakdown.profile_table(found, f"One {kind} step, op by op")]
    return "\n".join(lines)
