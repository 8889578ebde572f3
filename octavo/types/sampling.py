"""How a caller wants tokens drawn: vLLM's public `SamplingParams`, its fields, defaults and limits.

The one place where sampling values are checked. Everything refused is a :class:`~octavo.errors.BadRequest`
that names the field, the value and what is allowed; everything accepted is honoured or has no effect on the
output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from operator import index
from typing import Any, NoReturn

import msgspec

from octavo.errors import BadRequest
from octavo.types.repetition import RepetitionDetectionParams
from octavo.types.structured import StructuredOutputsParams

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
MAX_N = 16384
BIAS_LIMIT = 100.0
"""OpenAI's bound on logit_bias; larger values are clamped to it, as vLLM does."""
MAX_LOGPROB_IDS = 128
MIN_TEMPERATURE = 1e-2
"""Positive temperatures below this are raised to it, as vLLM does."""


class RequestOutputKind(Enum):
    """What each output of a running request holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the output before."""
    FINAL_ONLY = 2
    """One output, at the end."""


class SamplingParams(msgspec.Struct, repr_omit_defaults=True):
    """How to sample the answer to one prompt. Positional order and names are vLLM's.

    Values are checked and normalised on construction: `stop` becomes a list, `seed=-1` and
    `logprobs=False` become None, `top_k=-1` becomes 0 (every token), `logit_bias` gets int keys.
    Fields may be changed afterwards; whoever receives the object calls :meth:`verify` once more.

    Raises BadRequest for a value of the wrong type or outside its range, and for a feature that would change
    the output and is not there.
    """

    n: int = 1
    """How many answers to make, 1..16384; 1 when temperature is 0."""
    presence_penalty: float = 0.0
    """-2..2, taken from the logit of every token that the answer already has."""
    frequency_penalty: float = 0.0
    """-2..2, taken once per occurrence in the answer."""
    repetition_penalty: float = 1.0
    """> 0; divides positive and multiplies negative logits of tokens in prompt or answer."""
    temperature: float = 1.0
    """0..2; 0 is greedy."""
    top_p: float = 1.0
    """In (0, 1]."""
    top_k: int = 0
    """0 or -1 keep every token."""
    min_p: float = 0.0
    """0..1, relative to the most likely token."""
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: as many as fit into the context."""
    min_tokens: int = 0
    """No end token and no stop before this many tokens."""
    logprobs: int | None = None
    """None: none; 0: of the chosen token; k: of the k best besides; -1: of the whole vocabulary."""
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: Any = None
    """Token ids whose log-probabilities are told at each position of the prompt behind its first token, as a
    matrix in RequestOutput.prompt_token_id_logprobs: one list for all positions, or [positions, k], where -1
    fills a row up.
    """
    prompt_logprob_start: int | None = None
    """Positions of the prompt to leave out at its start, in both of the above."""
    logprob_token_ids: list[int] | None = None
    """At most 128 tokens whose log-probabilities are told beside the chosen one's, in place of the k best."""
    flat_logprobs: bool = False
    """Give them as FlatLogprobs: a few long lists instead of a dict for each token."""
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    """Send a streamed piece every this many tokens."""
    structured_outputs: Any = None
    """A StructuredOutputsParams, or its fields as a dict: the form that the answer must have."""
    logit_bias: dict[int, float] | None = None
    """Token id to a value in -100..100 that is added to its logit."""
    allowed_token_ids: list[int] | None = None
    """Only these may be drawn."""
    extra_args: dict[str, Any] | None = None
    """For plug-ins; nothing here reads it."""
    bad_words: list[str] | None = None
    """Strings whose last token is never drawn after the tokens before it."""
    skip_reading_prefix_cache: bool | None = None
    """True: all of the prompt is computed again, whatever is cached of it."""
    thinking_token_budget: int | None = None
    """At most this many tokens of reasoning, then its end is written; 0: none. No effect where none is."""
    repetition_detection: Any = None
    """A RepetitionDetectionParams, or its fields as a dict."""
    watermarking: Any = None
    trace_decode_token_ids: list[int] | None = None
    routed_experts_prompt_start: int | None = None
    best_of: int | None = None
    """From older releases; only its neutral value (equal to n) is taken."""
    guided_decoding: Any = None
    """The name that structured_outputs had in older releases."""
    logits_processors: list[Any] | None = None
    """Functions fn(output ids, logits) or fn(prompt ids, output ids, logits) that give the logits to sample
    from, in programs only; logits are float32 [vocab], a tensor where the function's module imports torch.
    """
    truncate_prompt_tokens: int | None = None
    """Keep only this many of the prompt's last tokens; -1: as many as the context holds."""
    use_beam_search: bool = False
    """Of the server's requests: n is the width. Scripts call LLM.beam_search."""
    early_stopping: bool | str = False
    """Of beam search: no effect without it. So is `length_penalty`."""
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Check and normalise."""
        self.verify()

    @classmethod
    def from_optional(cls, defaults: Mapping[str, Any] | None = None, **fields: Any) -> SamplingParams:
        """Build from fields that may be None, which then come from `defaults` and after it from the class.

        `max_tokens=None` is a value of its own (no limit but the context) and is kept.
        """
        given = {k: v for k, v in fields.items() if v is not None or k == "max_tokens"}
        return cls(**{**(defaults or {}), **given})

    def clone(self) -> SamplingParams:
        """A copy that shares no list or dict with this one (opaque `extra_args` values are shared)."""
        copied = {name: _copied(getattr(self, name)) for name in self.__struct_fields__}
        return SamplingParams(**copied)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        stop = self.stop
        return (stop,) if isinstance(stop, str) else tuple(stop or ())

    @property
    def num_logprobs(self) -> int | None:
        """How many log-probabilities are told beside each chosen token's; None: none at all."""
        return len(self.logprob_token_ids) if self.logprob_token_ids else self.logprobs

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def verify(self) -> None:
        """Check every field and write its normal form back; cheap, and safe to call again."""
        self._verify_numbers()
        self._verify_lists()
        self._verify_switches()
        self._verify_together()
        self._verify_form()
        self._refuse_unsupported()

    def _verify_numbers(self) -> None:
        """Ranges of the numeric fields (VLLM.md 2.4)."""
        self.n = _integer("n", self.n, 1, MAX_N)
        self.presence_penalty = _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self.frequency_penalty = _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self.repetition_penalty = _number("repetition_penalty", self.repetition_penalty, 0.0, FLOAT32_MAX)
        if self.repetition_penalty < FLOAT32_MIN:
            _refuse("repetition_penalty", self.repetition_penalty, "a number > 0")
        self.temperature = _number("temperature", self.temperature, 0.0, 2.0)
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        self.top_p = _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            _refuse("top_p", self.top_p, "a number > 0 and <= 1")
        self.top_k = max(_integer("top_k", self.top_k, -1, INT64_MAX), 0)
        self.min_p = _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            seed = _integer("seed", self.seed, -INT64_MAX - 1, INT64_MAX)
            self.seed = None if seed == -1 else seed
        if self.max_tokens is not None:
            self.max_tokens = _integer("max_tokens", self.max_tokens, 1, INT64_MAX)
        self.min_tokens = _integer("min_tokens", self.min_tokens, 0, INT64_MAX)
        self.logprobs = _logprobs("logprobs", self.logprobs)
        self.prompt_logprobs = _logprobs("prompt_logprobs", self.prompt_logprobs)
        if self.truncate_prompt_tokens is not None:
            self.truncate_prompt_tokens = _integer(
                "truncate_prompt_tokens", self.truncate_prompt_tokens, -1, INT64_MAX
            )
        if self.thinking_token_budget is not None:
            budget = _integer("thinking_token_budget", self.thinking_token_budget, -1, INT64_MAX)
            self.thinking_token_budget = None if budget == -1 else budget
        if self.stream_interval is not None:
            self.stream_interval = _integer("stream_interval", self.stream_interval, 1, INT64_MAX)
        self.length_penalty = _number("length_penalty", self.length_penalty, -FLOAT32_MAX, FLOAT32_MAX)

    def _verify_lists(self) -> None:
        """Strings and token ids; each becomes a list of its own."""
        stop = self.stop
        self.stop = _strings("stop", [stop] if isinstance(stop, str) else stop) if stop is not None else []
        self.stop_token_ids = _ids("stop_token_ids", self.stop_token_ids) if self.stop_token_ids else []
        self.bad_words = _strings("bad_words", self.bad_words) if self.bad_words else []
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                _refuse("allowed_token_ids", [], "at least one token id (leave it out to allow every token)")
        if self.logit_bias is not None:
            self.logit_bias = _bias(self.logit_bias)
        self._verify_logprob_ids()
        processors = self.logits_processors or []
        if not isinstance(processors, list) or not all(map(callable, processors)):
            _refuse("logits_processors", processors, "a list of functions")

    def _verify_logprob_ids(self) -> None:
        """The tokens whose log-probabilities are wanted by name, and where those of the prompt begin."""
        wanted = _ids("logprob_token_ids", self.logprob_token_ids) if self.logprob_token_ids else []
        if len(wanted) > MAX_LOGPROB_IDS:
            _refuse("logprob_token_ids", f"{len(wanted)} of them", f"at most {MAX_LOGPROB_IDS} token ids")
        self.logprob_token_ids = list(dict.fromkeys(wanted)) or None
        if self.prompt_logprob_start is not None:
            start = _integer("prompt_logprob_start", self.prompt_logprob_start, 0, INT32_MAX)
            self.prompt_logprob_start = start
        if self.prompt_logprob_token_ids is not None:
            self.prompt_logprob_token_ids = _rows("prompt_logprob_token_ids", self.prompt_logprob_token_ids)

    def _verify_switches(self) -> None:
        """Fields that are true or false, and the output kind."""
        for name in _SWITCHES:
            if type(value := getattr(self, name)) is not bool:
                _refuse(name, value, "true or false")
        if type(kind := self.output_kind) is not RequestOutputKind:
            _refuse("output_kind", kind, "a RequestOutputKind: CUMULATIVE, DELTA or FINAL_ONLY")

    def _verify_together(self) -> None:
        """Rules over two fields."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadRequest(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}.",
                hint="Lower min_tokens or raise max_tokens.",
                param="min_tokens",
            )
        if self.temperature == 0.0 and self.n > 1 and not self.use_beam_search:
            raise BadRequest(
                f"n={self.n} with temperature=0 would give {self.n} equal answers.",
                hint="Use n=1 or a temperature above 0.",
                param="n",
            )
        if self.best_of is not None and _integer("best_of", self.best_of, 1, MAX_N) < self.n:
            raise BadRequest(
                f"best_of={self.best_of} is less than n={self.n}.",
                hint="best_of sequences run and the n most likely are given.",
                param="best_of",
            )
        if self.prompt_logprob_token_ids is not None and self.prompt_logprobs is not None:
            raise BadRequest(
                "prompt_logprobs and prompt_logprob_token_ids cannot both be given.",
                hint="Send two requests.",
                param="prompt_logprob_token_ids",
            )
        if self.stop and not self.detokenize:
            raise BadRequest(
                "stop strings need the text, but detokenize is false.",
                hint="Use stop_token_ids, or leave detokenize on.",
                param="stop",
            )

    def _verify_form(self) -> None:
        """structured_outputs under either of its names, and repetition_detection."""
        if self.guided_decoding is not None:
            if self.structured_outputs is not None and self.structured_outputs is not self.guided_decoding:
                raise BadRequest(
                    "structured_outputs and guided_decoding are two names of one field.",
                    hint="Use structured_outputs.",
                    param="guided_decoding",
                )
            self.structured_outputs, self.guided_decoding = self.guided_decoding, None
        if self.repetition_detection is not None:
            self.repetition_detection = RepetitionDetectionParams.of(self.repetition_detection)
        if self.structured_outputs is not None:
            self.structured_outputs = StructuredOutputsParams.of(self.structured_outputs)

    def _refuse_unsupported(self) -> None:
        """Refuse what would change the output and is not there; neutral values pass."""
        for name in _NOT_YET:
            if value := getattr(self, name):
                _unsupported(name, value, "Leave it out.")


_SWITCHES = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "flat_logprobs",
)

_NOT_YET = (
    "watermarking",
    "trace_decode_token_ids",
    "routed_experts_prompt_start",
)

FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_MIN = 1.1754943508222875e-38


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Raise the one message for a value outside its range or type."""
    raise BadRequest(f"{name} must be {allowed}, but is {_shown(value)}.", param=name)


