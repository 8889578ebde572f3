"""Incremental detokenization: the text that each new token completes, never half a character.

Three ways, chosen by how the tokenizer decodes (:class:`~octavo.pipeline.vocab.DecoderKind`): a running UTF-8
decoder over the bytes of byte-level tokens, the same over SentencePiece pieces, and for anything else the
difference between decoding a small window with and without the new token. All cost O(1) per token.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import REPLACEMENT, DecoderKind, byte_level_bytes, fallback_byte

_WINDOW = 6
"""Tokens of the prompt that the window method starts from."""
_MAX_PENDING = 16
"""The window method gives up waiting for a character after this many tokens; no character is that long."""


class Detokenizer:
    """The text of one sequence, token by token; ``push`` all tokens, then ``flush`` once."""

    def __init__(self, tokenizer: Tokenizer, *, skip: frozenset[int]) -> None:
        """`skip`: tokens without text."""
        self._tokenizer = tokenizer
        self._skip = skip

    def push(self, token_id: int) -> str:
        """New text that `token_id` completes; may be empty."""
        raise NotImplementedError

    def flush(self) -> str:
        """What was held back; an unfinished character comes out as U+FFFD."""
        raise NotImplementedError


class _ByteDetokenizer(Detokenizer):
    """Byte-level BPE: one UTF-8 decoder over all bytes."""

    def __init__(self, tokenizer: Tokenizer, *, skip: frozenset[int]) -> None:
        super().__init__(tokenizer, skip=skip)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        token = self._tokenizer.token(token_id)
        return self._utf8.decode(byte_level_bytes(token)) if token is not None else ""

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _MetaspaceDetokenizer(Detokenizer):
    """SentencePiece: pieces with U+2581 for a space; runs of byte tokens are UTF-8.

    Decoding a whole run at once would turn all of it into U+FFFD when any byte of it is wrong. Here the
    characters before the wrong byte have been shown already and stay.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip: frozenset[int], at_start: bool) -> None:
        super().__init__(tokenizer, skip=skip)
        codec = tokenizer.codec
        self._byte_fallback = codec.byte_fallback
        self._strip = codec.strips_space and at_start
        self._bytes = bytearray()

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        token = self._tokenizer.token(token_id)
        if token is None:
            return ""
        byte = fallback_byte(token) if self._byte_fallback else None
        if byte is not None:
            self._bytes.append(byte)
            return self._first(self._complete())
        return self._first(self._broken() + token.replace("▁", " "))

    def _complete(self) -> str:
        """The pending bytes once they are whole characters; bytes that can never be become U+FFFD."""
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    return text
                text += REPLACEMENT * error.end
                del self._bytes[: error.end]
            else:
                self._bytes.clear()
        return text

    def _broken(self) -> str:
        """Pending bytes that no further byte will complete."""
        text = REPLACEMENT * len(self._bytes)
        self._bytes.clear()
        return text

    def _first(self, text: str) -> str:
        """Take the one leading space off that decoding the whole would drop."""
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return self._first(self._broken())


class _WindowDetokenizer(Detokenizer):
    """Any decoder: the text of a window with the new tokens, less the text of the window without them."""

    def __init__(
        self, tokenizer: Tokenizer, *, skip: frozenset[int], spaces: bool, prompt: Sequence[int]
    ) -> None:
        super().__init__(tokenizer, skip=skip)
        self._spaces = spaces
        self._ids = [i for i in prompt[-_WINDOW:] if i not in self._skip]
        self._read = len(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, False, self._spaces)  # those to skip never come here

    def push(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[: self._read])
        after = self._decode(self._ids)
        waiting = after.endswith(REPLACEMENT) and len(self._ids) - self._read < _MAX_PENDING
        if waiting or len(after) <= len(before):
            return ""
        return self._advance(before, after)

    def _advance(self, before: str, after: str) -> str:
        """Emit the new text; the window then starts at the tokens just emitted."""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        before, after = self._decode(self._ids[: self._read]), self._decode(self._ids)
        return self._advance(before, after) if len(after) > len(before) else ""


def make_detokenizer(
    tokenizer: Tokenizer,
    prompt: Sequence[int] = (),
    *,
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
    kept: frozenset[int] = frozenset(),
) -> Detokenizer:
    """The detokenizer for what follows `prompt`: its pieces join on as if prompt and reply were one text.

    `kept`: special tokens that are text all the same.
    """
    kind = tokenizer.codec.kind
    skip = tokenizer.special_ids - kept if skip_special_tokens else frozenset[int]()
    if kind is DecoderKind.BYTES:
        return _ByteDetokenizer(tokenizer, skip=skip)
    if kind is DecoderKind.METASPACE:
        return _MetaspaceDetokenizer(tokenizer, skip=skip, at_start=all(i in skip for i in prompt))
    return _WindowDetokenizer(tokenizer, skip=skip, spaces=spaces_between_special_tokens, prompt=prompt)
