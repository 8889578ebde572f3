"""A service without a model: says what it is told to, one byte a token, through the real one's interface."""

from __future__ import annotations

import asyncio
import codecs
import math
import time
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from octavo.config.generation import GenerationConfig
from octavo.errors import BadRequest, PromptTooLong, Unavailable
from octavo.pipeline.prepare import ModelInfo
from octavo.pipeline.stop import EndTokens
from octavo.types.engine import Finish, TokenLogprobs
from octavo.types.job import ChatOptions, Event, Job, Started
from octavo.types.sampling import SamplingParams
from octavo.types.stats import EngineStats, RequestTimes

VOCAB = 256
TEMPLATE = "{{ messages }}{{ tools }}{% if enable_thinking %}{% endif %}"


class Bytes:
    """A vocabulary of single bytes."""

    config: ClassVar[dict[str, Any]] = {"tokenizer_class": "Bytes", "eos_token": "<0>"}

    def token_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id]) if 0 <= token_id < VOCAB else b""

    def token(self, token_id: int) -> str | None:
        return f"<{token_id}>" if 0 <= token_id < VOCAB else None

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class FakePreparer:
    """Only the defaults."""

    def __init__(self) -> None:
        self.generation = GenerationConfig()
        self.ends = EndTokens(0)
        self.pooler: Any = None
        self.template: Any = SimpleNamespace(source=TEMPLATE)


class FakeService:
    """`says` is the whole answer; `finish` how it ends; `steps` gates each token when given."""

    def __init__(self, says: str = "Hello world", recorder: object = None) -> None:
        self.says = says
        self.script: list[Event] | None = None
        """The very events of every job, for what text alone cannot say (thoughts, calls)."""
        self.finish = Finish("stop")
        self.fails_at: int | None = None
        self.refusal: Exception | None = None
        self.gate: asyncio.Semaphore | None = None
        self.delay_s: float | None = None
        self.cached_tokens = 0
        self.jobs: list[Job] = []
        self.aborted: list[str] = []
        self.live: set[str] = set()
        self.stopped = False
        self.chores: list[str] = []
        self.failure: str | None = None
        self.ready = True
        self.recorder = recorder
        self.adapters: Any = None
        self.tokenizer = Bytes()
        self.preparer = FakePreparer()
        self.info = ModelInfo(
            names=("pocket", "alias/pocket"), max_model_len=512, vocab_size=VOCAB, created=7
        )
        self._stopping = False

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.live), blocks=10, blocks_free=5, generation_tokens_total=42)

    def reset_prefix_cache(self) -> None:
        self.chores.append("reset")

    def rest(self) -> None:
        self.chores.append("rest")

    async def start(self) -> None:
        self.ready = True

    async def stop(self, drain_s: float) -> None:
        self.stopped = True
        self._stopping = True

    def abort(self, job_id: str) -> None:
        if job_id in self.live:
            self.aborted.append(job_id)
            self.live.discard(job_id)

    async def tokenize(
        self,
        *,
        prompt: str | None = None,
        messages: Sequence[dict[str, object]] | None = None,
        chat: ChatOptions | None = None,
        add_special_tokens: bool = True,
    ) -> Started:
        text = prompt if messages is None else self.render(messages)
        return Started(prompt=text, prompt_ids=tuple((text or "").encode()))

    async def detokenize(self, ids: Sequence[int]) -> str:
        for i in ids:
            if i >= VOCAB:
                raise BadRequest(f"Token id {i} is out of vocabulary.", param="tokens")
        return self.tokenizer.decode(ids)

    def render(self, messages: Sequence[dict[str, object]]) -> str:
        return "".join(f"<{m['role']}>{m.get('content') or ''}" for m in messages)

    async def submit(self, job: Job) -> AsyncGenerator[Started | Event, None]:
        if self.refusal is not None:
            raise self.refusal
        if not self.ready:
            raise Unavailable("not ready")
        if job.messages is not None:
            started = await self.tokenize(messages=job.messages)
        elif job.prompt is not None:
            started = await self.tokenize(prompt=job.prompt)
        else:
            started = Started(prompt=None, prompt_ids=job.prompt_ids or ())
        if any(i >= VOCAB for i in started.prompt_ids):
            raise BadRequest("A token id is out of vocabulary.", param="prompt")
        if len(started.prompt_ids) >= self.info.max_model_len:
            raise PromptTooLong(len(started.prompt_ids), self.info.max_model_len)
        self.jobs.append(job)
        self.live.add(job.id)
        return self._events(job, started)

    async def _events(self, job: Job, started: Started) -> AsyncGenerator[Started | Event, None]:
        try:
            yield started
            if self.script is not None:
                for event in self.script:
                    if self.gate is not None:
                        await self.gate.acquire()
                    yield event
            elif job.sampling.max_tokens is None and job.default_max_tokens == 0:
                yield Event(index=0, prompt_logprobs=prompt_logprobs(job, started), finish=Finish("length"))
            else:
                async for event in self._tokens(job, started):
                    yield event
            self.live.discard(job.id)
        finally:
            self.abort(job.id)

    async def _tokens(self, job: Job, started: Started) -> AsyncGenerator[Event, None]:
        data = self.says.encode()
        limit = job.sampling.max_tokens or 400
        finish = self.finish if len(data) <= limit else Finish("length")
        data = data[:limit]
        arrival_s = time.monotonic()
        decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(job.sampling.n)]
        for at, token in enumerate(data):
            if self.gate is not None:
                await self.gate.acquire()
            if self.delay_s is not None:
                await asyncio.sleep(self.delay_s)
            last, over = at == len(data) - 1, self._stopping or job.id not in self.live
            for index, decoder in enumerate(decoders):
                if over:
                    yield Event(index=index, finish=Finish("abort"))
                    continue
                failed = self.fails_at == at
                end = Finish("error", error="The engine failed: boom") if failed else finish
                if self.recorder is not None:
                    self.recorder.on_tokens(index, 1, time.monotonic())  # type: ignore[attr-defined]
                yield Event(
                    index=index,
                    text=decoder.decode(bytes([token]), final=last),
                    tokens=(token,),
                    logprobs=logprobs_of(job.sampling, token, at, index),
                    prompt_logprobs=prompt_logprobs(job, started) if at == 0 else (),
                    cached_tokens=self.cached_tokens,
                    finish=end if last or failed else None,
                )
                if (last or failed) and self.recorder is not None:
                    now = time.monotonic()
                    self.recorder.on_finish(  # type: ignore[attr-defined]
                        RequestTimes(
                            arrival_s=arrival_s,
                            first_token_s=arrival_s + 0.5,
                            last_token_s=now + 1.0,
                            prompt_tokens=len(started.prompt_ids),
                            output_tokens=at + 1,
                            finish_reason=end.reason,
                            max_tokens=job.sampling.max_tokens,
                        )
                    )
            if over or self.fails_at == at:
                return