def _unsupported(name: str, value: object, hint: str) -> NoReturn:
    """Raise for a feature that is not there."""
    raise BadRequest(f"{name}={_shown(value)} is not supported.", hint=hint, param=name)


def _shown(value: object) -> str:
    """A value for a message, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float in low..high; NaN fails the comparison."""
    if type(value) is not float:
        if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
            _refuse(name, value, f"a number in {_span(low, high)}")
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            _refuse(name, value, f"a number in {_span(low, high)}")
    if not low <= value <= high:
        _refuse(name, value, f"a number in {_span(low, high)}")
    return value  # type: ignore[no-any-return]


def _integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int in low..high; a float passes when it is whole, as JSON clients send 16.0."""
    if type(value) is not int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        elif isinstance(value, bool) or not hasattr(value, "__index__"):
            _refuse(name, value, f"an integer in {_span(low, high)}")
        else:
            value = _indexed(name, value)
    if not low <= value <= high:
        _refuse(name, value, f"an integer in {_span(low, high)}")
    return value  # type: ignore[no-any-return]


def _indexed(name: str, value: Any) -> int:
    """The int of an integer-like object (NumPy scalars); arrays of several are refused."""
    try:
        return index(value)
    except (TypeError, ValueError, RuntimeError):
        _refuse(name, value, "an integer")


def _span(low: float, high: float) -> str:
    """A range in words, with the machine's own limits left out."""
    if high == INT64_MAX:
        return f"{int(low)}..2^63-1" if low > -INT64_MAX else "-2^63..2^63-1"
    if high == FLOAT32_MAX:
        return "float32's finite range" if low < 0 else f"{low:g} and up, finite"
    return f"{low}..{high}" if isinstance(high, int) else f"{low:g}..{high:g}"


