"""``octavo bench kernels``: each kernel alone, in a model's shapes, beside the limits of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.bench import report
from octavo.bench.formats import FORMATS, QUICK
from octavo.bench.kernel_cases import Bench, Case
from octavo.bench.options import Asked, at_least, engine_config
from octavo.bench.stats import median
from octavo.build.precision import activations
from octavo.config import machine
from octavo.errors import ConfigError
from octavo.ops.contract import AttentionSpec
from octavo.ops.trace import trace

if TYPE_CHECKING:
    from octavo.config.arch import Arch

_HEAD_ROWS = 64
"""The output head never sees more rows in a step: only sampled positions need logits."""
_DTYPES = {"auto": "bfloat16", "half": "float16", "float": "float32"}
_PARTS = ("linear", "attention", "between", "sampler")
_SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
}


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags."""

    rows: tuple[str, ...] = ("1", "8", "32", "512")
    contexts: tuple[str, ...] = ("512", "2048", "8192")
    formats: tuple[str, ...] = QUICK
    parts: tuple[str, ...] = _PARTS
    num_iters: int = 9
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        at_least("--num-iters", self.num_iters, 1)
        for number in (*whole(self.rows, "--rows"), *whole(self.contexts, "--contexts")):
            at_least("--rows and --contexts", number, 1)
        for name, known in ((self.formats, ("all", *FORMATS)), (self.parts, _PARTS)):
            for word in _words(name):
                if word not in known:
                    there = ", ".join(known)
                    raise ConfigError(f"octavo bench kernels has no {word!r}.", hint=f"There are: {there}.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The formats of the matrices."""
        words = _words(self.formats)
        return tuple(FORMATS) if "all" in words else tuple(dict.fromkeys(words))


def _words(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in word.split(",") if part]


def whole(words: Sequence[str], name: str) -> list[int]:
    """Whole numbers, given as words or with commas."""
    try:
        return [int(part) for part in _words(words)]
    except ValueError:
        raise ConfigError(f"{name}: {' '.join(words)!r} is not a list of whole numbers.") from None


def run(asked: Asked) -> dict[str, Any]:
    """Time every matrix of the model and what stands between; the figures as the JSON holds them."""
    options = Options(**asked.own)
    config = engine_config(asked, {})
    arch = _arch(config.model, config.hf_overrides)
    dtype = _DTYPES.get(config.dtype, config.dtype)
    seen, _ = activations(config.activation_dtype, dtype)
    bench = Bench(dtype, config.threads or machine.cpu_count(), options.num_iters, seen)
    found = limits(bench)
    return {
        "date": report.stamp(),
        "model": options.dummy or config.model or "pocket",
        "dtype": dtype,
        "threads": bench.threads,
        **found,
        "kernels": [bench.run(case) for case in _cases(bench, options, arch)],
        "machine": report.this_machine(),
    }


def _cases(bench: Bench, options: Options, arch: Arch) -> Iterator[Case]:
    """One after another, so that only the weights of one are in memory."""
    shapes, spec = shapes_of(arch)
    rows, parts = whole(options.rows, "--rows"), _words(options.parts)
    for kind in options.kinds if "linear" in parts else ():
        for out, inputs in shapes:
            counts = [n for n in rows if n <= _HEAD_ROWS or out != arch.vocab]
            yield from bench.linear(out, inputs, counts, kind=kind) if counts else ()
    contexts = whole(options.contexts, "--contexts")
    if "attention" in parts:
        for context in contexts:
            yield bench.attention(spec, 1, 1, context)
        yield bench.attention(spec, 8, 1, contexts[0])
        yield bench.attention(spec, 1, contexts[0], contexts[0])
    for count in rows if "between" in parts else ():
        yield from bench.between(arch.hidden, arch.ffn, spec, count)
    for count in [n for n in rows if n <= _HEAD_ROWS] if "sampler" in parts else ():
        for name, sampling in _SAMPLINGS.items():
            yield bench.sampler(arch.vocab, count, name, **sampling)


def _arch(model: str | None, overrides: dict[str, Any]) -> Arch:
    from octavo.config.arch import read_arch
    from octavo.launch import POCKET
    from octavo.pipeline.vocab import read_json
    from octavo.weights.hub import TEXT_FILES, resolve_model

    folder: Path = POCKET if model is None else resolve_model(model, allow_patterns=TEXT_FILES)
    raw = read_json(folder / "config.json")
    if not raw:
        raise ConfigError(f"There is no config.json in {folder}.", hint="Name the folder of a checkpoint.")
    return read_arch(raw, overrides)


def shapes_of(arch: Arch) -> tuple[list[tuple[int, int]], AttentionSpec]:
    """The different matrices of a model in the order of its step, [out, in], and its first attention."""
    from octavo.build.declare import declare

    decoder = declare(arch)
    nodes = trace(decoder).nodes
    shapes = [node.weight.shape for node in nodes if node.op == "linear" and node.weight is not None]
    return [(out, inputs) for out, inputs in dict.fromkeys(shapes)], decoder.attention_specs()[0]


def limits(bench: Bench) -> dict[str, Any]:
    """What memory gives with these threads, and what their multiply-adds come to in registers."""
    reads = [bench.read_bytes_per_s() for _ in range(bench.iterations)]
    peaks = {
        kind: median([bench.peak_ops_per_s(kind) for _ in range(bench.iterations)])
        for kind in ("float32", "bfloat16", "int8")
    }
    return {"read_bytes_per_s": median(reads), "peak_ops_per_s": peaks}


def text(result: dict[str, Any]) -> str:
    """The report for people."""
    rows = [
        (
            kernel["kernel"],
            kernel["format"],
            report.number(1e6 * kernel["seconds"], 1),
            report.number(kernel["bytes_per_s"] / 1e9, 1),
            f"{kernel['fraction_of_read_limit']:.0%}",
            report.number(kernel["ops_per_s"] / 1e9, 1) if kernel["ops_per_s"] else "-",
            f"{kernel['fraction_of_peak']:.0%} {kernel['arithmetic']}" if kernel["ops_per_s"] else "-",
        )
        for kernel in result["kernels"]
    ]
    head = (f"{result['threads']} threads", "format", "us", "GB/s", "of reading", "Gop/s", "of peak")
    peaks = [
        (f"Multiply-add peak, {kind}", f"{report.number(best / 1e9, 1)} Gop/s")
        for kind, best in result["peak_ops_per_s"].items()
    ]
    read = ("Memory read limit", f"{report.number(result['read_bytes_per_s'] / 1e9, 1)} GB/s")
    return "\n".join([report.table(head, rows), "", report.pairs([read, *peaks])])