def logprobs_of(sampling: SamplingParams, token: int, at: int, index: int) -> tuple[TokenLogprobs, ...]:
    """What was asked for: some others, or those that were named."""
    if named := sampling.logprob_token_ids:
        values = (-1.0, *(-2.0 - k for k in range(len(named))))
        return (TokenLogprobs((token, *named), values, (1, *range(2, 2 + len(named)))),)
    return (logprob(token, sampling.logprobs, at, index),) if sampling.logprobs is not None else ()


def logprob(token: int, top: int | None, at: int, index: int = 0) -> TokenLogprobs:
    """The chosen token with rank 2, and `top` others from the letter A on, the first of them rank 1."""
    others = [65 + k for k in range(max(top or 0, 0))]
    ranks = [1, *range(3, 3 + len(others))][: len(others)]
    values = [-0.25, *(-2.0 - k for k in range(len(others)))][: len(others)]
    chosen = -math.inf if at == 3 else -1.0 - index
    return TokenLogprobs(ids=(token, *others), values=(chosen, *values), ranks=(2, *ranks))


def prompt_logprobs(job: Job, started: Started) -> tuple[TokenLogprobs | None, ...]:
    """What the engine would say of the prompt, when asked."""
    if job.sampling.prompt_logprobs is None:
        return ()
    rest = started.prompt_ids[1:]
    return (None, *(logprob(token, job.sampling.prompt_logprobs, 0) for token in rest))
