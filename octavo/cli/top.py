"""``octavo top``: a running server in the terminal, from its /metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from octavo.cli.common import read_words, wants_help
from octavo.cli.remote import read
from octavo.cli.scrape import Look, look, quantiles, rate
from octavo.cli.top_flags import TOP
from octavo.errors import ConfigError, OctavoError

_URL = "http://localhost:8000"
_INTERVAL_S = 2.0
_SHARES = (0.5, 0.95, 0.99)
_LATENCIES = {
    "First token": "time_to_first_token_seconds",
    "Between tokens": "inter_token_latency_seconds",
    "In the queue": "request_queue_time_seconds",
    "Whole request": "e2e_request_latency_seconds",
}
_BAR = 24


def main(command: str, words: Sequence[str]) -> int:
    """Show frames until Ctrl-C, or one. Raises ServerError when the server does not answer at first."""
    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    settings = read_words(words, TOP)
    url = str(settings.cli.get("url") or settings.engine.get("model") or _URL)
    key = settings.cli.get("api_key") or os.environ.get("OPENAI_API_KEY")
    interval_s = float(settings.cli.get("interval") or _INTERVAL_S)
    try:
        from rich.console import Console
    except ImportError:
        raise ConfigError(
            "octavo top needs rich, which is not there.", hint="pip install 'octavo[top]'"
        ) from None

    def now() -> Look:
        return look(read(url, "/metrics", key).decode("utf-8", "replace"), time.monotonic())

    console = Console()
    before = now()
    if settings.cli.get("once"):
        time.sleep(interval_s)
        console.print(frame(url, before, now()))
        return 0
    return _watch(console, url, before, interval_s, now)


def _watch(console: Any, url: str, before: Look, interval_s: float, now: Any) -> int:
    """Frames until Ctrl-C; a server that goes away, or starts again, is waited for."""
    from rich.live import Live
    from rich.text import Text

    with Live(Text(f"Reading {url} ..."), console=console, screen=console.is_terminal) as live:
        while True:
            time.sleep(interval_s)
            try:
                seen = now()
            except OctavoError as error:
                live.update(Text(f"{error}\nWaiting for it; Ctrl-C ends.", style="red"))
                continue
            live.update(frame(url, before, seen), refresh=True)
            before = seen


def frame(url: str, before: Look, now: Look) -> Any:
    """One frame, a rich renderable, of what happened between two looks."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    numbers = Table.grid(padding=(0, 2))
    for row in _rows(before, now):
        numbers.add_row(*row)
    times = Table(box=None, padding=(0, 2))
    times.add_column("Latency")
    for share in _SHARES:
        times.add_column(f"p{share * 100:.0f}", justify="right")
    for title, name in _LATENCIES.items():
        times.add_row(title, *(_seconds(value) for value in quantiles(before, now, name, _SHARES)))
    names = ", ".join(now.labels("num_requests_running", "model_name"))
    return Panel(Group(numbers, "", times), title=f"{names} at {url}", title_align="left")


def _rows(before: Look, now: Look) -> list[tuple[str, str]]:
    """The numbers beside their names."""
    kv = now.total("kv_cache_usage_perc")
    asked = now.total("prefix_cache_queries_total") - before.total("prefix_cache_queries_total")
    found = now.total("prefix_cache_hits_total") - before.total("prefix_cache_hits_total")
    running, waiting = now.total("num_requests_running"), now.total("num_requests_waiting")
    done = rate(before, now, "request_success_total")
    ends = {
        name: value for name, value in now.by("request_success_total", "finished_reason").items() if value
    }
    rows = [
        ("Requests", f"{running:.0f} running, {waiting:.0f} waiting, {done:.2f} finished/s"),
        ("Finished", ", ".join(f"{value:.0f} {name}" for name, value in sorted(ends.items())) or "none yet"),
        (
            "Tokens/s",
            f"{rate(before, now, 'generation_tokens_total'):.1f} generated, "
            f"{rate(before, now, 'prompt_tokens_total'):.1f} read",
        ),
        ("KV cache", f"{'█' * round(kv * _BAR):·<{_BAR}} {kv:.1%}"),
        ("Prefix cache", f"{found / asked:.1%} found" if asked > 0 else "nothing asked"),
        ("Preempted", f"{now.total('num_preemptions_total'):.0f}"),
    ]
    refused = now.total("admission_rejections_total")
    if refused:
        rows.append(("Refused", f"{refused:.0f} (the queue was full)"))
    if adapters := now.labels("lora_requests_info", "running_lora_adapters"):
        rows.append(("Adapters", ", ".join(adapters)))
    if memory := now.total("process_resident_memory_bytes"):
        rows.append(("Memory", f"{memory / 2**30:.2f} GiB"))
    return rows


def _seconds(value: float | None) -> str:
    """A time as a person reads it."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