def _logprobs(name: str, value: Any) -> int | None:
    """A count of log-probabilities; True and False are taken as 1 and None, as vLLM does."""
    if value is None or value is False:
        return None
    return 1 if value is True else _integer(name, value, -1, INT32_MAX)


def _strings(name: str, values: Any) -> list[str]:
    """A list of non-empty strings."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        _refuse(name, values, "a list of strings")
    strings = list(values)
    for text in strings:
        if not isinstance(text, str) or not text:
            _refuse(name, text, "made of non-empty strings")
    return strings


def _ids(name: str, values: Any) -> list[int]:
    """A list of token ids; whether the vocabulary has them is checked where it is known."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        _refuse(name, values, "a list of token ids")
    return [_integer(name, value, 0, INT32_MAX) for value in values]


def _rows(name: str, values: Any) -> list[int] | list[list[int]]:
    """One list of token ids, or one for each position, all as long as the longest; -1 stands for none."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, (list, tuple)) or not listed:
        _refuse(name, values, "a list of token ids, or a list of such lists")
    if not isinstance(listed[0], (list, tuple)):
        return _ids(name, listed)
    rows = [[_integer(name, token, -1, INT32_MAX) for token in row] for row in listed]
    width = max(map(len, rows))
    return [row + [-1] * (width - len(row)) for row in rows]


def _bias(values: Any) -> dict[int, float]:
    """logit_bias with int keys (JSON has strings) and values clamped to -100..100."""
    if not isinstance(values, Mapping):
        _refuse("logit_bias", values, "an object from token id to number")
    bias = {}
    for key, value in values.items():
        text = isinstance(key, str) and key.strip().isascii() and key.strip().isdigit() and len(key) < 20
        token = _integer("logit_bias", int(key) if text else key, 0, INT32_MAX)
        number = _number("logit_bias", value, -FLOAT32_MAX, FLOAT32_MAX)
        bias[token] = min(max(number, -BIAS_LIMIT), BIAS_LIMIT)
    return bias


def _copied(value: Any) -> Any:
    """A shallow copy of the mutable containers that a field may hold."""
    return value.copy() if isinstance(value, (list, dict)) else value
