"""``octavo bench serve``: requests over HTTP, at a rate or a concurrency, to any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from octavo.bench import plots, report, serving
from octavo.bench.client import Answer, Target, ask, get_json
from octavo.bench.data import Sample, Wanted, samples
from octavo.bench.options import Asked, at_least
from octavo.errors import ConfigError, OctavoError

ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_SAME = {"vllm": "openai", "octavo": "openai", "openai-completions": "openai", "vllm-chat": "openai-chat"}
_POLL_S = 0.2


@dataclass(frozen=True)
class Options:
    """The subcommand's own flags; vLLM's names."""

    backend: str = "openai"
    base_url: str | None = None
    host: str | None = None
    port: int | None = None
    endpoint: str | None = None
    api_key: str | None = None
    header: tuple[str, ...] = ()
    ready_timeout_s: float = 600.0
    dataset_name: str = "random"
    dataset_path: str | None = None
    num_prompts: int = 64
    input_len: int | None = None
    output_len: int | None = None
    range_ratio: float = 0.0
    prefix_len: int = 0
    request_rate: str = "inf"
    burstiness: float = 1.0
    max_concurrency: int | None = None
    num_warmups: int = 1
    trace_speed: float = 1.0
    ignore_eos: bool = True
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    percentile_metrics: str = "ttft,tpot,itl,e2el"
    metric_percentiles: str = "99"
    goodput: tuple[str, ...] = ()
    save_result: bool = False
    save_detailed: bool = False
    append_result: bool = False
    result_dir: str = "."
    result_filename: str | None = None
    label: str | None = None
    metadata: tuple[str, ...] = ()
    plot: str | None = None
    disable_tqdm: bool = False
    output_json: str | None = None
    dummy: str | None = None

    def __post_init__(self) -> None:
        at_least("--num-prompts", self.num_prompts, 1)
        at_least("--num-warmups", self.num_warmups, 0)
        if self.plot is not None:
            plots.check_name(self.plot)
        if self.max_concurrency is not None:
            at_least("--max-concurrency", self.max_concurrency, 1)
        if self.burstiness <= 0 or self.trace_speed <= 0 or not self.rate > 0:
            raise ConfigError("--request-rate, --burstiness and --trace-speed are above 0.")
        if self.kind not in ENDPOINTS:
            raise ConfigError(
                f"--backend: there is no {self.backend!r}.", hint=f"There are: {', '.join(ENDPOINTS)}."
            )

    @property
    def rate(self) -> float:
        """Requests per second; infinity: all at once."""
        try:
            return float(self.request_rate)
        except ValueError:
            raise ConfigError(f"--request-rate: {self.request_rate!r} is no number and not inf.") from None

    @property
    def kind(self) -> str:
        """The API to speak, by its name here."""
        return _SAME.get(self.backend, self.backend)

    @property
    def remote(self) -> str | None:
        """The URL of the server that was named; None when one is to be started."""
        if self.base_url is not None:
            return self.base_url
        if self.host is None and self.port is None:
            return None
        return f"http://{self.host or '127.0.0.1'}:{self.port or 8000}"


def run(asked: Asked) -> dict[str, Any]:
    """Measure, and write vLLM's result file and the plot when they are asked for; the figures."""
    options = Options(**asked.own)
    shown = serving.read_shown(options.percentile_metrics, options.metric_percentiles, options.goodput)
    with server_url(options, asked) as url:
        result, answers = asyncio.run(drive(url, options, asked, shown))
    for error in list(dict.fromkeys(answer.error for answer in answers if answer.error))[:3]:
        sys.stderr.write(f"A request failed: {error}\n")
    save(result, answers, options)
    return {**result, "machine": report.this_machine()}


text = serving.text


@contextlib.contextmanager
def server_url(options: Options, asked: Asked) -> Iterator[str]:
    """The URL of the named server, or of one that runs while the block does."""
    if options.remote is not None:
        if asked.server_words and asked.model is None:
            sys.stderr.write("The server is named: the flags for a server of one's own have no effect.\n")
        yield options.remote
        return
    from octavo.bench.server import started

    with started(asked.server_words, options.ready_timeout_s) as server:
        yield f"http://127.0.0.1:{server.port}"


async def drive(
    url: str, options: Options, asked: Asked, shown: serving.Shown
) -> tuple[dict[str, Any], list[Answer]]:
    """The whole run against the server at `url`. Raises OctavoError when none answers there."""
    target = Target(url, _headers(options))
    model = await _model(target, options, asked)
    found = await asyncio.to_thread(samples, _wanted(options, asked.seed))
    bodies = [_body(sample, model, options) for sample in found]
    path = options.endpoint or ENDPOINTS[options.kind]
    for _ in range(options.num_warmups):
        first = await ask(target, path, bodies[0])
        if first.error:
            raise OctavoError(f"The first request to {url}{path} failed: {first.error}")
    waits = arrivals(found, options, random.Random(asked.seed))
    begun = time.perf_counter()
    answers = await _send(target, path, bodies, waits, options)
    seconds = time.perf_counter() - begun
    for answer, sample in zip(answers, found, strict=True):
        if not answer.prompt_tokens and isinstance(sample.prompt, tuple):
            answer.prompt_tokens = len(sample.prompt)
    result = {**_asked_for(options, model, len(bodies)), **serving.figures(answers, seconds, shown)}
    return result, answers


def _headers(options: Options) -> dict[str, str]:
    headers = {}
    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for word in options.header:
        name, equals, value = word.partition("=")
        if not equals or any(end in word for end in "\r\n"):
            raise ConfigError(f"--header: {word!r} is not KEY=VALUE.")
        headers[name] = value
    return headers


