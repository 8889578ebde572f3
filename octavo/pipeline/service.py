"""The text side's hub: takes Jobs from the doors, gives them Events, and knows whether the engine is well.

Lives on one asyncio event loop. The engine's thread hands over one list of outputs per step with one
``call_soon_threadsafe``; everything else here runs on the loop, so there are no locks. Work on long texts
(templates, tokenizing) goes to a small pool of threads.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec

from octavo.errors import BadRequest, QueueFull, Unavailable
from octavo.log import logger
from octavo.pipeline import stream as streams
from octavo.pipeline.checks import in_vocab
from octavo.pipeline.client import EngineClient, Recorder
from octavo.pipeline.prepare import ModelInfo, Prepared, Preparer
from octavo.pipeline.stream import JobStream
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import Finish, TokenOut
from octavo.types.job import ChatOptions, Event, Job, Started
from octavo.types.stats import EngineStats

if TYPE_CHECKING:
    from octavo.lora.registry import Adapters

log = logger("octavo.pipeline.service")

StatsLine = Callable[[EngineStats, float], str | None]
"""(snapshot, time.monotonic()) to the periodic log line, None when there is nothing to say."""

_INLINE_CHARS = 2_000
"""Shorter texts are tokenized on the loop (tens of microseconds); the hop to a thread would cost more."""
_MOST_CHARS = 2 << 20
"""Of a text to be counted, or 16 times the context: 300 bytes of memory for each token add up."""
_HEAVY_CHARS = 100_000
"""A text from here on leaves megabytes in the allocator."""
_TRIM_S = 10.0
"""So often, at most, the system gets back what requests have left: every thread keeps its worst burst."""
_LOG_INTERVAL_S = 10.0
_WARM_S = 0.5
"""After the start: what the first token of a cold process need not wait for."""
_SLOW_S = 30.0
"""A request without max_tokens is warned about when it may take longer than this."""
_FORM_TIMEOUT_S = 5.0
_MAX_FORMS = 256
"""Requests whose structured_outputs are being compiled: microseconds each, up to a second where hostile."""
_LONG_TOKENS = 256
"""And when it may be longer than this; an ordinary answer is not."""

T = TypeVar("T")


class Service:
    """Runs jobs. Create it anywhere, ``start`` it on the event loop that will use it."""

    def __init__(
        self,
        preparer: Preparer,
        client: EngineClient,
        recorder: Recorder | None = None,
        *,
        stats_line: StatsLine | None = None,
        log_interval_s: float = _LOG_INTERVAL_S,
        form_timeout_s: float = _FORM_TIMEOUT_S,
        adapters: Adapters | None = None,
        trim: Callable[[], None] | None = None,
    ) -> None:
        """`adapters`: the LoRA adapters that jobs may ask for; None where there are none. `form_timeout_s`:
        how long compiling the form of an answer may take. `trim`: gives memory that nobody uses back to the
        system; any thread may call it."""
        self.adapters = adapters
        self.preparer = preparer
        self._client = client
        self._recorder = recorder
        self._stats_line = stats_line
        self._log_interval_s = log_interval_s
        self._form_timeout_s = form_timeout_s
        self._sequences: dict[str, streams.Sequence] = {}
        self._jobs: dict[str, JobStream] = {}
        self._serials = itertools.count()
        self._leaving: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._forms_pool: ThreadPoolExecutor | None = None
        self._forms = 0
        self._trim = trim
        self._asked = 0
        """Requests so far, those for tokens alone included."""
        self._tasks: list[asyncio.Task[None]] = []
        self._warming: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._draining = False
        self._failure: str | None = None
        self._speed = Speed()
        self._warned_s = -1e9

    @property
    def info(self) -> ModelInfo:
        """Names and limits of the model."""
        return self.preparer.info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, None under --skip-tokenizer-init."""
        return self.preparer.tokenizer

    @property
    def ready(self) -> bool:
        """Whether a job would be taken now: started, not draining, engine alive and not stuck in a step."""
        well = self._failure is None and self._client.alive and not self._client.stalled
        return self._loop is not None and not self._draining and well

    @property
    def failure(self) -> str | None:
        """Why the engine died, None while it has not."""
        if self._failure is None and self._loop is not None and not self._draining and not self._client.alive:
            return "The engine is not running."
        return self._failure

    @property
    def open_jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    def stats(self) -> EngineStats:
        """The engine's snapshot."""
        return self._client.stats()

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts, soon."""
        self._client.reset_prefix_cache()

    def rest(self) -> None:
        """Forget them and give back the memory of a KV cache that nothing uses, soon."""
        self._client.rest()

    async def start(self) -> None:
        """Start the engine and the log line; call once, on the loop that will serve."""
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="octavo-text")
        self._forms_pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="octavo-forms")
        self._client.start(self._on_outputs, self._on_failure)
        self._tasks = [asyncio.create_task(work) for work in (self._log_forever(), self._trim_forever())]
        self._warming = self._loop.call_later(_WARM_S, self._pool.submit, self._warm)

    async def submit(self, job: Job) -> JobStream:
        """Take a job: its stream gives Started, then Events. Raises OctavoError when it is refused."""
        self._check(job)
        arrival_s = time.monotonic()
        prepared = await self._prepared(job, arrival_s)
        self._check(job)
        if any(request.id in self._leaving for request in prepared.requests):
            prepared = _renamed(prepared, next(self._serials))
        sent: list[str] = []
        try:
            for request in prepared.requests:
                self._client.submit(request)
                sent.append(request.id)
        except BaseException:
            self._abort_in_engine(sent)
            raise
        stream = JobStream(job.id, prepared, self._close)
        self._register(stream)  # outputs come by way of the loop, so not before
        if prepared.unbounded:
            self._warn_unbounded(prepared)
        return stream

    def abort(self, job_id: str) -> bool:
        """End a running job: its sequences finish with ``abort``. False when there is no such job."""
        stream = self._jobs.get(job_id)
        if stream is None:
            return False
        open_ids = [request.id for request in stream.prepared.requests if request.id in self._sequences]
        self._abort_in_engine(open_ids)
        self._end(open_ids, Finish("abort"))
        return True

    async def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing more, let what runs finish for at most `drain_s` seconds, then abort the rest."""
        self._draining = True
        if self._jobs and drain_s > 0 and self._failure is None:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                log.warning("Still running after %.0f s: %d requests; ending them.", drain_s, len(self._jobs))
        for job_id in list(self._jobs):
            self.abort(job_id)
        for task in self._tasks:
            task.cancel()
        if self._warming is not None:
            self._warming.cancel()
        if self._loop is not None:
            await asyncio.to_thread(self._client.stop, 0.0)
        for pool in (self._pool, self._forms_pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    async def tokenize(
        self,
        *,
        prompt: str | None = None,
        messages: Sequence[dict[str, object]] | None = None,
        chat: ChatOptions | None = None,
        add_special_tokens: bool = True,
    ) -> Started:
        """The text and ids of a prompt or of messages as a job would run them, whatever their length."""
        options = chat if chat is not None else ChatOptions()

        def work() -> Started:
            text, special = prompt or "", add_special_tokens
            if messages is not None:
                text, special = self.preparer.render(messages, options), options.add_special_tokens
            most = max(_MOST_CHARS, 16 * self.info.max_model_len)
            if len(text) > most:
                raise BadRequest(f"The text has {len(text)} characters, of at most {most}.", param="prompt")
            return Started(prompt=text, prompt_ids=tuple(self.preparer.encode_text(text, special)))

        size = len(prompt or "") if messages is None else _INLINE_CHARS
        return await self._offload(size, work)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Raises BadRequest for ids out of the vocabulary."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise BadRequest("There is no tokenizer (--skip-tokenizer-init).", param="tokens")
        in_vocab("tokens", ids, max(tokenizer.vocab_size, self.info.vocab_size))
        return await self._offload(len(ids), lambda: tokenizer.decode(ids))

    async def _prepared(self, job: Job, arrival_s: float) -> Prepared:
        """The job made ready. Forms of answers are compiled on threads of their own, of which few wait."""
        self._asked += 1
        if self._forms_pool is None or not self.preparer.has_form(job):
            return await self._offload(_size(job), lambda: self.preparer.prepare(job, arrival_s))
        if self._forms >= _MAX_FORMS:
            raise QueueFull(
                f"{self._forms} requests wait for their structured_outputs to be compiled.",
                retry_after_s=1.0,
                hint="Try again later.",
            )
        self._forms += 1
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def work() -> Prepared:
            loop.call_soon_threadsafe(begun.set)
            return self.preparer.prepare(job, arrival_s)

        working = loop.run_in_executor(self._forms_pool, work)
        working.add_done_callback(lambda _: begun.set())
        try:
            await begun.wait()
            await asyncio.wait({working}, timeout=self._form_timeout_s)
            if working.done():
                return working.result()
            raise BadRequest(
                f"Compiling the form of the answer took more than {self._form_timeout_s:g} s.",
                hint="Ask for a simpler form.",
                param="structured_outputs",
            )
        finally:
            working.cancel()
            del working  # an error's traceback holds this frame: nothing must wait for the collector
            self._forms -= 1

    def _warm(self) -> None:
        """Compile the chat template, so that the first chat need not."""
        template = self.preparer.template
        try:
            if template is not None:
                template.compile()
        except BadRequest as error:
            log.warning("Chats will be refused: %s", error.message)

    async def _offload(self, size: int, work: Callable[[], T]) -> T:
        """Run `work` here when the text is short, else on the pool, which leaves no great heap behind."""
        self._asked += 1
        if size < _INLINE_CHARS or self._pool is None:
            return work()
        trim = self._trim if size >= _HEAVY_CHARS else None

        def work_and_trim() -> T:
            try:
                return work()
            finally:
                if trim is not None:
                    trim()

        return await asyncio.get_running_loop().run_in_executor(self._pool, work_and_trim)

    def _check_ready(self) -> None:
        if self._loop is None:
            raise Unavailable("The server is still starting.", hint="Try again in a moment.")
        if self._draining:
            raise Unavailable("The server is shutting down.", hint="Try another one.")
        if self.failure is not None:  # its own words may hold paths: they are for the log
            raise Unavailable("The engine has failed.", hint="Its log says why; restart the server.")
        if self._client.stalled:
            raise Unavailable(
                "The engine does not finish its step.", hint="Restart the server if it stays so."
            )

    def _check(self, job: Job) -> None:
        """Refuse a job that could not run now."""
        self._check_ready()
        if job.id in self._jobs:
            raise BadRequest(f"A request with the id {job.id!r} is already running.", param="request_id")

    def _abort_in_engine(self, ids: Sequence[str]) -> None:
        """End sequences whose last outputs then mean nothing; till these come their ids are not free."""
        self._leaving.update(ids)
        self._client.abort(ids)

    def _register(self, stream: JobStream) -> None:
        self._jobs[stream.id] = stream
        for request, text in zip(stream.prepared.requests, stream.prepared.texts, strict=True):
            self._sequences[request.id] = streams.Sequence(stream, text, request.id, next(self._serials))

    def _on_outputs(self, outs: list[TokenOut]) -> None:
        """Engine's thread: one hop for all outputs of a step."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, outs)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("Outputs after the event loop closed were dropped.")

    def _on_failure(self, failure: BaseException | str) -> None:
        """Engine's thread: the engine is dead."""
        assert self._loop is not None
        text = str(failure) or type(failure).__name__
        try:
            self._loop.call_soon_threadsafe(self._fail, text)
        except RuntimeError:
            log.error("The engine failed after the event loop closed: %s", text)

    def _deliver(self, outs: list[TokenOut]) -> None:
        """Turn a step's outputs into events; what the text side ended is aborted in the engine."""
        now = time.monotonic()
        ended: list[str] = []
        tokens = 0
        for out in outs:
            sequence = self._sequences.get(out.id)
            if sequence is None:
                if out.finish is not None:
                    self._leaving.discard(out.id)
                continue
            sequence.note(out)
            event = _read(sequence, out)
            if event is None:
                continue
            if event.tokens:
                tokens += len(event.tokens)
                self._count(sequence, len(event.tokens), now)
            if event.finish is not None:
                if out.finish is None:
                    ended.append(out.id)
                self._finish(sequence, event)
            else:
                sequence.stream.put(event)
        if ended:
            self._abort_in_engine(ended)
        self._speed.step(tokens, len(outs), now)

    def _count(self, sequence: streams.Sequence, tokens: int, now: float) -> None:
        if sequence.first_token_s is None:
            sequence.first_token_s = now
        sequence.last_token_s = now
        if self._recorder is not None:
            self._recorder.on_tokens(sequence.serial, tokens, now)

    def _finish(self, sequence: streams.Sequence, event: Event) -> None:
        """A sequence is over: forget it, tell the metrics, hand on its last event."""
        assert event.finish is not None
        self._sequences.pop(sequence.id, None)
        stream = sequence.stream
        stream.put(event)
        if self._recorder is not None:
            self._recorder.on_finish(sequence.times(event.finish.reason))
        if stream.done:
            self._forget(stream)

    def _forget(self, stream: JobStream) -> None:
        self._jobs.pop(stream.id, None)
        if not self._jobs:
            self._idle.set()

    def _end(self, ids: Sequence[str], finish: Finish) -> None:
        """End sequences from outside; their later outputs are ignored."""
        for request_id in ids:
            sequence = self._sequences.get(request_id)
            if sequence is None:
                continue
            event = _read(sequence, TokenOut(id=sequence.id, finish=finish))
            self._finish(sequence, event or Event(index=sequence.text.index, finish=finish))

    def _close(self, stream: JobStream) -> None:
        """The reader went away: abort what still runs."""
        open_ids = [request.id for request in stream.prepared.requests if request.id in self._sequences]
        if open_ids:
            self._abort_in_engine(open_ids)
            self._end(open_ids, Finish("abort"))
        self._forget(stream)

    def _fail(self, failure: str) -> None:
        """The engine died: everyone who waits gets an answer."""
        self._failure = failure
        log.error("The engine failed: %s", failure)
        self._end(list(self._sequences), Finish("error", error="The engine has failed; its log says why."))

    def _warn_unbounded(self, prepared: Prepared) -> None:
        """Say what a request without max_tokens may cost, when that is a lot; at most one line in 10 s."""
        limit = prepared.requests[0].sampling.max_tokens
        speed = self._speed.per_sequence
        if speed is not None and limit / speed < _SLOW_S:
            return
        now = time.monotonic()
        if now - self._warned_s < self._log_interval_s or limit < _LONG_TOKENS:
            return
        self._warned_s = now
        about = (
            f"about {limit / speed:.0f} s at the current speed"
            if speed is not None
            else "speed not known yet"
        )
        log.warning(
            "A request has no max_tokens; up to %d tokens, %s. --default-max-tokens sets a limit.",
            limit,
            about,
        )

    async def _log_forever(self) -> None:
        """The periodic line."""
        while True:
            await asyncio.sleep(self._log_interval_s)
            try:
                if line := self.log_line(time.monotonic()):
                    log.info("%s", line)
            except Exception:  # the log line must not end with its first mishap
                log.exception("The periodic log line failed.")

    async def _trim_forever(self) -> None:
        """Give back what was needed once; an idle service does nothing."""
        loop, seen = asyncio.get_running_loop(), self._asked
        while self._trim is not None:
            await asyncio.sleep(_TRIM_S)
            if seen != self._asked:
                seen = self._asked
                await loop.run_in_executor(self._pool, self._trim)

    def log_line(self, now: float) -> str | None:
        """The periodic line; None without a `stats_line`, and when nothing is to be said."""
        return self._stats_line(self._client.stats(), now) if self._stats_line is not None else None


class Speed:
    """Tokens per second that one sequence gets, smoothed over the last steps."""

    def __init__(self) -> None:
        self.per_sequence: float | None = None
        self._last_s: float | None = None

    def step(self, tokens: int, sequences: int, now: float) -> None:
        """A step ended at `now` with `tokens` for `sequences` sequences; pauses over 2 s are idleness."""
        last, self._last_s = self._last_s, now
        if last is None or not tokens or not sequences or not 0 < now - last < 2.0:
            return
        speed = tokens / sequences / (now - last)
        self.per_sequence = speed if self.per_sequence is None else 0.95 * self.per_sequence + 0.05 * speed


def _read(sequence: streams.Sequence, out: TokenOut) -> Event | None:
    """The news in an output. Text that cannot be made of it ends its own request and no other."""
    try:
        return sequence.text.push(out)
    except Exception:
        log.exception("Output of request %s could not be processed.", sequence.id)
        finish = Finish("error", error="The output could not be processed.")
        return Event(index=sequence.text.index, finish=finish)


def _renamed(prepared: Prepared, serial: int) -> Prepared:
    """The same work under engine ids of its own: a client may repeat an id while its first try still ends."""
    requests = tuple(
        msgspec.structs.replace(request, id=f"{request.id}.{serial}") for request in prepared.requests
    )
    return msgspec.structs.replace(prepared, requests=requests)


def _size(job: Job) -> int:
    """About how many characters `job` brings; chats (templates are code) and large n go to the pool."""
    if job.messages is not None or max(job.sampling.n, job.sampling.best_of or 0) > 16:
        return _INLINE_CHARS
    return len(job.prompt) if job.prompt is not None else 0
