"""``octavo bench quality``: perplexity on a text, through the same engine that serves.

The text is cut into windows that share nothing. A tokenizer that begins texts with a token (BOS) gives it to
each window; every token after a window's first is predicted from those before it. Perplexity is exp(mean
negative log-likelihood), Jelinek et al. 1977.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.bench import report
from octavo.bench.options import Asked, at_least, engine_config
from octavo.errors import ConfigError, OctavoError
from octavo.types.job import Job
from octavo.types.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.launch import Launched

_TOGETHER = 16
"""Windows in the engine at a time."""


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags."""

    text: str | None = None
    window: int = 256
    max_windows: int | None = None
    add_special_tokens: bool = True
    output_json: str | None = None

    def __post_init__(self) -> None:
        at_least("--window", self.window, 2)
        if self.max_windows is not None:
            at_least("--max-windows", self.max_windows, 1)


def run(asked: Asked) -> dict[str, Any]:
    """Load the model and measure; the figures as the JSON holds them."""
    options = Options(**asked.own)
    if options.text is None:
        raise ConfigError("octavo bench quality needs a text.", hint="Name a file with --text FILE.")
    try:
        text = Path(options.text).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--text: cannot read {options.text}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--text: {options.text} is not UTF-8 text.") from None
    config = engine_config(asked, {"enable_prefix_caching": False})
    from octavo import launch

    launched = launch.build(config)
    return {
        "date": report.stamp(),
        "model": config.model or "pocket",
        "dtype": config.dtype,
        "text": options.text,
        "window": options.window,
        **measure(launched, text, options),
        "machine": report.this_machine(),
    }


def measure(launched: Launched, text: str, options: Options) -> dict[str, Any]:
    """tokens (predicted ones), nats, perplexity, bits_per_byte of `text`. Raises BadRequest when a window is
    longer than the context, ConfigError when the text has not two tokens.
    """
    encode = launched.preparer.encode_text
    ids = tuple(encode(text, False))
    begin = _beginning(encode("a", True), encode("a", False)) if options.add_special_tokens else ()
    step = max(options.window - len(begin), 1)
    windows = [begin + ids[start : start + step] for start in range(0, len(ids), step)]
    windows = [window for window in windows[: options.max_windows] if len(window) > 1]
    if not windows:
        raise ConfigError(f"The text has {len(ids)} tokens; at least 2 are needed.")
    begun = time.perf_counter()
    nats = list(_nats(launched, windows))
    seconds = time.perf_counter() - begun
    tokens = sum(len(window) - 1 for window in windows)
    total = math.fsum(nats)
    whole = options.max_windows is None
    return {
        "windows": len(windows),
        "tokens": tokens,
        "nats": total,
        "nats_per_token": total / tokens,
        "perplexity": math.exp(total / tokens),
        "bits_per_byte": total / math.log(2) / len(text.encode()) if whole else None,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
    }


def _beginning(marked: Sequence[int], plain: Sequence[int]) -> tuple[int, ...]:
    """The special tokens before a text: what stands in `marked` in front of `plain`."""
    for at in range(len(marked) - len(plain) + 1):
        if tuple(marked[at : at + len(plain)]) == tuple(plain):
            return tuple(marked[:at])
    return ()


def _nats(launched: Launched, windows: Sequence[Sequence[int]]) -> Iterator[float]:
    """The negative log-likelihood of every predicted token, in the order in which windows end."""
    engine = launched.engine
    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False
    )
    waiting = iter(enumerate(windows))
    running = 0
    while True:
        while running < _TOGETHER and (item := next(waiting, None)):
            number, window = item
            job = Job(id=f"window-{number}", sampling=sampling, prompt_ids=tuple(window))
            (request,) = launched.preparer.prepare(job).requests
            engine.submit(request)
            running += 1
        if not running:
            return
        for out in engine.step():
            if out.finish is None:
                continue
            if out.finish.reason == "error":
                raise OctavoError(f"{out.id} failed: {out.finish.error}")
            running -= 1
            yield from (-entry.values[0] for entry in out.prompt_logprobs if entry is not None)


def text(result: dict[str, Any]) -> str:
    """The report for people."""
    rows = [
        ("Perplexity", f"{result['perplexity']:.4f}"),
        ("Nats per token", f"{result['nats_per_token']:.5f}"),
        ("Nats", f"{result['nats']:.2f}"),
        ("Tokens predicted", f"{result['tokens']:,} in {result['windows']:,} windows of {result['window']}"),
        ("Speed", f"{result['tokens_per_s']:,.0f} tokens/s"),
    ]
    if result["bits_per_byte"] is not None:
        rows.insert(3, ("Bits per byte", f"{result['bits_per_byte']:.4f}"))
    return report.pairs(rows)
