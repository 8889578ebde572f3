"""Forms of answers, compiled by llguidance over the model's own vocabulary.

llguidance is imported, and the vocabulary prepared (about half a second for 150,000 tokens), when the first
request demands a form. Compiling is bounded by the sizes below and by llguidance's own limits, runs with the
GIL released, and its results are kept: the same schema costs nothing the second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import BadRequest
from octavo.pipeline import calls, forms
from octavo.pipeline import schema as schemas
from octavo.pipeline.values import Unheld
from octavo.pipeline.vocab import DecoderKind
from octavo.types.grammar import Grammar
from octavo.types.job import ChatOptions, Job
from octavo.types.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from octavo.pipeline.marks import CallMarks
    from octavo.pipeline.tokenizer import Tokenizer

_KEPT = 128
"""Compiled grammars."""
_KEPT_CHARS = 16 << 20
"""And at most this much text of theirs."""
_CALLS = schemas.Options(whitespace=forms.WHITESPACE)
_SHOWN_CHARS = 350


class Grammars:
    """Compiles what requests demand; any thread may call it, and one compiles at a time per grammar."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: width of the model's logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._chars = 0

    def of_job(self, job: Job, marks: CallMarks | None) -> Grammar | None:
        """The grammar of a job that has a form. `marks`: how the model writes calls, if that is known.

        A call that is forced goes before all else; where calls may be made, an answer in JSON or a call is
        allowed. None where only a strict tool asks for a form, and the marks cannot hold its schema.
        Raises BadRequest, which names the request's field.
        """
        form, chat = job.sampling.structured_outputs, job.chat
        if chat is not None and calls.is_forced(chat):
            return self._forced(chat, marks)
        schema = None
        if form is not None:
            with _blamed(_field(form)):
                schema = forms.json_schema(form)
        found = None
        if chat is not None and marks is not None and (form is None or schema is not None):
            found = self._chosen(chat, marks, form, schema)
        return found if found is not None or form is None else self.of(form)

    def _chosen(
        self, chat: ChatOptions, marks: CallMarks, form: StructuredOutputsParams | None, schema: Any
    ) -> Grammar | None:
        """Of an answer that is a call or has a form in JSON; without a form, any that may hold calls."""
        if not marks.optional or not calls.may_call(chat, strict=form is None):
            return None
        options = _CALLS if form is None else forms.options(form)
        param = "tools" if form is None else form.asked_as or "structured_outputs"
        try:
            return self._named(
                param, lambda: calls.chosen_calls(chat, marks, self._tokenizer, options, schema)
            )
        except Unheld:
            return None

    def _forced(self, chat: ChatOptions, marks: CallMarks | None) -> Grammar:
        """Of calls that must be made: in the model's own marks where these can hold their schemas."""
        if marks is not None:
            try:
                found = self._named("tools", lambda: calls.forced_calls(chat, marks, self._tokenizer, _CALLS))
                return msgspec.structs.replace(found, marked=True)
            except Unheld:
                pass
        return self._named("tools", lambda: schemas.grammar(calls.forced_call(chat), _CALLS))

    def of(self, params: StructuredOutputsParams) -> Grammar:
        """The grammar of a form alone. Raises BadRequest, which names the request's field."""
        return self._named(_field(params), lambda: forms.source(params))

    def _named(self, param: str, source: Callable[[], str]) -> Grammar:
        with _blamed(param):
            return self.compile(source())

    def free(self) -> Grammar:
        """Of an answer that may be anything: only its reasoning is bound."""
        return Grammar(matcher=None, vocabulary=self._shared())

    def _shared(self) -> Vocabulary:
        """The one vocabulary."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary

    def compile(self, source: str) -> Grammar:
        """From llguidance's own text of a grammar. Raises BadRequest with llguidance's reason."""
        vocabulary = self._shared()
        digest = hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            if (found := self._kept.get(digest)) is not None:
                self._kept.move_to_end(digest)
                return Grammar(matcher=found[0], vocabulary=vocabulary)
        matcher = vocabulary.matcher(source)
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = matcher, len(source)
                self._chars += len(source)
            while len(self._kept) > _KEPT or (self._chars > _KEPT_CHARS and len(self._kept) > 1):
                self._chars -= self._kept.popitem(last=False)[1][1]
        return Grammar(matcher=matcher, vocabulary=vocabulary)


def _field(form: StructuredOutputsParams) -> str:
    """The request's field that asked for a form."""
    return form.asked_as or f"structured_outputs.{forms.name_of(form)}"


@contextlib.contextmanager
def _blamed(param: str) -> Iterator[None]:
    """What is refused inside is the fault of that field."""
    try:
        yield
    except BadRequest as error:
        error.param = param
        raise


