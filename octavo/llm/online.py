"""`AsyncLLM`: a model in this process for asyncio programs; many requests at once, each a stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.collector import paused
from octavo.errors import OctavoError, Unavailable
from octavo.llm.adapters import adapter_of
from octavo.llm.args import keywords_of
from octavo.llm.collect import Collector
from octavo.llm.control import (
    RPC,
    ModelConfig,
    Profile,
    check_level,
    model_config,
    refuse_rpc,
    supported_tasks,
)
from octavo.llm.inputs import Prompt, job_of_chat, job_of_prompt, tokenization
from octavo.llm.offline import default_params, make_config, token_bytes_of
from octavo.llm.pooling import pooling_tokenization, settled
from octavo.types.job import ChatOptions, Job, Started
from octavo.types.lora import Adapter, LoRARequest
from octavo.types.outputs import RequestOutput
from octavo.types.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.types.sampling import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig
    from octavo.llm.tokenizer import TokenizerView
    from octavo.pipeline.service import Service

_LOOK_S = 0.02


class AsyncLLM:
    """The engine in a thread, spoken to from one event loop (the first that uses it)."""

    def __init__(self, model: str | None = None, **keywords: Any) -> None:
        """Load `model`; keywords as for :class:`~octavo.llm.offline.LLM`. Blocks until it is loaded."""
        config = make_config(model, keywords)
        with paused():
            from octavo import launch

        self._setup(launch.service(launch.build(config)), config)

    def _setup(self, service: Service, config: EngineConfig) -> None:
        self.config = config
        self._service = service
        self._default_max_tokens = config.default_max_tokens
        self._profile = Profile()
        self._token_bytes = token_bytes_of(service.preparer)
        self._starting: asyncio.Lock | None = None
        self._started = False
        self._stopped = False
        self._asleep = False

    @classmethod
    def from_engine_args(cls, engine_args: Any, **_: Any) -> AsyncLLM:
        """From an EngineArgs or AsyncEngineArgs; vLLM's other keywords have no effect."""
        return cls(**keywords_of(engine_args))

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> AsyncGenerator[RequestOutput]:
        """Stream the answer to one prompt; closing the iterator aborts it.

        Outputs are cumulative, deltas, or one at the end, as `sampling_params.output_kind` says. Raises
        BadRequest for a prompt that cannot be and for a `request_id` that is running, QueueFull and
        Unavailable as the server does.
        """
        params = sampling_params or self.get_default_sampling_params()
        params.verify()
        job = job_of_prompt(
            prompt,
            "The prompt",
            id=request_id or uuid.uuid4().hex,
            sampling=params,
            priority=priority,
            default_max_tokens=self._default_max_tokens,
            adapter=await self._adapter(lora_request),
            **tokenization(tokenization_kwargs),
        )
        async with contextlib.aclosing(self._run(job, lora_request)) as outputs:
            async for output in outputs:
                yield output

    async def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        options: ChatOptions | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """The same for one conversation."""
        params = sampling_params or self.get_default_sampling_params()
        params.verify()
        job = job_of_chat(
            [dict(message) for message in messages],
            options or ChatOptions(),
            id=request_id or uuid.uuid4().hex,
            sampling=params,
            default_max_tokens=self._default_max_tokens,
        )
        async with contextlib.aclosing(self._run(job)) as outputs:
            async for output in outputs:
                yield output

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
        *,
        priority: int = 0,
        tokenization_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> AsyncGenerator[PoolingRequestOutput]:
        """What a model that pools makes of one prompt, as of `LLM.encode`. Raises as `generate` does."""
        special, limit = pooling_tokenization(tokenization_kwargs)
        job = job_of_prompt(
            prompt,
            "The prompt",
            id=request_id or uuid.uuid4().hex,
            sampling=SamplingParams(),
            pooling=settled(pooling_params, None, limit),
            priority=priority,
            adapter=await self._adapter(lora_request),
            add_special_tokens=special,
        )
        await self._start()
        async with contextlib.aclosing(await self._service.submit(job)) as stream:
            started: Started | None = None
            async for item in stream:
                if isinstance(item, Started):
                    started = item
                elif item.finish is not None and item.finish.reason == "error":
                    raise OctavoError(f"Request {job.id} failed: {item.finish.error}")
                elif item.pooled is not None and started is not None:
                    ids = list(started.prompt_ids)
                    yield PoolingRequestOutput(job.id, PoolingOutput(item.pooled), ids, item.cached_tokens)

    async def _adapter(self, lora_request: LoRARequest | None) -> Adapter | None:
        if lora_request is None:
            return None
        return await asyncio.to_thread(adapter_of, lora_request, self._service.adapters)

    async def _run(self, job: Job, lora_request: LoRARequest | None = None) -> AsyncGenerator[RequestOutput]:
        await self._start()
        stream = await self._service.submit(job)
        async with contextlib.aclosing(stream):
            collector: Collector | None = None
            async for item in stream:
                if isinstance(item, Started):
                    collector = Collector(
                        job.id, item, job.sampling, self._token_bytes, lora_request=lora_request
                    )
                    continue
                assert collector is not None, "the first item of a stream is Started"
                collector.apply(item)
                if collector.error is not None:
                    raise OctavoError(f"Request {job.id} failed: {collector.error}")
                if job.sampling.output_kind is RequestOutputKind.DELTA:
                    yield collector.delta(item.index)
                elif job.sampling.output_kind is RequestOutputKind.CUMULATIVE or collector.finished:
                    yield collector.whole()

    async def _start(self) -> None:
        if self._stopped:
            raise Unavailable("This AsyncLLM was shut down.")
        if self._asleep:
            raise Unavailable("This AsyncLLM is asleep.", hint="Call wake_up() first.")
        if self._started:
            return
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if not self._started:
                await self._service.start()
                self._started = True

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests: their streams finish with finish_reason ``abort``. Unknown ids do nothing."""
        for one in [request_id] if isinstance(request_id, str) else request_id:
            self._service.abort(one)

    async def reset_prefix_cache(self, *_: Any, **__: Any) -> bool:
        """Forget cached prompts."""
        self._service.reset_prefix_cache()
        return True

    async def sleep(self, level: int = 1, *_: Any, **__: Any) -> None:
        """Take no new requests, let the running ones finish, then give the KV cache's memory back.

        The weights stay, at level 2 too.
        """
        check_level(level)
        self._asleep = True
        await self.wait_for_requests_to_drain()
        self._service.rest()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take requests again; `tags` have no effect, as all of it wakes at once."""
        self._asleep = False

    async def is_sleeping(self) -> bool:
        """Whether `sleep` was called and `wake_up` not yet."""
        return self._asleep

    async def wait_for_requests_to_drain(self, drain_timeout: float = 300.0) -> None:
        """Return when nothing runs or waits. Raises TimeoutError after so many seconds."""
        ends_s = time.monotonic() + drain_timeout
        while self._service.open_jobs:
            if time.monotonic() > ends_s:
                raise TimeoutError(f"{self._service.open_jobs} requests still run after {drain_timeout} s.")
            await asyncio.sleep(_LOOK_S)

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Read an adapter before a request needs it. Raises what reading it raises."""
        await asyncio.to_thread(adapter_of, lora_request, self._service.adapters)
        return True

    async def pin_lora(self, lora_id: int) -> bool:
        """Whether there is an adapter of that lora_int_id: what was read stays until it is removed."""
        return lora_id in await self.list_loras()

    async def remove_lora(self, lora_id: int) -> bool:
        """Forget the adapter of that lora_int_id; what runs with it finishes. False when there is none."""
        adapters = self._service.adapters
        for named in adapters.list() if adapters is not None else ():
            if adapters is not None and named.number == lora_id:
                adapters.remove(named.adapter.name)
                return True
        return False

    async def list_loras(self) -> set[int]:
        """The lora_int_ids of the adapters that were read."""
        adapters = self._service.adapters
        return {named.number for named in adapters.list()} if adapters is not None else set()

    @property
    def model_config(self) -> ModelConfig:
        """What scripts read of vLLM's."""
        return model_config(self.config, self._service.preparer)

    async def get_model_config(self) -> ModelConfig:
        """The same."""
        return self.model_config

    async def get_supported_tasks(self) -> tuple[str, ...]:
        """generate, or what a model that pools gives."""
        return supported_tasks(self._service.preparer)

    async def start_profile(self, profile_prefix: str | None = None) -> None:
        """Begin to measure what steps spend their time with."""
        self._profile.start(self._service.stats())

    async def stop_profile(self) -> None:
        """Log it, in one line."""
        self._profile.stop(self._service.stats())

    async def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """The answer, in a list, of a worker's method that this class has too. Raises NotHere for others."""
        if not isinstance(method, str) or method not in RPC:
            refuse_rpc(method)
        return [await getattr(self, method)(*args, **(kwargs or {}))]

    async def reset_mm_cache(self) -> None:
        """Nothing: no images or sounds are kept."""

    async def is_tracing_enabled(self) -> bool:
        """No: spans belong to the server."""
        return False

    async def do_log_stats(self) -> None:
        """Nothing: the line of statistics is written every ten seconds anyway."""

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own defaults."""
        return default_params(self._service.preparer)

    async def get_tokenizer(self) -> TokenizerView:
        """The tokenizer, with transformers' method names."""
        from octavo.llm.tokenizer import TokenizerView

        return TokenizerView(self._service.preparer)

    @property
    def is_running(self) -> bool:
        """Whether requests are taken or could be."""
        return not self._stopped and not self.errored

    @property
    def is_stopped(self) -> bool:
        """Whether it was shut down."""
        return self._stopped

    @property
    def errored(self) -> bool:
        """Whether the engine has failed."""
        return self._service.failure is not None

    async def check_health(self) -> None:
        """Raise Unavailable when the engine has failed."""
        if self._service.failure is not None:
            raise Unavailable(f"The engine has failed: {self._service.failure}")

    def shutdown(self) -> Awaitable[None]:
        """Abort what runs and stop the engine. May be awaited; without an event loop it is done on return."""
        stopping = self._stop()
        try:
            return asyncio.get_running_loop().create_task(stopping)
        except RuntimeError:
            asyncio.run(stopping)
            return _Done()

    async def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await self._service.stop(0.0)


class _Done:
    """An awaitable that is over."""

    def __await__(self) -> Any:
        return iter(())
