"""One sequence as the scheduler sees it: tokens present, tokens computed, blocks held."""

from __future__ import annotations

import msgspec

from octavo.types.engine import EngineRequest, Finish, NewSequence, SamplingSpec, TokenLogprobs

Rank = tuple[int, int]
"""(priority, order of submission): smaller runs first and is preempted last."""


def adapter_key(request: EngineRequest) -> str:
    """What stands for the request's adapter; empty without one."""
    return request.adapter.key if request.adapter else ""


class Sequence:
    """The state of one :class:`EngineRequest`.

    `tokens` holds prompt and output; positions below `computed` are in the KV cache. Outside the running set
    `key` is -1 and no block is held.
    """

    __slots__ = (
        "adapter",
        "arrival_s",
        "blocks",
        "cached_tokens",
        "computed",
        "counted",
        "digests",
        "end_ids",
        "first_token_s",
        "key",
        "limit_tokens",
        "preemptions",
        "promised",
        "prompt_logprobs",
        "prompt_tokens",
        "published",
        "rank",
        "request",
        "root",
        "sampling",
        "started_s",
        "tokens",
    )

    def __init__(self, request: EngineRequest, rank: Rank, root: bytes, max_total_tokens: int) -> None:
        """`max_total_tokens` bounds prompt and output together (context length, cache size)."""
        self.request = request
        self.sampling: SamplingSpec = request.sampling
        self.end_ids = frozenset(request.sampling.end_ids)
        self.rank = rank
        self.root = root
        self.adapter = adapter_key(request)
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.limit_tokens = min(self.prompt_tokens + request.sampling.max_tokens, max_total_tokens)
        self.arrival_s = request.arrival_s
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.preemptions = 0
        self.key = -1
        self.computed = 0
        self.counted = 0
        """Prompt tokens already in the statistics (a recomputed one counts once)."""
        self.cached_tokens: int | None = None
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.published = 0
        """Leading blocks whose digests the pool knows."""
        self.promised = 0
        """Leading blocks that other sequences may wait for."""
        self.prompt_logprobs: list[TokenLogprobs] = []

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def computes_all(self) -> bool:
        """Whether no token may come from the prefix cache: each one's own numbers are wanted."""
        pooling = self.request.pooling
        return (self.wants_prompt_logprobs or self.sampling.skip_cache) or (
            pooling is not None and (pooling.whole or pooling.rows == "all")
        )

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True until the first token has carried them out."""
        return self.sampling.prompt_logprobs is not None and self.first_token_s is None

    def introduction(self) -> NewSequence:
        """What the runner is told when the sequence starts, or starts again after preemption."""
        sampling = self.sampling
        if sampling.prompt_logprobs is not None and not self.wants_prompt_logprobs:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return NewSequence(
            key=self.key,
            prompt_tokens=self.prompt_tokens,
            tokens=tuple(self.tokens),
            sampling=sampling,
            adapter=self.request.adapter,
            grammar=self.request.grammar,
            pooling=self.request.pooling,
        )

    def reset(self) -> None:
        """Forget everything that a recomputation makes again."""
        self.key = -1
        self.computed = 0
        self.blocks = []
        self.published = 0
        self.promised = 0
        self.prompt_logprobs.clear()

    def append(self, token: int) -> Finish | None:
        """Add an output token; says whether it ends the sequence. End tokens count from min_tokens on."""
        self.tokens.append(token)
        sampling = self.sampling
        if self.output_tokens >= sampling.min_tokens:
            if token == sampling.eos_id:
                return Finish("stop")
            if token in self.end_ids:
                return Finish("stop", token)
        return Finish("length") if len(self.tokens) >= self.limit_tokens else None
