"""`LLM`: a model in this process, for scripts. Calls return when the answers are there, or stream them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec

from octavo.collector import paused
from octavo.errors import BadRequest, OctavoError
from octavo.llm.adapters import Requests, adapters_of, pair_lora
from octavo.llm.args import keywords_of, settings_of
from octavo.llm.collect import Collector, TokenBytes
from octavo.llm.control import ControlCalls, Profile
from octavo.llm.inputs import (
    Prompt,
    as_conversations,
    as_prompts,
    job_of_chat,
    job_of_prompt,
    no_media,
    pair_priority,
    pair_sampling,
    tokenization,
)
from octavo.llm.loop import Loop
from octavo.llm.metrics import Recorded
from octavo.llm.pooling import PoolingCalls
from octavo.llm.waiting import Asked, WaitingCalls
from octavo.types.beam import BeamSearchOutput, BeamSearchParams
from octavo.types.job import ChatOptions, Job
from octavo.types.lora import LoRARequest
from octavo.types.outputs import RequestOutput
from octavo.types.sampling import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig
    from octavo.llm.engine import LLMEngine
    from octavo.llm.tokenizer import TokenizerView
    from octavo.lora.registry import Adapters
    from octavo.pipeline.prepare import Prepared, Preparer

Params = SamplingParams | Sequence[SamplingParams] | None
Tqdm = bool | Callable[..., Any] | None


def make_config(model: str | None, keywords: dict[str, Any]) -> EngineConfig:
    """The configuration of an offline class; one line on stderr for each keyword without effect.

    Raises TypeError for an unknown keyword and ConfigError for a value that cannot be.
    """
    from octavo import log
    from octavo.config.start import engine_config

    log.setup()
    return engine_config(settings_of({**keywords, **({} if model is None else {"model": model})}))


def default_params(preparer: Preparer) -> SamplingParams:
    """The model's own sampling defaults over the class's (max_tokens 16, as in vLLM)."""
    generation = preparer.generation
    limit = {} if generation.max_tokens is None else {"max_tokens": generation.max_tokens}
    return SamplingParams(**{**generation.defaults, **limit})


def token_bytes_of(preparer: Preparer) -> TokenBytes:
    """The bytes of single tokens, for `decoded_token`; b"" without a tokenizer."""
    tokenizer = preparer.tokenizer
    if tokenizer is None:
        return lambda token_id: b""

    def read(token_id: int) -> bytes:
        found = tokenizer.token_bytes(token_id)
        return tokenizer.decode([token_id]).encode("utf-8") if found is None else found

    return read


class LLM(PoolingCalls, WaitingCalls, ControlCalls):
    """A model, its tokenizer and the engine, in this process (no child process, no guard needed)."""

    def __init__(
        self,
        model: str | None = None,
        *,
        tokenizer: str | None = None,
        dtype: str | None = None,
        max_model_len: int | str | None = None,
        seed: int | None = None,
        device: str | None = None,
        tensor_parallel_size: int | None = None,
        gpu_memory_utilization: float | None = None,
        **keywords: Any,
    ) -> None:
        """Load `model` (a directory or a hub id; None: the bundled pocket model).

        Every flag of ``octavo serve`` is a keyword with underscores; those without effect are accepted with
        a line on stderr. Raises TypeError for an unknown keyword, ConfigError for a bad value, and
        CheckpointError or OutOfMemory from loading.
        """
        named = {
            "tokenizer": tokenizer,
            "dtype": _dtype_name(dtype),
            "max_model_len": max_model_len,
            "seed": seed,
            "device": device,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        self._load(make_config(model, {**named, **keywords}))

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> LLM:
        """From an EngineArgs (or anything with its fields)."""
        return cls(**keywords_of(engine_args))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """From a finished configuration."""
        llm = cls.__new__(cls)
        llm._load(config)
        return llm

    def _load(self, config: EngineConfig) -> None:
        with paused():
            from octavo import launch

        launched = launch.build(config)
        self._setup(config, launched.engine, launched.preparer, launched.adapters)

    def _setup(
        self, config: EngineConfig, engine: Any, preparer: Preparer, adapters: Adapters | None = None
    ) -> None:
        self.config = config
        self._adapters = adapters
        self._engine = engine
        self._preparer = preparer
        self._recorded = Recorded(preparer.info.max_model_len)
        self._profile = Profile()
        self._loop = Loop(engine, self._recorded)
        self._token_bytes = token_bytes_of(preparer)
        self._numbers = itertools.count()
        self._llm_engine: LLMEngine | None = None
        self._waiting = []

    @property
    def llm_engine(self) -> LLMEngine:
        """The same engine with vLLM's lower interface: add_request, step, abort_request."""
        from octavo.llm.engine import LLMEngine

        if self._llm_engine is None:
            self._llm_engine = LLMEngine(self)
        return self._llm_engine

    def get_tokenizer(self) -> TokenizerView:
        """The tokenizer, with transformers' method names. Raises BadRequest when there is none."""
        from octavo.llm.tokenizer import TokenizerView

        return TokenizerView(self._preparer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` and `chat` use when no SamplingParams are given: the model's generation config."""
        return default_params(self._preparer)

    def _chosen(self, params: Params, count: int) -> list[SamplingParams]:
        """One SamplingParams for each prompt. More max_tokens than the context are cut, as in vLLM's LLM."""
        limit = self._preparer.info.max_model_len
        return [
            one if (one.max_tokens or 0) <= limit else msgspec.structs.replace(one, max_tokens=limit)
            for one in pair_sampling(params, count, self.get_default_sampling_params())
        ]

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = ...,
        sampling_params: Params = ...,
        prompt_token_ids: Any = ...,
        use_tqdm: Tqdm = ...,
        lora_request: Requests = ...,
        priority: int | Sequence[int] | None = ...,
        tokenization_kwargs: dict[str, Any] | None = ...,
        *,
        mm_processor_kwargs: dict[str, Any] | None = ...,
        stream: Literal[False] = ...,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = ...,
        sampling_params: Params = ...,
        prompt_token_ids: Any = ...,
        use_tqdm: Tqdm = ...,
        lora_request: Requests = ...,
        priority: int | Sequence[int] | None = ...,
        tokenization_kwargs: dict[str, Any] | None = ...,
        *,
        mm_processor_kwargs: dict[str, Any] | None = ...,
        stream: Literal[True],
    ) -> Iterator[RequestOutput]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params = None,
        prompt_token_ids: Any = None,
        use_tqdm: Tqdm = None,
        lora_request: Requests = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        *,
        mm_processor_kwargs: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers to prompts, in their order.

        `prompts`: a string, a list of token ids, ``{"prompt": ...}``, ``{"prompt_token_ids": ...}``, or a
        list of those. `sampling_params`: one for all or one for each; None takes the model's defaults.
        `stream`: an iterator of RequestOutputs that hold only what is new (FINAL_ONLY: one per request, when
        it is done). `lora_request`: the adapter for all, or one (or None) for each; read when it is new.
        `use_tqdm`: a progress bar; None shows one when stderr is a terminal.

        Raises BadRequest before anything runs when one prompt cannot be.
        """
        no_media(mm_processor_kwargs)
        jobs, lora = self._asked(
            prompts, sampling_params, lora_request, priority, tokenization_kwargs, prompt_token_ids
        )
        return self._run(jobs, lora, stream, use_tqdm)

    def _asked(
        self,
        prompts: Prompt | Sequence[Prompt] | None,
        sampling_params: Params = None,
        lora_request: Requests = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        prompt_token_ids: Any = None,
    ) -> Asked:
        """What `generate` is asked for. Raises BadRequest."""
        wanted = as_prompts(prompts, prompt_token_ids)
        lora = pair_lora(lora_request, len(wanted))
        adapters = adapters_of(lora, self._adapters)
        common = tokenization(tokenization_kwargs)
        chosen = self._chosen(sampling_params, len(wanted))
        jobs = [
            job_of_prompt(
                prompt,
                f"Prompt {number}" if len(wanted) > 1 else "The prompt",
                id=str(next(self._numbers)),
                sampling=params,
                priority=rank,
                default_max_tokens=self.config.default_max_tokens,
                adapter=adapter,
                **common,
            )
            for number, (prompt, params, rank, adapter) in enumerate(
                zip(wanted, chosen, pair_priority(priority, len(wanted)), adapters, strict=True)
            )
        ]
        return jobs, lora

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = ...,
        use_tqdm: Tqdm = ...,
        lora_request: Requests = ...,
        chat_template: str | None = ...,
        chat_template_content_format: str = ...,
        add_generation_prompt: bool = ...,
        continue_final_message: bool = ...,
        tools: Sequence[dict[str, Any]] | None = ...,
        chat_template_kwargs: dict[str, Any] | None = ...,
        priority: int | Sequence[int] | None = ...,
        *,
        tokenization_kwargs: dict[str, Any] | None = ...,
        mm_processor_kwargs: dict[str, Any] | None = ...,
        stream: Literal[False] = ...,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = ...,
        use_tqdm: Tqdm = ...,
        lora_request: Requests = ...,
        chat_template: str | None = ...,
        chat_template_content_format: str = ...,
        add_generation_prompt: bool = ...,
        continue_final_message: bool = ...,
        tools: Sequence[dict[str, Any]] | None = ...,
        chat_template_kwargs: dict[str, Any] | None = ...,
        priority: int | Sequence[int] | None = ...,
        *,
        tokenization_kwargs: dict[str, Any] | None = ...,
        mm_processor_kwargs: dict[str, Any] | None = ...,
        stream: Literal[True],
    ) -> Iterator[RequestOutput]: ...

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        use_tqdm: Tqdm = None,
        lora_request: Requests = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        priority: int | Sequence[int] | None = None,
        *,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers to one conversation (a list of messages) or to a list of them; see `generate`.

        `chat_template` (the template itself) replaces the model's; `chat_template_kwargs` go to it.
        """
        no_media(mm_processor_kwargs)
        options = self._options(
            chat_template, add_generation_prompt, continue_final_message, tools, chat_template_kwargs
        )
        special = tokenization(tokenization_kwargs).get("add_special_tokens")
        options = msgspec.structs.replace(options, add_special_tokens=bool(special))
        jobs, lora = self._asked_chats(messages, sampling_params, lora_request, priority, options)
        return self._run(jobs, lora, stream, use_tqdm)

    def _options(
        self,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> ChatOptions:
        """How chats are rendered."""
        return ChatOptions(
            template=chat_template,
            tools=tuple(tools) if tools else None,
            kwargs={**self.config.chat_template_kwargs, **(chat_template_kwargs or {})},
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
        )

    def _asked_chats(
        self,
        messages: Sequence[Any],
        sampling_params: Params,
        lora_request: Requests,
        priority: int | Sequence[int] | None,
        options: ChatOptions,
    ) -> Asked:
        """What `chat` is asked for. Raises BadRequest."""
        conversations = as_conversations(messages)
        lora = pair_lora(lora_request, len(conversations))
        adapters = adapters_of(lora, self._adapters)
        chosen = self._chosen(sampling_params, len(conversations))
        jobs = [
            job_of_chat(
                conversation,
                options,
                id=str(next(self._numbers)),
                sampling=params,
                priority=rank,
                default_max_tokens=self.config.default_max_tokens,
                adapter=adapter,
            )
            for conversation, params, rank, adapter in zip(
                conversations, chosen, pair_priority(priority, len(conversations)), adapters, strict=True
            )
        ]
        return jobs, lora

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: Requests = None,
        use_tqdm: Tqdm = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The `params.beam_width` likeliest continuations of each prompt, best first.

        Prompts as in `generate`. `use_tqdm` and `concurrency_limit` have no effect: all prompts search
        together, and the engine batches what fits. Raises BadRequest.
        """
        from octavo.llm.beams import sampling_of, search

        wanted = as_prompts(prompts)
        lora = pair_lora(lora_request, len(wanted))
        adapters = adapters_of(lora, self._adapters)
        sampling = sampling_of(params)
        jobs = [
            job_of_prompt(
                prompt,
                f"Prompt {number}" if len(wanted) > 1 else "The prompt",
                id=str(next(self._numbers)),
                sampling=sampling,
                adapter=adapter,
            )
            for number, (prompt, adapter) in enumerate(zip(wanted, adapters, strict=True))
        ]
        return search(jobs, lora, self._preparer, self._loop, self._token_bytes)

    def _run(
        self, jobs: list[Job], lora: list[LoRARequest | None], stream: bool, use_tqdm: Tqdm
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        prepared = [self._prepare(job, number, len(jobs)) for number, job in enumerate(jobs)]
        collectors = [
            Collector(
                job.id,
                one.started,
                job.sampling,
                self._token_bytes,
                best_of=len(one.texts) if one.best_of else None,
                lora_request=asked,
            )
            for job, one, asked in zip(jobs, prepared, lora, strict=True)
        ]
        if stream:
            kinds = [job.sampling.output_kind for job in jobs]
            return self._stream(prepared, collectors, kinds)
        return self._collect(prepared, collectors, use_tqdm)

    def _prepare(self, job: Job, number: int, count: int) -> Prepared:
        try:
            return self._preparer.prepare(job)
        except BadRequest as error:
            if count > 1:
                error.args = (f"Prompt {number}: {error}",)
                error.message = str(error)
            raise

    def _stream(
        self,
        prepared: list[Prepared],
        collectors: list[Collector],
        kinds: list[RequestOutputKind],
    ) -> Iterator[RequestOutput]:
        room: dict[tuple[int, int], int] = {}  # how many more tokens a sequence's piece takes
        for number, event in self._loop.run(prepared):
            collector = collectors[number]
            collector.apply(event)
            _raise_failure(collector)
            place = number, event.index
            room[place] = room.get(place, 1) - len(event.tokens)
            if room[place] > 0 and event.finish is None:
                continue
            room[place] = prepared[number].interval
            if collector.best_of is not None or kinds[number] is RequestOutputKind.FINAL_ONLY:
                if collector.finished:
                    yield collector.whole()
            else:
                yield collector.delta(event.index)

    def _collect(
        self, prepared: list[Prepared], collectors: list[Collector], use_tqdm: Tqdm
    ) -> list[RequestOutput]:
        from octavo.llm.progress import Progress

        with Progress(len(prepared), use_tqdm, quiet=self.config.quiet) as progress:
            for number, event in self._loop.run(prepared):
                collector = collectors[number]
                collector.apply(event)
                _raise_failure(collector)
                if event.finish is not None and collector.finished:
                    progress.done(collector.prompt_tokens, collector.output_tokens)
        return [collector.whole() for collector in collectors]


def _raise_failure(collector: Collector) -> None:
    if collector.error is not None:
        raise OctavoError(f"Request {collector.request_id} failed: {collector.error}")


def _dtype_name(dtype: Any) -> Any:
    """``torch.float32`` is written as its name, so that scripts may pass either."""
    return str(dtype).removeprefix("torch.") if dtype is not None else None