async def _model(target: Target, options: Options, asked: Asked) -> str:
    """The model's name in requests: as served, else as given, else the first that the server lists."""
    until = time.perf_counter() + options.ready_timeout_s
    while True:
        try:
            status, listed = await get_json(target, "/v1/models")
            if status == 200 and listed is not None:
                break
            said = f"status {status}"
        except (OSError, EOFError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
        if time.perf_counter() > until:
            raise OctavoError(
                f"No server answers at {target.url} ({said}).", hint="Start one with octavo serve."
            )
        await asyncio.sleep(_POLL_S)
    names = [str(item.get("id")) for item in listed.get("data", ())]
    served = asked.settings.server.get("served_names") or ()
    for name in (*served, asked.model):
        if name in names or (name and options.remote is not None):
            return str(name)
    if not names:
        raise OctavoError(f"{target.url} lists no model.", hint="Name one with --model.")
    return names[0]


def _wanted(options: Options, seed: int) -> Wanted:
    return Wanted(
        options.dataset_name,
        options.dataset_path,
        options.num_prompts,
        options.input_len,
        options.output_len,
        options.range_ratio,
        options.prefix_len,
        seed,
    )


def _body(sample: Sample, model: str, options: Options) -> dict[str, Any]:
    """The JSON of a request."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": sample.output_len,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    for name in ("top_p", "top_k", "min_p"):
        if getattr(options, name) is not None:
            body[name] = getattr(options, name)
    if options.kind == "openai":
        body["prompt"] = sample.prompt
    else:
        words = sample.prompt if isinstance(sample.prompt, str) else " ".join(map(str, sample.prompt))
        body["messages"] = [{"role": "user", "content": words}]
    return {**body, **options.extra_body}


def arrivals(found: Sequence[Sample], options: Options, rng: random.Random) -> list[float]:
    """When each request starts, in seconds after the first: the trace's own times, or gamma-distributed gaps
    with mean 1/rate and shape `burstiness` (1: a Poisson process), or all at once.
    """
    if all(sample.arrival_s is not None for sample in found) and math.isinf(options.rate):
        return [(sample.arrival_s or 0.0) / options.trace_speed for sample in found]
    if math.isinf(options.rate):
        return [0.0] * len(found)
    times = [0.0]
    for _ in found[1:]:
        gap = rng.gammavariate(options.burstiness, 1.0 / (options.rate * options.burstiness))
        times.append(times[-1] + gap)
    return times


async def _send(
    target: Target, path: str, bodies: Sequence[dict[str, Any]], waits: Sequence[float], options: Options
) -> list[Answer]:
    room = asyncio.Semaphore(options.max_concurrency or len(bodies))
    begun = time.perf_counter()
    with _Bar(len(bodies), hidden=options.disable_tqdm) as done:

        async def one(body: dict[str, Any], at_s: float) -> Answer:
            await asyncio.sleep(max(0.0, begun + at_s - time.perf_counter()))
            async with room:
                answer = await ask(target, path, body)
            done()
            return answer

        return await asyncio.gather(*(one(body, at_s) for body, at_s in zip(bodies, waits, strict=True)))


class _Bar:
    """A progress bar over requests where a person watches."""

    def __init__(self, total: int, *, hidden: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="req", disable=hidden or not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Any:
        return self._bar.update

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _asked_for(options: Options, model: str, count: int) -> dict[str, Any]:
    return {
        "date": report.stamp(),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": count,
        "request_rate": options.request_rate if math.isinf(options.rate) else options.rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        **dict(word.partition("=")[::2] for word in options.metadata),
    }


def save(result: dict[str, Any], answers: Sequence[Answer], options: Options) -> None:
    """Write what was asked for: vLLM's result file, the plot."""
    if options.plot:
        plots.save(options.plot, drawn(answers, result))
    if not (options.save_result or options.save_detailed or options.append_result):
        return
    if options.save_detailed:
        result = {**result, **detailed(answers)}
    model = str(result["model_id"]).rsplit("/", 1)[-1]
    name = f"{options.backend}-{options.request_rate}qps-{model}-{result['date']}.json"
    path = Path(options.result_dir).expanduser() / (options.result_filename or name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if options.append_result else "w", encoding="utf-8") as file:
        file.write(json.dumps(report.finite(result)) + "\n")


def detailed(answers: Sequence[Answer]) -> dict[str, Any]:
    """Every request, under vLLM's names."""
    rows = [asdict(answer) for answer in answers]
    names = {
        "input_lens": "prompt_tokens",
        "output_lens": "output_tokens",
        "ttfts": "ttft_s",
        "itls": "itl_s",
        "start_times": "started_s",
        "generated_texts": "text",
        "errors": "error",
    }
    return {name: [row[own] for row in rows] for name, own in names.items()}


def drawn(answers: Sequence[Answer], result: dict[str, Any]) -> plots.Drawing:
    """A chart of the distributions: the share of times up to each value."""
    values = serving.times_ms([answer for answer in answers if answer.ok])
    lines = []
    for name, title in serving.METRICS.items():
        if name != "e2el" and values[name]:
            ordered = sorted(values[name])
            points = [(value, 100.0 * (at + 1) / len(ordered)) for at, value in enumerate(ordered)]
            lines.append(plots.Line(title, points))
    return plots.chart(f"{result['model_id']}: share of times up to a value", "ms", "%", lines, log_x=True)
