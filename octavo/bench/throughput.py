"""``octavo bench throughput``: all requests at once, as fast as they go."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.bench import breakdown, figures, report
from octavo.bench.data import Sample, Wanted, samples
from octavo.bench.options import Asked, at_least, engine_config
from octavo.bench.session import Ask, Session
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig

GRID = ("b1", "b2", "b4", "b8", "b16", "b32", "b64")
_GRID_OUTPUT, _GRID_ROUNDS = 16, 3


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags; vLLM's names."""

    dataset_name: str = "random"
    dataset_path: str | None = None
    num_prompts: int = 64
    input_len: int | None = None
    output_len: int | None = None
    range_ratio: float = 0.0
    prefix_len: int = 0
    n: int = 1
    grid: bool = False
    async_engine: bool = False
    disable_detokenize: bool = False
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        at_least("--num-prompts", self.num_prompts, 1)
        at_least("--n", self.n, 1)

    def wanted(self, seed: int, vocab: int) -> Wanted:
        """The data that is asked for."""
        return Wanted(
            self.dataset_name,
            self.dataset_path,
            self.num_prompts,
            self.input_len,
            self.output_len,
            self.range_ratio,
            self.prefix_len,
            seed,
            vocab,
        )


def run(asked: Asked) -> dict[str, Any]:
    """Load the model and measure; the figures as the JSON holds them."""
    options = Options(**asked.own)
    if options.grid:
        return _grid(options, asked)
    config = engine_config(asked, engine_defaults(options))
    from octavo import launch

    session = Session(launch.build(config))
    found = samples(options.wanted(asked.seed, session.launched.arch.vocab))
    return {**_asked_for(options, config), **measure(session, found, options)}


def _grid(options: Options, asked: Asked) -> dict[str, Any]:
    """Decoding in batches of 1 to 64 after prompts of 128 tokens, on one engine."""
    from octavo import launch

    wanted = figures.read(GRID, options.output_len or _GRID_OUTPUT)
    config = engine_config(asked, figures.engine_defaults(wanted))
    session = Session(launch.build(config))
    found = figures.measure(session, config, wanted, _GRID_ROUNDS, asked.seed)
    return {**_asked_for(options, config), "grid": found}


def engine_defaults(options: Options) -> dict[str, Any]:
    """A queue that takes every request of the run."""
    return {"max_queued_requests": max(1024, options.num_prompts * options.n), "max_queued_tokens": 1 << 40}


def measure(session: Session, found: list[Sample], options: Options) -> dict[str, Any]:
    """Run all samples once, after one short warm-up; everything that is measured, as the JSON holds it."""
    asks = [Ask(_ids(session, sample.prompt), sample.output_len) for sample in found]
    session.submit([Ask(asks[0].prompt, 1)])
    for _ in session.steps():
        pass
    session.launched.engine.reset_prefix_cache()
    before = session.launched.engine.stats()
    begun = time.perf_counter()
    session.submit(asks, n=options.n, detokenize=not options.disable_detokenize)
    steps = list(session.steps())
    elapsed = time.perf_counter() - begun
    after = session.launched.engine.stats()
    prompt_tokens = sum(len(ask.prompt) for ask in asks)
    output_tokens = sum(step.tokens for step in steps)
    decodes = [step for step in steps if step.decodes]
    return {
        "elapsed_time": elapsed,
        "num_requests": len(asks),
        "total_num_tokens": prompt_tokens + output_tokens,
        "total_prompt_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "requests_per_second": len(asks) / elapsed,
        "tokens_per_second": (prompt_tokens + output_tokens) / elapsed,
        "output_tokens_per_second": output_tokens / elapsed,
        "preemptions": after.preemptions_total - before.preemptions_total,
        "prefix_hit_tokens": after.prefix_hit_tokens_total - before.prefix_hit_tokens_total,
        "breakdown": {"all": breakdown.parts_of(steps), "decode": breakdown.parts_of(decodes)},
    }


def _ids(session: Session, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    if session.launched.preparer.tokenizer is None:
        raise ConfigError("Prompts from a file need a tokenizer, and the model has none.")
    return tuple(session.launched.preparer.encode_text(prompt, True))


def _asked_for(options: Options, config: EngineConfig) -> dict[str, Any]:
    return {
        "date": report.stamp(),
        "model": options.dummy or config.model or "pocket",
        "dtype": config.dtype,
        "dataset_name": options.dataset_name,
        "n": options.n,
        "machine": report.this_machine(),
    }


def text(result: dict[str, Any]) -> str:
    """The report for people; its first lines are vLLM's."""
    if "grid" in result:
        return figures.text(result["grid"])
    lines = [
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s",
        f"Total num prompt tokens:  {result['total_prompt_tokens']}",
        f"Total num output tokens:  {result['total_output_tokens']}",
        "",
        breakdown.parts_table(result["breakdown"]["all"], "A step"),
    ]
    if result["breakdown"]["decode"]["steps"]:
        lines += ["", breakdown.parts_table(result["breakdown"]["decode"], "A step that only decodes")]
    if result["preemptions"]:
        lines += ["", f"Preemptions: {result['preemptions']} (more --kv-cache-memory avoids them)"]
    return "\n".join(lines)
