"""A tokenizer loaded from a model folder, without transformers.

``tokenizer.json`` is read by the ``tokenizers`` library, ``vocab.json`` with ``merges.txt`` too, and
``tokenizer.model`` (SentencePiece) by ``sentencepiece``. What transformers keeps beside them
(tokenizer_config.json, special_tokens_map.json, added_tokens.json) decides the special tokens and whether
BOS and EOS are added. The native objects are immutable after loading, so any thread may use a Tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.pipeline.vocab import (
    Added,
    Codec,
    DecoderKind,
    HuggingFaceCodec,
    SentencePieceCodec,
    byte_level_bytes,
    fallback_byte,
    load_codec,
    read_json,
)

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")

# Spaces that word-piece tokenizers leave before punctuation, in transformers' order of replacement.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _content(value: Any) -> str | None:
    """The text of a special token given as a string or as an AddedToken object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if not isinstance(value, str):
        return None
    # A lone surrogate is no text, and the codecs cannot take it.
    return value if value.isascii() or not _SURROGATE.search(value) else None


def _index(value: Any, content: str) -> int:
    """The id of a token of the side files, where JSON keys make it a string. Raises CheckpointError."""
    text = str(value)
    if isinstance(value, (str, int)) and text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    raise CheckpointError(
        f"The tokenizer's added token {content[:40]!r} has the id {text[:40]!r}, which is no whole number.",
        hint="Look at added_tokens_decoder in tokenizer_config.json, and at added_tokens.json.",
    )


def _entries(decoder: Any) -> Iterable[tuple[Any, Any]]:
    """The pairs of added_tokens_decoder, none when it is no object."""
    return decoder.items() if isinstance(decoder, Mapping) else ()