class Vocabulary:
    """A tokenizer as llguidance sees it: the bytes of every token, and one token more that means the end.

    The model's end tokens differ between requests (ignore_eos, stop_token_ids); whoever walks a grammar puts
    them in the place of that one.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: width of the model's logits; rows beyond the tokenizer's tokens are never drawn."""
        self.end_bit = vocab_size
        self.end_id = (
            tokenizer.eos_id if tokenizer.eos_id is not None and tokenizer.eos_id < vocab_size else None
        )
        self._tokenizer = tokenizer
        self._special = frozenset(i for i in tokenizer.special_ids if i < vocab_size)
        self._bytes = token_bytes(tokenizer, vocab_size)
        bytewise = {text for index, text in enumerate(self._bytes) if index not in self._special}
        self._forces = all(bytes((byte,)) in bytewise for byte in range(0x20, 0x7F))
        """Whether llguidance may write what is certain as it likes: without single characters it cannot."""
        self.breaks = tuple(i for i, text in enumerate(self._bytes) if text in (b"\n", b"\n\n"))

    @cached_property
    def _own(self) -> Any:
        """llguidance's, made when a grammar first needs it."""
        from llguidance import LLTokenizer

        return LLTokenizer(_Described(self), n_vocab=self.end_bit + 1)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to the text; special tokens add their names."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def tokenize(self, text: bytes) -> list[int]:
        """Ids of a text, whatever its bytes, without special tokens."""
        ids: list[int] = self._own.tokenize_bytes(text)
        return ids

    def canonical(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer gives them in the middle of others, [] where that cannot be told.

        A SentencePiece tokenizer puts a space before a text: then the ids behind a line break are taken.
        """
        wanted = text.encode("utf-8")
        for lead in ("", "\n"):
            ids = self._tokenizer.encode(lead + text, add_special_tokens=False)
            if any(i in self._special or i >= self.end_bit for i in ids):
                continue
            rest = b"".join(map(self.bytes_of, ids))
            begin = 0
            while begin < len(ids) and len(rest) > len(wanted):
                rest = rest[len(self.bytes_of(ids[begin])) :]
                begin += 1
            if rest == wanted:
                return ids[begin:]
        return []

    def matcher(self, source: str) -> Any:
        """A matcher at the start of a grammar. Raises BadRequest."""
        from llguidance import LLMatcher, LLParserLimits

        if not self._forces:
            source = _unforced(source)
        matcher = LLMatcher(self._own, source, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if not matcher.is_error():
            probe = matcher.deep_copy()
            probe.compute_bitmask()  # what is too complex mostly shows at the first mask
            if not probe.is_error():
                return matcher
            matcher = probe
        raise BadRequest(f"It cannot be compiled: {_reason(matcher.get_error())}")


class _Described:
    """What LLTokenizer reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_bit
        self.tokens = [*vocabulary._bytes, b"<|end of the answer|>"]
        self.special_token_ids = [*sorted(vocabulary._special), vocabulary.end_bit]
        self._canonical = vocabulary.canonical
        self._trie: dict[bytes, int] = {}
        self._longest = 0
        for index, text in enumerate(vocabulary._bytes):
            if text and index not in vocabulary._special:
                self._trie.setdefault(text, index)
                self._longest = max(self._longest, len(text))
        self._longest = min(self._longest, 64)

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text that a grammar forces: as the tokenizer writes it, else always the longest token."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._canonical(text) or self._greedy(text.encode("utf-8"))

    def _greedy(self, text: bytes) -> list[int]:
        ids = []
        at = 0
        while at < len(text):
            for size in range(min(self._longest, len(text) - at), 0, -1):
                found = self._trie.get(text[at : at + size])
                if found is not None:
                    ids.append(found)
                    at += size
                    break
            else:
                return ids
        return ids


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """What each token adds to a text; empty for ids that the tokenizer does not have."""
    count = min(tokenizer.vocab_size, vocab_size)
    if tokenizer.codec.kind is DecoderKind.OTHER:
        found = _decoded(tokenizer, count)
    else:
        found = [tokenizer.token_bytes(i) or b"" for i in range(count)]
    return found + [b""] * (vocab_size - count)


def _decoded(tokenizer: Tokenizer, count: int) -> list[bytes]:
    """For decoders of which only whole texts are known (WordPiece): what a token adds behind a word."""
    first = next((i for i in range(count) if (tokenizer.token(i) or "").isalpha()), 0)
    base = tokenizer.decode([first])
    found = []
    for index in range(count):
        added = tokenizer.added.get(index)
        text = tokenizer.decode([first, index]) if added is None else base + added.content
        found.append(text[len(base) :].encode() if text.startswith(base) else b"")
    return found


def _unforced(source: str) -> str:
    """A grammar in which llguidance writes nothing by itself."""
    if source.startswith("{"):
        source = f"start: %json {json.dumps(json.loads(source)['grammars'][0]['json_schema'])}"
    return '%llguidance {"no_forcing": true}\n' + source


def _reason(error: str) -> str:
    """llguidance's words in one line, without its marks."""
    lines = [line.strip() for line in error.replace("<non-verbose/>", "").splitlines()]
    text = " ".join(line for line in lines if line)
    return text[:_SHOWN_CHARS] or "no reason given"
