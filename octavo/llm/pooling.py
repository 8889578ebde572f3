"""What `LLM` does with a model that pools: `encode`, `embed`, `classify` and `score`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octavo.errors import BadRequest, OctavoError
from octavo.llm.adapters import Requests, adapters_of, pair_lora
from octavo.llm.inputs import Prompt, as_prompts, job_of_prompt
from octavo.types.job import Job
from octavo.types.pooling import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.types.sampling import SamplingParams

if TYPE_CHECKING:
    from octavo.config.engine import EngineConfig
    from octavo.config.pooling import Pooler
    from octavo.llm.loop import Loop
    from octavo.lora.registry import Adapters
    from octavo.pipeline.prepare import Prepared, Preparer

Params = PoolingParams | Sequence[PoolingParams] | None
Found = TypeVar("Found", bound=PoolingRequestOutput)


class PoolingCalls:
    """The part of `LLM` for embeddings, labels and scores."""

    config: EngineConfig
    _preparer: Preparer
    _loop: Loop
    _adapters: Adapters | None
    _numbers: Iterator[int]

    if TYPE_CHECKING:

        def _prepare(self, job: Job, number: int, count: int) -> Prepared: ...

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        pooling_params: Params = None,
        *,
        use_tqdm: Any = None,
        lora_request: Requests = None,
        pooling_task: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        prompt_token_ids: Any = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput]:
        """What the model makes of each prompt: `outputs.data` is a float32 array [width], or [tokens, width]
        for the tasks token_embed and token_classify.

        `tokenization_kwargs` takes truncate_prompt_tokens (an argument of its own in older releases) and
        add_special_tokens. Raises BadRequest, also for a model that generates.
        """
        wanted = as_prompts(prompts, prompt_token_ids)
        special, limit = pooling_tokenization(tokenization_kwargs, truncate_prompt_tokens)
        adapters = adapters_of(pair_lora(lora_request, len(wanted)), self._adapters)
        jobs = [
            job_of_prompt(
                prompt,
                f"Prompt {number}" if len(wanted) > 1 else "The prompt",
                id=str(next(self._numbers)),
                sampling=SamplingParams(),
                pooling=settled(params, pooling_task, limit),
                adapter=adapter,
                add_special_tokens=special,
            )
            for number, (prompt, params, adapter) in enumerate(
                zip(wanted, _paired(pooling_params, len(wanted)), adapters, strict=True)
            )
        ]
        return self._pool(jobs, use_tqdm)

    def embed(
        self, prompts: Prompt | Sequence[Prompt] | None = None, pooling_params: Params = None, **more: Any
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt, in `outputs.embedding`; arguments as in `encode`."""
        found = self.encode(prompts, pooling_params, pooling_task="embed", **more)
        return [_as(EmbeddingRequestOutput, EmbeddingOutput(one.outputs.data.tolist()), one) for one in found]

    def classify(
        self, prompts: Prompt | Sequence[Prompt] | None = None, pooling_params: Params = None, **more: Any
    ) -> list[ClassificationRequestOutput]:
        """Probabilities of the labels for each prompt, in `outputs.probs`; arguments as in `encode`."""
        found = self.encode(prompts, pooling_params, pooling_task="classify", **more)
        kind = ClassificationRequestOutput
        return [_as(kind, ClassificationOutput(one.outputs.data.tolist()), one) for one in found]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        /,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: Any = None,
        lora_request: Requests = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together, one to many or pair by pair, in `outputs.score`.

        A cross-encoder or reranker reads each pair, written as its checkpoint says (no `chat_template`);
        of a model of embeddings it is the cosine.
        """
        if chat_template is not None:
            raise BadRequest(
                "score() takes no chat_template: pairs are written as the checkpoint says.",
                param="chat_template",
            )
        pairs = _pairs(data_1, data_2)
        pooler = self._pooler()
        if pooler.kind == "embed":
            texts = [text for pair in pairs for text in pair]
            found = self.encode(
                texts,
                pooling_params,
                use_tqdm=use_tqdm,
                lora_request=lora_request,
                pooling_task="embed",
                tokenization_kwargs=tokenization_kwargs,
                truncate_prompt_tokens=truncate_prompt_tokens,
            )
            return [_cosine(one, other) for one, other in zip(found[::2], found[1::2], strict=True)]
        if not pooler.scores:
            raise BadRequest(
                f"This model has {len(pooler.labels)} labels: a score needs one.", hint="Use classify()."
            )
        special, limit = pooling_tokenization(tokenization_kwargs, truncate_prompt_tokens)
        params = settled(pooling_params, "classify", limit)
        adapters = adapters_of(pair_lora(lora_request, len(pairs)), self._adapters)
        jobs = [
            Job(
                id=str(next(self._numbers)),
                sampling=SamplingParams(),
                prompt=first,
                pair=second,
                pooling=params,
                adapter=adapter,
                add_special_tokens=special,
            )
            for (first, second), adapter in zip(pairs, adapters, strict=True)
        ]
        found = self._pool(jobs, use_tqdm)
        return [_as(ScoringRequestOutput, ScoringOutput(float(one.outputs.data[0])), one) for one in found]

    def _pooler(self) -> Pooler:
        pooler = self._preparer.pooler
        if pooler is None:
            raise BadRequest(
                "This model generates text.", hint='Load it with runner="pooling" for embeddings or scores.'
            )
        return pooler

    def _pool(self, jobs: list[Job], use_tqdm: Any) -> list[PoolingRequestOutput]:
        from octavo.llm.progress import Progress

        self._pooler()
        prepared = [self._prepare(job, number, len(jobs)) for number, job in enumerate(jobs)]
        found: dict[int, PoolingRequestOutput] = {}
        with Progress(len(jobs), use_tqdm, quiet=self.config.quiet) as progress:
            for number, event in self._loop.run(prepared):
                if event.finish is not None and event.finish.reason == "error":
                    raise OctavoError(f"Request {jobs[number].id} failed: {event.finish.error}")
                ids = list(prepared[number].started.prompt_ids)
                output = PoolingOutput(event.pooled)
                found[number] = PoolingRequestOutput(jobs[number].id, output, ids, event.cached_tokens)
                progress.done(len(ids), 0)
        return [found[number] for number in range(len(jobs))]


def _as(kind: type[Found], outputs: Any, one: PoolingRequestOutput) -> Found:
    return kind(one.request_id, outputs, one.prompt_token_ids, one.num_cached_tokens)


def _cosine(one: PoolingRequestOutput, other: PoolingRequestOutput) -> ScoringRequestOutput:
    """The cosine of two vectors, which need not be normalised."""
    a, b = one.outputs.data.astype("float64"), other.outputs.data.astype("float64")
    value = float(a @ b / max(float((a @ a) * (b @ b)) ** 0.5, 1e-24))
    ids = one.prompt_token_ids + other.prompt_token_ids
    cached = one.num_cached_tokens + other.num_cached_tokens
    return ScoringRequestOutput(f"{one.request_id}_{other.request_id}", ScoringOutput(value), ids, cached)


def _pairs(data_1: str | Sequence[str], data_2: str | Sequence[str]) -> list[tuple[str, str]]:
    first = [data_1] if isinstance(data_1, str) else list(data_1)
    second = [data_2] if isinstance(data_2, str) else list(data_2)
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second) or not first:
        raise BadRequest(f"{len(first)} texts and {len(second)} texts do not pair up.", param="data_2")
    for text in (*first, *second):
        if not isinstance(text, str):
            raise BadRequest(f"score() takes texts, not {type(text).__name__}.", param="data_1")
    return list(zip(first, second, strict=True))


def _paired(params: Params, count: int) -> list[PoolingParams | None]:
    if params is None or isinstance(params, PoolingParams):
        return [params] * count
    if len(params) != count:
        what = f"There are {count} prompts but {len(params)} PoolingParams."
        raise BadRequest(what, param="pooling_params")
    return list(params)


def settled(params: PoolingParams | None, task: str | None, limit: int | None) -> PoolingParams:
    """`params` with the task and the limit of tokens that they leave open. Raises BadRequest."""
    made = PoolingParams() if params is None else msgspec.structs.replace(params)
    made.task = made.task or task
    if made.truncate_prompt_tokens is None:
        made.truncate_prompt_tokens = limit
    made.verify()
    return made


def pooling_tokenization(
    kwargs: dict[str, Any] | None, truncate_prompt_tokens: int | None = None
) -> tuple[bool, int | None]:
    """(add_special_tokens, truncate_prompt_tokens) of `tokenization_kwargs`. Raises BadRequest."""
    given = dict(kwargs or {})
    special = given.pop("add_special_tokens", True)
    limit = given.pop("truncate_prompt_tokens", truncate_prompt_tokens)
    if given:
        raise BadRequest(
            f"tokenization_kwargs has no {next(iter(given))!r} here.",
            hint="It takes add_special_tokens and truncate_prompt_tokens.",
        )
    return bool(special), limit