class Tokenizer:
    """Text to token ids and back, with the policy of a model folder."""

    def __init__(
        self,
        codec: Codec,
        config: Mapping[str, Any] | None = None,
        *,
        special_map: Mapping[str, Any] | None = None,
        added_tokens: Mapping[str, int] | None = None,
        add_bos_token: bool | None = None,
    ) -> None:
        """`config` is tokenizer_config.json, `special_map` special_tokens_map.json, `added_tokens`
        added_tokens.json.

        `add_bos_token` None: as the folder says.
        """
        self.codec = codec
        self.config: dict[str, Any] = dict(config or {})
        self._register(special_map or {}, added_tokens or {})
        self.bos_id = self._id_of(self._named.get("bos_token"))
        self.eos_id = self._id_of(self._named.get("eos_token"))
        self.pad_id = self._id_of(self._named.get("pad_token"))
        self.unk_id = self._id_of(self._named.get("unk_token"))
        self.added: dict[int, Added] = codec.added()
        self.special_ids = frozenset(i for i, token in self.added.items() if token.special)
        self.vocab_size = codec.size()
        self._add_bos = add_bos_token if add_bos_token is not None else self.config.get("add_bos_token")
        if self._add_bos is None and isinstance(codec, SentencePieceCodec):
            self._add_bos = True  # the default of transformers' Llama and Gemma tokenizers
        self._add_eos = self.config.get("add_eos_token")
        # transformers cleans up nothing for BPE, where it would corrupt the text.
        self._clean_up = (
            bool(self.config.get("clean_up_tokenization_spaces")) and codec.kind is DecoderKind.OTHER
        )

    @staticmethod
    def load(folder: str | Path, *, add_bos_token: bool | None = None) -> Tokenizer:
        """Read the tokenizer of a model folder (or of a tokenizer.json given by path).

        `add_bos_token` overrides what the folder says. Raises CheckpointError when there is none or it
        is broken.
        """
        path = Path(folder).expanduser()
        if path.is_file():
            path = path.parent
        config = read_json(path / "tokenizer_config.json")
        return Tokenizer(
            load_codec(path, config),
            config,
            special_map=read_json(path / "special_tokens_map.json"),
            added_tokens=read_json(path / "added_tokens.json"),
            add_bos_token=add_bos_token,
        )

    def _register(self, special_map: Mapping[str, Any], added_tokens: Mapping[str, int]) -> None:
        """Collect named special tokens and tell the codec about tokens that only the side files know."""
        self._named: dict[str, str] = {}
        for key in _NAMED:
            content = _content(self.config.get(key))
            if content is None and key not in self.config:
                content = _content(special_map.get(key, self.codec.named().get(key)))
            if content is not None:
                self._named[key] = content
        listed: dict[int, Added] = {}
        for token_id, entry in _entries(self.config.get("added_tokens_decoder")):
            content = _content(entry)
            if content is not None:
                listed[_index(token_id, content)] = Added(
                    content, bool(isinstance(entry, Mapping) and entry.get("special"))
                )
        for content, index in added_tokens.items():
            listed.setdefault(_index(index, content), Added(content, False))
        extra = (
            self.config.get("additional_special_tokens") or special_map.get("additional_special_tokens") or []
        )
        more = self.config.get("extra_special_tokens")
        extra = [part for part in (extra, more) if isinstance(part, list)]
        specials = [*self._named.values(), *(c for c in map(_content, chain(*extra)) if c is not None)]
        wanted = [listed[i] for i in sorted(listed)]
        wanted += [Added(content, True) for content in dict.fromkeys(specials)]
        self.codec.add(self._addable(wanted))

    def _addable(self, tokens: Iterable[Added]) -> list[Added]:
        """Named special tokens win over an entry that calls the same text ordinary."""
        special = {token.content for token in tokens if token.special}
        ordered = dict.fromkeys(token.content for token in tokens)
        return [Added(content, content in special) for content in ordered]

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.codec.id(token)

    @property
    def bos_token(self) -> str | None:
        """The text of BOS, as templates write it."""
        return self._named.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The text of EOS, as templates write it."""
        return self._named.get("eos_token")

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Named special tokens by their name, e.g. ``{"eos_token": "</s>"}``; templates see all of them."""
        return dict(self._named)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens written in the text become their ids."""
        if not add_special_tokens:
            return self.codec.encode(text, processed=False)
        if self._add_bos is None and self._add_eos is None:
            return self.codec.encode(text, processed=True)
        ids = self.codec.encode(text, processed=False)
        if self._add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if self._add_eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        return ids

    def encode_pair(
        self, text: str, pair: str | None, limit: int | None = None, add_special_tokens: bool = True
    ) -> tuple[list[int], int | None]:
        """(ids of a text or of two joined as the model reads them, where type 1 begins or None).

        More than `limit` tokens are cut off the end, of two texts off the longer one; special tokens stay.
        """
        if limit is None and pair is None:
            return self.encode(text, add_special_tokens), None
        own = self._add_bos is not None or self._add_eos is not None
        if isinstance(self.codec, HuggingFaceCodec) and add_special_tokens and not own:
            return self.codec.encode_pair(text, pair, limit)
        ids = self.encode(text, add_special_tokens)
        if pair is not None:
            ids += self.codec.encode(pair, processed=False)
        return ids[:limit], None

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = False,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Text of `ids`. Ids outside the vocabulary give nothing.

        Without `spaces_between_special_tokens`, added tokens that follow each other are joined directly.
        """
        text = self.codec.decode([i for i in ids if 0 <= i < self.vocab_size], skip_special_tokens)
        if (
            not spaces_between_special_tokens
            and not skip_special_tokens
            and self.codec.kind is DecoderKind.OTHER
        ):
            for left, right in pairwise(ids):
                if left in self.added and right in self.added:
                    a, b = self.added[left].content, self.added[right].content
                    text = text.replace(f"{a} {b}", a + b)
        if self._clean_up:
            for old, new in _CLEAN_UP:
                text = text.replace(old, new)
        return text

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own string for an id, None outside the vocabulary."""
        return self.codec.token(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary string."""
        return self.codec.id(token)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str | None]:
        """Vocabulary strings of `ids`."""
        return [self.codec.token(i) for i in ids]

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token adds to the text, None where a token's text depends on its neighbours."""
        token = self.codec.token(token_id)
        if token is None:
            return b""
        if self.codec.kind is DecoderKind.BYTES:
            return byte_level_bytes(token)
        if self.codec.kind is DecoderKind.METASPACE:
            if self.codec.byte_fallback and (byte := fallback_byte(token)) is not None:
                return bytes((byte,))
            return token.replace("▁", " ").encode("utf-8")
        added = self.added.get(token_id)
        return added.content.encode("utf-8") if added else None
