"""From a Job to what the engine runs: render, tokenize, check, and decide every sampling value."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.config.generation import GenerationConfig
from octavo.config.pooling import Pooler
from octavo.errors import BadRequest, PromptTooLong
from octavo.parsers.parser import ReplyFormat
from octavo.pipeline.calls import is_forced, may_call
from octavo.pipeline.checks import check_texts, check_unicode, in_vocab
from octavo.pipeline.detokenizer import make_detokenizer
from octavo.pipeline.grammar import Grammars
from octavo.pipeline.logprobs import wanted_logprobs
from octavo.pipeline.long_text import telling
from octavo.pipeline.output import SequenceText
from octavo.pipeline.pooled import PooledText, check_kind, pair_prompt, resolve
from octavo.pipeline.replies import Replies
from octavo.pipeline.stop import EndTokens, LoopGuard, Repetition, StopStrings
from octavo.pipeline.template import RENDER_S, ChatTemplate
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import EngineRequest, SamplingSpec
from octavo.types.facts import ModelFacts
from octavo.types.grammar import Grammar
from octavo.types.job import ChatOptions, Job, Started
from octavo.types.pooling import PoolingParams
from octavo.types.sampling import SamplingParams

_SEED_MASK = (1 << 63) - 1


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the doors may know of the model that is served."""

    names: tuple[str, ...]
    """Served names; the first is reported."""
    max_model_len: int
    """Prompt and answer together, in tokens."""
    vocab_size: int
    """Rows of the model's output; may be larger than the tokenizer's vocabulary."""
    max_logprobs: int = 20
    """-1: no limit."""
    logprobs_mode: str = "raw_logprobs"
    stream_interval: int = 1
    """Tokens in one piece of a stream, where a request says nothing."""
    created: int = msgspec.field(default_factory=lambda: int(time.time()))
    """Unix time at which the model was loaded."""
    root: str = ""
    """The folder or id that it was loaded from."""
    facts: ModelFacts = ModelFacts()

    @property
    def name(self) -> str:
        """The first served name."""
        return self.names[0]


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job ready to run: one request and one text state per sequence, in the order of their index."""

    started: Started
    requests: tuple[EngineRequest, ...]
    texts: tuple[SequenceText, ...]
    best_of: bool = False
    """More sequences run than `n`: only the `n` best by cumulative log-probability are given out."""
    n: int = 1
    unbounded: bool = False
    """The client named no max_tokens."""
    strip_logprobs: bool = False
    """Log-probabilities are there for best_of only: the client did not ask for them."""
    interval: int = 1
    """Tokens in one piece of a stream, behind the first."""


class Preparer:
    """Pure and synchronous: the same for the server and for LLM, callable from any thread."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        generation: GenerationConfig,
        info: ModelInfo,
        *,
        ends: EndTokens | None = None,
        default_max_tokens: int | None = None,
        loop_guard: bool = True,
        seed: int | None = None,
        truncation_side: str = "left",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reply_format: ReplyFormat | None = None,
        pooler: Pooler | None = None,
        pair_template: ChatTemplate | None = None,
    ) -> None:
        """`tokenizer` None: only token ids in and out. `ends` None: those of generation config and tokenizer.
        `seed`: from which the seeds of requests without one are drawn; None takes the system's randomness.
        `truncation_side`: where truncate_prompt_tokens cuts; ``left`` keeps the last tokens.
        `chat_template_kwargs`: template variables of every chat, under what the chat brings itself.
        `reply_format`: how the model marks reasoning and tool calls; None takes nothing out of a reply.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.generation = generation
        self.info = info
        self.ends = ends if ends is not None else _plain_ends(tokenizer, generation)
        self.default_max_tokens = default_max_tokens
        self.replies = Replies(reply_format if reply_format is not None else ReplyFormat(), tokenizer)
        self._loop_guard = loop_guard
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self.pooler = pooler
        self._pair_template = pair_template
        self._keeps_last = truncation_side != "right"
        self._random = random.Random(seed if seed is not None else secrets.randbits(63))
        self._lock = threading.Lock()
        self._grammars = Grammars(tokenizer, info.vocab_size) if tokenizer is not None else None

    def prepare(self, job: Job, arrival_s: float | None = None) -> Prepared:
        """Everything that `job` needs to run. Raises BadRequest (with `param`) or PromptTooLong.

        `arrival_s` is time.monotonic() at arrival, now when None.
        """
        check_kind(job, self.pooler)
        if job.pooling is not None and self.pooler is not None:
            return self._prepare_pooled(job, job.pooling, self.pooler, arrival_s)
        started = self.encode(job)
        sampling = job.sampling
        if sampling.use_beam_search:
            raise BadRequest(
                "use_beam_search is not for this call.",
                hint="Call LLM.beam_search with BeamSearchParams.",
                param="use_beam_search",
            )
        max_tokens, unbounded = self._max_tokens(job, len(started.prompt_ids))
        count = max(sampling.n, sampling.best_of or 0)
        seed = self._seed(sampling)
        spec = self._spec(sampling, max_tokens, len(started.prompt_ids), count, seed)
        if not job.raw_logprobs and count == sampling.n:
            spec = msgspec.structs.replace(spec, logprobs_mode=self.info.logprobs_mode)
        grammar = self._grammar(job, started)
        arrival = time.monotonic() if arrival_s is None else arrival_s
        requests = tuple(
            EngineRequest(
                id=job.id if count == 1 else f"{job.id}-{i}",
                prompt=started.prompt_ids,
                sampling=spec if i == 0 else msgspec.structs.replace(spec, seed=(seed + i) & _SEED_MASK),
                arrival_s=arrival,
                priority=job.priority,
                salt=job.salt,
                adapter=job.adapter,
                grammar=grammar,
            )
            for i in range(count)
        )
        texts = tuple(self._text(i, job, started, max_tokens, unbounded, grammar) for i in range(count))
        return Prepared(
            started=started,
            requests=requests,
            texts=texts,
            best_of=count > sampling.n,
            n=sampling.n,
            unbounded=unbounded,
            strip_logprobs=sampling.num_logprobs is None,
            interval=sampling.stream_interval or self.info.stream_interval,
        )

    def _prepare_pooled(
        self, job: Job, params: PoolingParams, pooler: Pooler, arrival_s: float | None
    ) -> Prepared:
        params.verify()
        limit = params.truncate_prompt_tokens
        limit = self.info.max_model_len if limit == -1 else limit
        text, ids, second_from = self._pooled_prompt(job, pooler, limit)
        self.check_prompt(ids, answer=0)
        request = EngineRequest(
            id=job.id,
            prompt=tuple(ids),
            sampling=SamplingSpec(max_tokens=0),
            arrival_s=time.monotonic() if arrival_s is None else arrival_s,
            priority=job.priority,
            salt=job.salt,
            adapter=job.adapter,
            pooling=resolve(params, pooler, second_from),
        )
        started = Started(prompt=text, prompt_ids=request.prompt)
        return Prepared(started=started, requests=(request,), texts=(PooledText(),))

    def _pooled_prompt(
        self, job: Job, pooler: Pooler, limit: int | None
    ) -> tuple[str | None, Sequence[int], int | None]:
        """(text, ids cut to `limit`, where a pair's second text begins)."""
        if job.pair is None and (job.prompt is None or limit is None):
            text, ids = self._prompt(job)
            return text, ids[:limit], None
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise BadRequest(
                "A text needs a tokenizer (--skip-tokenizer-init).", hint="Send token ids.", param="input"
            )
        told = [None if text is None else self._telling(text) for text in (job.prompt, job.pair)]
        job = msgspec.structs.replace(job, prompt=told[0], pair=told[1])
        joined = None if job.pair is None else pair_prompt(job, pooler, tokenizer, self._pair_template)
        pair = None if joined is not None else job.pair
        text = job.prompt or "" if joined is None else joined
        ids, second_from = tokenizer.encode_pair(text, pair, limit, job.add_special_tokens)
        return text, ids, second_from

    def encode(self, job: Job) -> Started:
        """The prompt of `job` as text and ids, cut and checked. Raises BadRequest or PromptTooLong."""
        text, ids = self._prompt(job)
        ids = self._truncate(job, ids)
        self.check_prompt(ids)
        return Started(prompt=text, prompt_ids=tuple(ids))

    def _telling(self, text: str, *, end: bool = False) -> str:
        """`text`, or as much of one that is far too long as shows it. Raises BadRequest for no Unicode."""
        check_unicode(text)
        return telling(text, self.info.max_model_len, lambda some: len(self.encode_text(some, True)), end=end)

    def render(self, messages: Sequence[dict[str, object]], chat: ChatOptions | None = None) -> str:
        """The text of a chat. Raises BadRequest when there is no template or it refuses the messages."""
        if self.tokenizer is None:
            raise BadRequest(
                "Chat needs a tokenizer, but the server runs without one (--skip-tokenizer-init).",
                hint="Send token ids to /v1/completions.",
                param="messages",
            )
        chat = chat if chat is not None else ChatOptions()
        template = self.template
        if chat.template is not None:
            template = ChatTemplate(chat.template, seconds=template.seconds if template else RENDER_S)
        if template is None:
            raise BadRequest(
                "This model has no chat template (it may be a base model).",
                hint="Use /v1/completions, or start with --chat-template FILE.",
                param="messages",
            )
        if self._chat_template_kwargs:
            chat = msgspec.structs.replace(chat, kwargs={**self._chat_template_kwargs, **chat.kwargs})
        return template.render(messages, chat, self.tokenizer.special_tokens_map)

    def check_prompt(self, ids: Sequence[int], answer: int = 1) -> None:
        """Refuse an empty prompt, ids outside the vocabulary, and no room left for `answer` tokens."""
        if not ids:
            raise BadRequest("The prompt is empty.", hint="Send at least one token.", param="prompt")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.info.vocab_size:
            bad = low if low < 0 else high
            raise BadRequest(
                f"Token id {bad} is out of vocabulary: ids go from 0 to {self.info.vocab_size - 1}.",
                param="prompt",
            )
        limit = self.info.max_model_len - answer
        if len(ids) > limit:
            raise PromptTooLong(len(ids), limit, hint=self._too_long)

    @property
    def _too_long(self) -> str:
        """What to do with a prompt that is too long."""
        return (
            f"The context of {self.info.max_model_len} tokens holds prompt and answer. "
            "Shorten the prompt, send truncate_prompt_tokens, or start with a larger --max-model-len."
        )

    def _prompt(self, job: Job) -> tuple[str | None, Sequence[int]]:
        """(text, ids) before any cut."""
        if job.prompt_ids is not None:
            return job.prompt, job.prompt_ids
        chat = job.chat if job.chat is not None else ChatOptions()
        if job.messages is not None:
            text, special = self.render(job.messages, chat), chat.add_special_tokens
        elif job.prompt is not None:
            text, special = job.prompt, job.add_special_tokens
        else:
            raise BadRequest("There is no prompt.", param="prompt")
        if self.tokenizer is None:
            raise BadRequest(
                "A text prompt needs a tokenizer, but the server runs without one (--skip-tokenizer-init).",
                hint="Send token ids.",
                param="prompt",
            )
        cut = job.sampling.truncate_prompt_tokens is not None
        part = self._telling(text, end=cut and self._keeps_end(job))
        ids = self.encode_text(part, special)
        if part is not text and not cut and job.pooling is None:
            raise PromptTooLong(len(ids), self.info.max_model_len - 1, hint=self._too_long, at_least=True)
        return text, ids

    def encode_text(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """Ids of a text. Raises BadRequest without a tokenizer and for text that is no Unicode."""
        if self.tokenizer is None:
            raise BadRequest("There is no tokenizer (--skip-tokenizer-init).", param="prompt")
        check_unicode(text)
        return self.tokenizer.encode(text, add_special_tokens)

    def _truncate(self, job: Job, ids: Sequence[int]) -> Sequence[int]:
        """Apply truncate_prompt_tokens; -1 means what the context holds beside the answer."""
        sampling = job.sampling
        limit = sampling.truncate_prompt_tokens
        if limit is None:
            return ids
        if limit == -1:
            limit = self.info.max_model_len - max(1, sampling.max_tokens or 1)
        if not 1 <= limit < self.info.max_model_len:
            raise BadRequest(
                f"truncate_prompt_tokens={sampling.truncate_prompt_tokens} leaves no usable prompt in a "
                f"context of {self.info.max_model_len} tokens.",
                hint=f"Use 1..{self.info.max_model_len - 1}, or -1 with a smaller max_tokens.",
                param="truncate_prompt_tokens",
            )
        return ids[-limit:] if self._keeps_end(job) else ids[:limit]

    def _keeps_end(self, job: Job) -> bool:
        """Whether a prompt that is cut keeps its last tokens."""
        return self._keeps_last if job.truncation_side is None else job.truncation_side == "left"

    def has_form(self, job: Job) -> bool:
        """Whether a grammar must be compiled for the job."""
        form, chat = job.sampling.structured_outputs, job.chat
        marks = self.replies.calls
        return (
            form is not None
            or job.sampling.thinking_token_budget is not None
            or is_forced(chat)
            or (marks is not None and marks.optional and may_call(chat, True))
        )

    def _grammar(self, job: Job, started: Started) -> Grammar | None:
        """What the answers must match, compiled, and how long they may reason. Raises BadRequest."""
        if not self.has_form(job):
            return None
        tokens = job.sampling.thinking_token_budget
        if self._grammars is None:
            name = "structured_outputs" if tokens is None else "thinking_token_budget"
            raise BadRequest(
                f"{name} needs a tokenizer, but there is none (--skip-tokenizer-init).", param=name
            )
        grammar = self._grammars.of_job(job, self.replies.calls)
        if grammar is None:
            bound = (
                self.replies.bound_reasoning(job.chat, started.prompt, tokens) if tokens is not None else None
            )
            if bound is None:
                return None
            return msgspec.structs.replace(self._grammars.free(), after=bound[0], budget=bound[1])
        after, opens = self.replies.reasoning(job.chat, started.prompt)
        if is_forced(job.chat) and self.replies.form.harmony:
            after = ()  # the grammar has the reasoning in it; the parser of plain JSON expects none
        budget = self.replies.budget(tokens) if after and tokens is not None else None
        leaves = self.replies.leaves() if after and grammar.marked else ()
        return msgspec.structs.replace(grammar, after=after, opens=opens, leaves=leaves, budget=budget)

    def _max_tokens(self, job: Job, prompt_tokens: int) -> tuple[int, bool]:
        """(tokens that may be generated, whether the client left it open). More than fits is cut silently."""
        room = self.info.max_model_len - prompt_tokens
        wanted = job.sampling.max_tokens
        if wanted is None:
            defaults = (job.default_max_tokens, self.default_max_tokens, self.generation.max_tokens)
            return min(room, next((n for n in defaults if n is not None), room)), True
        if wanted > self.info.max_model_len:
            raise BadRequest(
                f"max_tokens={wanted} is more than the context of {self.info.max_model_len} tokens.",
                hint=f"Ask for at most {room} after this prompt of {prompt_tokens}.",
                param="max_tokens",
            )
        return min(room, wanted), False

    def _spec(
        self, params: SamplingParams, max_tokens: int, prompt_tokens: int, count: int, seed: int
    ) -> SamplingSpec:
        """Every sampling value, decided and checked against the vocabulary."""
        vocab = self.info.vocab_size
        wanted = wanted_logprobs(params, self.info, max_tokens, prompt_tokens, count)
        stop_ids = in_vocab("stop_token_ids", params.stop_token_ids or (), vocab)
        ends = EndTokens(None) if params.ignore_eos else self.ends
        return SamplingSpec(
            max_tokens=max(1, max_tokens),
            min_tokens=min(params.min_tokens, max_tokens),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=min(params.top_k, vocab) if params.top_k > 0 else 0,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            seed=seed,
            eos_id=ends.primary,
            end_ids=tuple(dict.fromkeys((*stop_ids, *ends.others))),
            **wanted,
            logit_bias=self._bias(params),
            allowed_ids=tuple(
                dict.fromkeys(in_vocab("allowed_token_ids", params.allowed_token_ids or (), vocab))
            ),
            bad_words=self._bad_words(params.bad_words or ()),
            skip_cache=bool(params.skip_reading_prefix_cache),
            processors=tuple(params.logits_processors or ()),
        )

    def _bias(self, params: SamplingParams) -> tuple[tuple[int, float], ...]:
        """logit_bias with ids in the vocabulary and values within OpenAI's ±100."""
        bias = params.logit_bias or {}
        in_vocab("logit_bias", tuple(bias), self.info.vocab_size)
        return tuple((i, max(-100.0, min(100.0, value))) for i, value in bias.items())

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences of each word at the start of a text and after a space."""
        if not words:
            return ()
        if self.tokenizer is None:
            raise BadRequest("bad_words needs a tokenizer.", hint="Use logit_bias.", param="bad_words")
        check_texts("bad_words", words)
        found: list[tuple[int, ...]] = []
        for word in words:
            bare = word.lstrip() or word
            for text in (bare, " " + bare):
                ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
                if ids and max(ids) < self.info.vocab_size:
                    found.append(ids)
        return tuple(dict.fromkeys(found))

    def _seed(self, params: SamplingParams) -> int:
        """The request's seed as 63 bits, or one drawn for it."""
        if params.seed is not None:
            return params.seed & _SEED_MASK
        with self._lock:
            return self._random.getrandbits(63)

    def _text(
        self,
        index: int,
        job: Job,
        started: Started,
        max_tokens: int,
        unbounded: bool,
        grammar: Grammar | None,
    ) -> SequenceText:
        """The way back for sequence `index`."""
        params = job.sampling
        detokenizer = parser = None
        if self.tokenizer is not None and params.detokenize:
            parser, marks = self.replies.parser(job.chat, started.prompt, grammar)
            detokenizer = make_detokenizer(
                self.tokenizer,
                started.prompt_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
                kept=marks,
            )
        strings, repeats = params.stop_strings, params.repetition_detection
        check_texts("stop", strings)
        if strings and detokenizer is None:
            raise BadRequest(
                "Stop strings need the text of the answer.", hint="Use stop_token_ids instead.", param="stop"
            )
        return SequenceText(
            index,
            detokenizer=detokenizer,
            stops=StopStrings(strings, params.include_stop_str_in_output) if strings else None,
            guard=LoopGuard() if self._loop_guard and unbounded and not params.ignore_eos else None,
            repetition=Repetition(repeats) if repeats is not None and repeats.max_pattern_size else None,
            parser=parser,
            min_tokens=params.min_tokens,
            keep_end_text=params.include_stop_str_in_output,
            discard=max_tokens == 0,
        )


def _plain_ends(tokenizer: Tokenizer | None, generation: GenerationConfig) -> EndTokens:
    """End tokens without a look at config.json and the template."""
    primary = tokenizer.eos_id if tokenizer is not None else None
    listed = generation.eos_ids
    if primary is None and listed:
        primary = listed[0]
    return EndTokens(primary, tuple(i for i in listed if i != primary))
