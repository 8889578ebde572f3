"""`LLMEngine`: requests in one at a time, and a step at a time; vLLM's interface below `LLM`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import BadRequest
from octavo.llm.adapters import adapter_of
from octavo.llm.args import keywords_of
from octavo.llm.collect import Collector
from octavo.llm.inputs import Prompt, job_of_prompt
from octavo.llm.pooling import pooling_tokenization, settled
from octavo.types.job import Job
from octavo.types.outputs import RequestOutput
from octavo.types.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.types.sampling import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from octavo.llm.control import ModelConfig
    from octavo.llm.offline import LLM
    from octavo.llm.tokenizer import TokenizerView
    from octavo.pipeline.prepare import Prepared
    from octavo.types.job import Event
    from octavo.types.lora import LoRARequest
    from octavo.types.metrics import Metric

Output = RequestOutput | PoolingRequestOutput


class LLMEngine:
    """A loop of the caller's own: `add_request`, then `step` while there are unfinished requests."""

    def __init__(self, llm: LLM) -> None:
        """Over an `LLM`, whose calls may be mixed with these."""
        self._llm = llm
        self._run = llm._loop.begin()
        self._requests: dict[str, int] = {}
        """The number of each unfinished request."""
        self._open: dict[int, _Request] = {}
        self._count = 0

    @classmethod
    def from_engine_args(cls, engine_args: Any, *_: Any, **__: Any) -> LLMEngine:
        """Load what an EngineArgs says; vLLM's other arguments have no effect."""
        from octavo.llm.offline import LLM

        return LLM(**keywords_of(engine_args)).llm_engine

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> str:
        """Queue a prompt (forms as of `LLM.generate`) under a name of the caller's; gives that name back.

        `arrival_time`, `trace_headers` and `prompt_text` have no effect. Raises BadRequest, also for a name
        that is in use, and Unavailable while the engine sleeps.
        """
        if request_id in self._requests:
            raise BadRequest(f"The request {request_id!r} is not finished.", param="request_id")
        llm = self._llm
        llm._loop.check_awake()
        special, limit = pooling_tokenization(tokenization_kwargs)
        pooling = settled(params, None, limit) if isinstance(params, PoolingParams) else None
        if pooling is None:
            params.verify()
        job = job_of_prompt(
            prompt,
            "The prompt",
            id=f"{request_id}#{self._count}",
            sampling=params if isinstance(params, SamplingParams) else SamplingParams(),
            pooling=pooling,
            priority=priority,
            default_max_tokens=llm.config.default_max_tokens,
            adapter=adapter_of(lora_request, llm._adapters),
            add_special_tokens=special,
        )
        prepared = llm._prepare(job, 0, 1)
        number, self._count = self._count, self._count + 1
        self._requests[request_id] = number
        self._open[number] = _Request(request_id, job, prepared, llm, lora_request)
        self._run.add(number, prepared)
        try:
            self._run.submit()
        except Exception:
            self.abort_request(request_id)
            raise
        return request_id

    def step(self) -> list[Output]:
        """One step of the engine: an output for each request that got something new, as its output_kind says.

        A request that failed has the finish_reason ``error``, one of a model that pools the data None.
        """
        if not self._run.going:
            return []
        changed: dict[int, list[Event]] = {}
        for number, event in self._run.turn():
            changed.setdefault(number, []).append(event)
        outputs: list[Output] = []
        for number, events in changed.items():
            request = self._open[number]
            outputs += request.outputs(events)
            if request.finished:
                del self._open[number], self._requests[request.name]
        return outputs

    def abort_request(self, request_ids: str | Iterable[str], internal: bool = False) -> None:
        """End requests; nothing more is said of them. Unknown names do nothing."""
        for name in [request_ids] if isinstance(request_ids, str) else list(request_ids):
            number = self._requests.pop(name, None)
            if number is not None:
                del self._open[number]
                self._run.drop(number)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._requests)

    def get_num_unfinished_requests(self) -> int:
        """How many requests wait or run."""
        return len(self._requests)

    @property
    def model_config(self) -> ModelConfig:
        """As of `LLM`."""
        return self._llm.model_config

    def get_model_config(self) -> ModelConfig:
        """The same."""
        return self._llm.model_config

    @property
    def tokenizer(self) -> TokenizerView:
        """The tokenizer, with transformers' method names."""
        return self._llm.get_tokenizer()

    def get_tokenizer(self, lora_request: LoRARequest | None = None) -> TokenizerView:
        """The same, whatever the adapter."""
        return self._llm.get_tokenizer()

    def get_metrics(self) -> list[Metric]:
        """As of `LLM`."""
        return self._llm.get_metrics()

    def reset_prefix_cache(self, *_: Any, **__: Any) -> bool:
        """Forget cached prompts."""
        return self._llm.reset_prefix_cache()

    def sleep(self, level: int = 1) -> None:
        """As of `LLM`."""
        self._llm.sleep(level)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """As of `LLM`."""
        self._llm.wake_up(tags)

    def is_sleeping(self) -> bool:
        """Whether it sleeps."""
        return self._llm.is_sleeping()

    def do_log_stats(self) -> None:
        """Nothing: the log line of statistics belongs to the server."""

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Read an adapter before a request needs it."""
        adapter_of(lora_request, self._llm._adapters)
        return True

    def list_loras(self) -> set[int]:
        """The lora_int_ids of the adapters that were read."""
        adapters = self._llm._adapters
        return {named.number for named in adapters.list()} if adapters is not None else set()


class _Request:
    """One request and what came of it so far."""

    def __init__(
        self, name: str, job: Job, prepared: Prepared, llm: LLM, lora_request: LoRARequest | None
    ) -> None:
        self.name = name
        self.finished = False
        self._job = job
        self._prompt_ids = list(prepared.started.prompt_ids)
        self._collector = Collector(
            name,
            prepared.started,
            job.sampling,
            llm._token_bytes,
            best_of=len(prepared.texts) if prepared.best_of else None,
            lora_request=lora_request,
        )

    def outputs(self, events: list[Event]) -> list[Output]:
        """What is to be said after `events` of one step."""
        if self._job.pooling is not None:
            return [self._pooled(event) for event in events]
        collector = self._collector
        for event in events:
            collector.apply(event)
        self.finished = collector.finished
        kind = self._job.sampling.output_kind
        if collector.best_of is not None or kind is RequestOutputKind.FINAL_ONLY:
            return [collector.whole()] if self.finished else []
        if kind is RequestOutputKind.DELTA:
            return [collector.delta(index) for index in dict.fromkeys(event.index for event in events)]
        return [collector.whole()]

    def _pooled(self, event: Event) -> PoolingRequestOutput:
        self.finished = event.finish is not None
        output = PoolingOutput(event.pooled)
        return PoolingRequestOutput(self.name, output, self._prompt_ids, event.cached_tokens)
