"""What runs in each step, and what becomes of its results.

There is no prefill and no decode phase: a sequence has tokens computed and tokens present, and each step
hands out a budget of tokens. Running sequences come first, those that want one token before those that want
a chunk; then waiting ones start. When blocks run out the sequence of the worst rank gives its blocks back and
is computed again later (Kwon et al. 2023, PagedAttention, section 4.5).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from octavo.engine.admission import Admission
from octavo.engine.blocks import BlockPool, BlockWatch
from octavo.engine.pace import Pace
from octavo.engine.prefix import BlockHasher
from octavo.engine.sequence import Sequence, adapter_key
from octavo.engine.settings import EngineSettings
from octavo.engine.stats import Counters
from octavo.errors import BadRequest
from octavo.types.engine import (
    EngineRequest,
    Finish,
    NewSequence,
    Sampled,
    StepPlan,
    StepResult,
    TokenLogprobs,
    TokenOut,
    Work,
)

_rank = attrgetter("rank")


class _Step:
    """A plan in the making: what is left of the budgets, what has been decided."""

    __slots__ = ("new", "rows_left", "tokens_left", "work")

    def __init__(self, tokens: int, rows: int) -> None:
        self.tokens_left = tokens
        self.rows_left = rows
        self.work: list[Work] = []
        self.new: list[NewSequence] = []


class Scheduler:
    """Owns the sequences and the blocks. `plan` and `commit` alternate; all else happens between the two."""

    def __init__(
        self,
        settings: EngineSettings,
        blocks: int,
        block_size: int,
        admission: Admission,
        counters: Counters,
        *,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.block_size = block_size
        watch = BlockWatch(settings.watched_blocks, clock) if settings.watched_blocks else None
        self.pool = BlockPool(blocks, watch)
        self.waiting: list[Sequence] = []
        """Sorted by rank; preempted sequences stand where they stood before."""
        self.running: list[Sequence] = []
        """Sorted by rank; the last one is preempted first."""
        self._admission = admission
        self._counters = counters
        self._hasher = BlockHasher(secret)
        self._pace = Pace(settings.step_target_s)
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        self._by_key: dict[int, Sequence] = {}
        self._free_keys = list(range(settings.max_num_seqs - 1, -1, -1))
        self._ended: list[int] = []
        self._promises: dict[bytes, int] = {}
        """Blocks that running sequences are about to compute: whoever needs one waits for it."""
        self._submitted = 0

    # ---- from outside ------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a request that the admission has let in."""
        if request.id in self._sequences:
            raise BadRequest(f"A request with the id {request.id!r} is running.", hint="Use another id.")
        self._submitted += 1
        priority = request.priority if self.settings.policy == "priority" else 0
        switch = self.settings.rope_switch_tokens
        prompt_tokens = len(request.prompt)
        rope_tokens = prompt_tokens if switch is not None and prompt_tokens > switch else 0
        root = self._hasher.root(request.salt, rope_tokens, adapter_key(request))
        sequence = Sequence(request, (priority, self._submitted), root, self._admission.max_total_tokens)
        self._sequences[request.id] = sequence
        insort(self.waiting, sequence, key=_rank)

    def finish(self, ids: Iterable[str], finish: Finish) -> list[TokenOut]:
        """End sequences wherever they are; their blocks are free at once. Unknown ids do nothing."""
        outs = []
        for name in ids:
            sequence = self._sequences.get(name)
            if sequence is not None:
                self._end(sequence)
                outs.append(_out(sequence, finish=finish))
        return outs

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Ids of everything that waits or runs."""
        return tuple(self._sequences)

    def busy(self) -> bool:
        """True while a step has something to do."""
        return bool(self._sequences)

    # ---- plan --------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan:
        """Decide the next step."""
        step = _Step(self.settings.max_num_batched_tokens, self.settings.logit_rows)
        self._yield_to_priority()
        self._continue_running(step)
        self._admit(step)
        ended, self._ended = tuple(self._ended), []
        return StepPlan(new=tuple(step.new), work=tuple(step.work), ended=ended)

    def _yield_to_priority(self) -> None:
        """Under the priority policy a better waiting sequence takes the place of the worst running one."""
        while self.waiting and self.running:
            head, worst = self.waiting[0], self.running[-1]
            if head.rank[0] >= worst.rank[0]:
                return
            if len(self.running) < self.settings.max_num_seqs and self._fits(head, self._cached(head)):
                return
            self._preempt(worst)

    def _continue_running(self, step: _Step) -> None:
        """Give running sequences their tokens; when blocks run out the last of them go back to the queue."""
        chunks: list[Sequence] = []
        for sequence in tuple(self.running):
            if sequence.key < 0:  # an older one has just taken its blocks
                continue
            if len(sequence.tokens) - sequence.computed > 1:
                chunks.append(sequence)
                continue
            grown = self._grow(sequence)
            if grown is not None:
                step.work.append(Work(sequence.key, sequence.computed, 1, grown, True))
                step.tokens_left -= 1
                step.rows_left -= 1
        bound = self._pace.tokens(len(step.work))
        if bound is not None:
            step.tokens_left = min(step.tokens_left, bound)
        for sequence in chunks:
            self._chunk(step, sequence, ())

    def _grow(self, sequence: Sequence) -> tuple[int, ...] | None:
        """Room for one more token: the new blocks, or None when the sequence itself had to give way."""
        if sequence.computed < len(sequence.blocks) * self.block_size:
            return ()
        while not self.pool.free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return None
        new = self.pool.allocate(1)
        sequence.blocks += new
        return tuple(new)

    def _chunk(self, step: _Step, sequence: Sequence, new_blocks: tuple[int, ...]) -> bool:
        """Plan the next part of a prompt, as much as the budgets allow; False when that is nothing."""
        wanted = len(sequence.tokens) - sequence.computed
        count = min(wanted, step.tokens_left, self.settings.max_chunk_tokens or wanted)
        pooling = sequence.request.pooling
        if pooling is not None and pooling.whole and count < wanted:
            return False
        per_token = sequence.wants_prompt_logprobs or (pooling is not None and pooling.rows == "all")
        if per_token and (pooling is None or not pooling.whole):
            count = min(count, step.rows_left)
        sample = count == wanted
        rows = count if per_token else int(sample)
        if count < 1 or rows > step.rows_left:
            return False
        step.work.append(Work(sequence.key, sequence.computed, count, new_blocks, sample))
        step.tokens_left -= count
        step.rows_left -= rows
        return True

    def _admit(self, step: _Step) -> None:
        """Start waiting sequences in order; one that waits for another's prefix, or for its adapter's turn,
        may be passed.
        """
        index, held = 0, False
        adapters = {sequence.adapter for sequence in self.running if sequence.adapter}
        while index < min(len(self.waiting), self.settings.max_num_seqs):
            if step.tokens_left < 1 or step.rows_left < 1 or len(self.running) >= self.settings.max_num_seqs:
                return
            sequence = self.waiting[index]
            full = len(adapters) >= self.settings.max_adapters and sequence.adapter not in adapters
            if sequence.adapter and (full or held):
                held = True  # those behind it that have an adapter wait too: else its turn might never come
                index += 1
                continue
            pooling = sequence.request.pooling
            if pooling is not None and pooling.whole and len(sequence.tokens) > step.tokens_left:
                index += 1  # the first of the next step
                continue
            shared = self._cached(sequence)
            if self._promised(sequence, len(shared)):
                index += 1
                continue
            if not self._fits(sequence, shared):
                return
            del self.waiting[index]
            self._start(step, sequence, shared)
            if sequence.adapter:
                adapters.add(sequence.adapter)

    def _cached(self, sequence: Sequence) -> list[int]:
        """Blocks of the prefix cache that the sequence can use; its last token is always computed."""
        if not self.settings.prefix_caching or sequence.computes_all:
            return []
        self._name_blocks(sequence, self._blocks_for(sequence))
        return self.pool.match(sequence.digests, (len(sequence.tokens) - 1) // self.block_size)

    def _promised(self, sequence: Sequence, shared: int) -> bool:
        """True when a running sequence is about to compute the next block that this one needs."""
        if not self._promises or sequence.computes_all:
            return False
        if shared >= (len(sequence.tokens) - 1) // self.block_size:
            return False
        return sequence.digests[shared] in self._promises

    def _fits(self, sequence: Sequence, shared: list[int]) -> bool:
        """Room for all its present tokens, and a block for everyone who runs, so that they can go on."""
        fresh = -(-len(sequence.tokens) // self.block_size) - len(shared)
        return fresh + len(self.running) <= self.pool.free - self.pool.idle_among(shared)

    def _start(self, step: _Step, sequence: Sequence, shared: list[int]) -> None:
        self.pool.share(shared)
        fresh = -(-len(sequence.tokens) // self.block_size) - len(shared)
        sequence.blocks = shared + self.pool.allocate(fresh)
        sequence.computed = len(shared) * self.block_size
        sequence.published = len(shared)
        sequence.key = self._free_keys.pop()
        self._by_key[sequence.key] = sequence
        insort(self.running, sequence, key=_rank)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            sequence.started_s = self._clock()
            self._admission.leave(sequence.request)
            if self.settings.prefix_caching and not sequence.computes_all:
                self._counters.prefix_queried_tokens += len(sequence.tokens)
                self._counters.prefix_hit_tokens += sequence.computed
        if self.settings.prefix_caching:
            self._promise(sequence)
        step.new.append(sequence.introduction())
        self._chunk(step, sequence, tuple(sequence.blocks))

    # ---- prefix cache ------------------------------------------------------------------------------------

    def _blocks_for(self, sequence: Sequence) -> int:
        return len(sequence.tokens) // self.block_size

    def _name_blocks(self, sequence: Sequence, full: int) -> None:
        if len(sequence.digests) < full:
            self._hasher.extend(sequence.digests, sequence.root, sequence.tokens, self.block_size, full)

    def _promise(self, sequence: Sequence) -> None:
        self._name_blocks(sequence, self._blocks_for(sequence))
        sequence.promised = len(sequence.digests)
        for digest in sequence.digests[sequence.published : sequence.promised]:
            self._promises[digest] = self._promises.get(digest, 0) + 1

    def _keep_promise(self, digest: bytes) -> None:
        left = self._promises[digest] - 1
        if left:
            self._promises[digest] = left
        else:
            del self._promises[digest]

    def _publish(self, sequence: Sequence) -> None:
        """Make computed full blocks known to the pool."""
        full = sequence.computed // self.block_size
        if full == sequence.published or not self.settings.prefix_caching:
            return
        self._name_blocks(sequence, full)
        for index in range(sequence.published, full):
            digest = sequence.digests[index]
            self.pool.publish(sequence.blocks[index], digest)
            if index < sequence.promised:
                self._keep_promise(digest)
        sequence.published = full

    # ---- leaving -----------------------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, to be computed again from its tokens so far."""
        self._stop(sequence)
        sequence.reset()
        insort(self.waiting, sequence, key=_rank)
        sequence.preemptions += 1
        self._counters.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Take a running sequence off the runner and free what it holds."""
        for digest in sequence.digests[sequence.published : sequence.promised]:
            self._keep_promise(digest)
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        del self._by_key[sequence.key]
        self._ended.append(sequence.key)
        self._free_keys.append(sequence.key)
        sequence.key = -1

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.id]
        if sequence.key >= 0:
            self._stop(sequence)
            return
        self.waiting.remove(sequence)
        if sequence.cached_tokens is None:
            self._admission.leave(sequence.request)

    def retry(self, plan: StepPlan, reason: str) -> list[TokenOut]:
        """A step failed: end those that most likely made it fail, compute the others again.

        Newcomers are blamed when others ran well before; else everyone of the step ends with `error`.
        """
        newcomers = {new.key for new in plan.new}
        here = [self._by_key[work.key] for work in plan.work]
        blamed = [sequence for sequence in here if sequence.key in newcomers] or here
        for sequence in here:
            if sequence not in blamed:
                self._preempt(sequence)
        names = [sequence.request.id for sequence in blamed]
        return self.finish(names, Finish("error", error=reason))

    # ---- commit ------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenOut]:
        """Take over a step's results; one TokenOut for each sequence that got a token or ended."""
        now = self._clock()
        self._pace.note(sum(work.count for work in plan.work), result.forward_s)
        outs = []
        for work, sampled in zip(plan.work, result.sampled, strict=True):
            if work.key != sampled.key:
                raise RuntimeError(f"the step answered for sequence {sampled.key} instead of {work.key}")
            out = self._settle(self._by_key[work.key], work, sampled, now)
            if out is not None:
                outs.append(out)
        return outs

    def _settle(self, sequence: Sequence, work: Work, sampled: Sampled, now: float) -> TokenOut | None:
        if sampled.error is not None:
            return self.finish((sequence.request.id,), Finish("error", error=sampled.error))[0]
        if sampled.pooled is not None:
            return self._give(sequence, work, sampled)
        sequence.computed += work.count
        if sequence.counted < sequence.prompt_tokens:
            self._count_prompt(sequence, work)
        self._publish(sequence)
        if sampled.prompt_logprobs:
            sequence.prompt_logprobs += sampled.prompt_logprobs
        if not sampled.tokens:
            return None
        return self._extend(sequence, sampled, now)

    def _give(self, sequence: Sequence, work: Work, sampled: Sampled) -> TokenOut:
        """A pooled sequence has its result."""
        sequence.computed += work.count
        self._count_prompt(sequence, work)
        self._publish(sequence)
        self._end(sequence)
        return _out(sequence, pooled=sampled.pooled, finish=Finish("stop"))

    def _count_prompt(self, sequence: Sequence, work: Work) -> None:
        done = min(work.start + work.count, sequence.prompt_tokens)
        fresh = done - max(sequence.counted, work.start)
        if fresh > 0:
            self._counters.prompt_tokens += fresh
            sequence.counted = done

    def _extend(self, sequence: Sequence, sampled: Sampled, now: float) -> TokenOut:
        """Append sampled tokens until one of them ends the sequence."""
        prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        if sequence.first_token_s is None:
            if sequence.sampling.prompt_logprobs is not None:
                skipped = sequence.prompt_tokens - len(sequence.prompt_logprobs)
                prompt_logprobs = (*(None,) * skipped, *sequence.prompt_logprobs)
            sequence.first_token_s = now
        finish: Finish | None = Finish("length") if sequence.sampling.max_tokens == 0 else None
        kept = 0
        for token in sampled.tokens if finish is None else ():
            kept += 1
            finish = sequence.append(token)
            if finish is not None:
                break
        if sampled.complete and (finish is None or finish.reason == "length"):
            finish = Finish("stop", complete=True)
        self._counters.generation_tokens += kept
        if finish is not None:
            self._end(sequence)
        return _out(
            sequence,
            tokens=sampled.tokens[:kept],
            logprobs=sampled.logprobs[:kept],
            prompt_logprobs=prompt_logprobs,
            finish=finish,
        )


def _out(sequence: Sequence, **news: Any) -> TokenOut:
    """News of a sequence, with what stays the same."""
    return TokenOut(
        id=sequence.request.id,
        cached_tokens=sequence.cached_tokens or 0,
        started_s=sequence.started_s,
        preemptions=sequence.preemptions,
        **news,
    )
