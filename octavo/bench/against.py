"""``octavo bench latency --against NAMES``: Octavo and other engines in turns (A B C A B C ...).

A machine's memory and clocks swing; turns a moment apart see the same weather, so the ratio within a round
holds where the figures do not. Octavo's turns stand between reads of memory (decoding) or measurements of the
multiply-add peak (prompts).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.bench import report
from octavo.bench.figures import Octavo
from octavo.bench.options import Asked, at_least, engine_config
from octavo.bench.peers import PEERS, Figure, Measure, Work, peer
from octavo.bench.session import Session
from octavo.bench.stats import median
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig

FIGURES = ("pp512", "b1", "b8", "b32")
_PROMPT, _OUTPUT = 128, 32
"""Tokens before and of a decode figure."""
_CONTEXT = 4096
_SETTLE_S = 0.3
"""Between turns: a peer's threads may spin for a moment after its own."""


@dataclass(frozen=True)
class Options:
    """Those of the latency benchmark's flags that a comparison reads."""

    against: str
    figures: tuple[str, ...] = FIGURES
    peer_command: tuple[str, ...] = ()
    peer_model: tuple[str, ...] = ()
    rounds: int = 5
    input_len: int = _PROMPT
    output_len: int = _OUTPUT
    dummy: str | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "input_len", "output_len"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        for name in self.peers:
            if name not in PEERS:
                raise ConfigError(f"--against: there is no {name!r}.", hint=f"There are: {', '.join(PEERS)}.")

    @property
    def peers(self) -> list[str]:
        """Their names, in the order of the turns."""
        return list(dict.fromkeys(name for name in self.against.split(",") if name))

    def read_figures(self) -> list[Figure]:
        """What is measured."""
        words = [word for words in self.figures for word in words.split(",") if word]
        return [Figure.read(word, self.input_len, self.output_len) for word in words]


def run(asked: Asked) -> dict[str, Any]:
    """Start the peers and Octavo on one checkpoint, then measure; the figures as the JSON holds them."""
    own = {name: value for name, value in asked.own.items() if name in Options.__dataclass_fields__}
    if "batch_size" in asked.own and "figures" not in own:
        own["figures"] = ("pp512", f"b{asked.own['batch_size']}")
    options = Options(**own)
    if asked.own.get("n", 1) != 1:
        raise ConfigError("--against compares one answer to each prompt.", hint="Leave out --n.")
    if options.dummy:
        from octavo.bench.checkpoint import random_checkpoint

        asked.settings.engine.update(model=str(random_checkpoint(options.dummy)), load_format="auto")
    figures = options.read_figures()
    most = max(figure.batch for figure in figures)
    config = engine_config(asked, {"max_num_seqs": max(64, most), "max_model_len": _CONTEXT})
    from octavo import launch

    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        work = work_of(options, config)
        sides = _start(options.peers, work, stack, missing)
        session = Session(launch.build(config))
        octavo = Octavo(session, config, asked.seed)
        found = compare(octavo, sides, figures, options.rounds)
    return {
        "date": report.stamp(),
        "model": options.dummy or config.model or "pocket",
        "dtype": config.dtype,
        "quantization": config.quantization,
        "threads": work.threads,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "against": found,
        "missing": missing,
        "machine": report.this_machine(),
    }


def _start(
    names: Sequence[str], work: Work, stack: contextlib.ExitStack, missing: dict[str, str]
) -> dict[str, Measure]:
    """The peers that are there; the others with the reason in `missing`. ConfigError when none is."""
    sides: dict[str, Measure] = {}
    for name in names:
        try:
            title, measure = stack.enter_context(peer(name, work))
        except OctavoError as error:
            if len(names) == 1:
                raise
            missing[name] = str(error)
        else:
            sides[title] = measure
    if not sides:
        raise ConfigError("; ".join(missing.values()) or "--against names no engine.")
    return sides


def work_of(options: Options, config: EngineConfig) -> Work:
    """What the peers are told."""
    from octavo.config import machine
    from octavo.config.arch import read_arch
    from octavo.launch import POCKET
    from octavo.pipeline.vocab import read_json
    from octavo.weights.hub import resolve_model

    folder = resolve_model(config.model) if config.model else POCKET
    raw = read_json(folder / "config.json")
    if not raw:
        raise ConfigError(f"There is no config.json in {folder}.", hint="Name the folder of a checkpoint.")
    arch = read_arch(raw, config.hf_overrides)
    dtype = {"auto": arch.dtype or "bfloat16", "half": "float16", "float": "float32"}.get(
        config.dtype, config.dtype
    )
    bits = {"int8": 8, "fp8": 8, "int4": 4, "bitsandbytes": 4}.get(config.quantization or "")
    return Work(
        model=folder,
        dtype=dtype,
        bits=bits or (32 if dtype == "float32" else 16),
        threads=config.threads or machine.cpu_count(),
        vocab=arch.vocab,
        commands=_named(options.peer_command, options.peers, "--peer-command"),
        models=_named(options.peer_model, options.peers, "--peer-model"),
    )


def _named(words: Sequence[str], names: Sequence[str], flag: str) -> dict[str, str]:
    """``llamacpp=PATH`` words by name; a word without a name belongs to the only peer."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if equals and name in PEERS:
            found[name] = path
        elif len(names) == 1:
            found[names[0]] = word
        else:
            raise ConfigError(f"{flag}: {word!r} names no peer.", hint=f"Such as {flag} {names[0]}={word}.")
    return found


# ---- the comparison -------------------------------------------------------------------------------------


def compare(
    octavo: Octavo, sides: Mapping[str, Measure], figures: Sequence[Figure], rounds: int
) -> list[dict[str, Any]]:
    """For each figure `rounds` rounds after one that does not count; ratios above 1: Octavo is faster."""
    found = []
    for figure in figures:
        taken: list[dict[str, float]] = []
        fractions: list[float] = []
        for at in range(rounds + 1):
            time.sleep(_SETTLE_S)
            rate, fraction = octavo.turn(figure)
            one = {"octavo": rate}
            for title, measure in sides.items():
                time.sleep(_SETTLE_S)
                one[title] = measure(figure)
            if at:
                taken.append(one)
                fractions += [] if fraction is None else [fraction]
        found.append({**_ratios(figure, taken), "fraction_of_limit": median(fractions)})
    return found


def _ratios(figure: Figure, taken: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    names = [name for name in taken[0] if name != "octavo"]
    ratios = {name: [one["octavo"] / one[name] for one in taken] for name in names}
    return {
        "figure": figure.name,
        "prompt": figure.prompt,
        "batch": figure.batch,
        "output": figure.output,
        "rounds": taken,
        "tokens_per_s": {name: median([one[name] for one in taken]) for name in ("octavo", *names)},
        "ratio": {
            name: {"median": median(values), "min": min(values), "max": max(values)}
            for name, values in ratios.items()
        },
        "best_peer": min(names, key=lambda name: median(ratios[name])),
    }


def text(result: Mapping[str, Any]) -> str:
    """The comparison for people."""
    rows = []
    for found in result["against"]:
        own = found["tokens_per_s"]["octavo"]
        limit = found["fraction_of_limit"]
        for at, (name, ratio) in enumerate(found["ratio"].items()):
            best = " *" if name == found["best_peer"] and len(found["ratio"]) > 1 else ""
            rows.append(
                (
                    found["figure"] if not at else "",
                    report.number(own, 1) if not at else "",
                    ("-" if limit is None or limit != limit else f"{limit:.0%}") if not at else "",
                    f"{name}{best}",
                    report.number(found["tokens_per_s"][name], 1),
                    f"{ratio['median']:.2f}x",
                    f"{ratio['min']:.2f} to {ratio['max']:.2f}",
                )
            )
    rounds = len(result["against"][0]["rounds"])
    head = (
        f"tok/s, {rounds} rounds in turns",
        "octavo",
        "of the limit",
        "peer",
        "peer's",
        "octavo is",
        "spread",
    )
    lines = [f"Missing: {name}: {why}" for name, why in result["missing"].items()]
    return "\n".join([*lines, report.table(head, rows), "", "* the fastest peer of the figure"])
