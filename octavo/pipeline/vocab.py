"""The two libraries under a Tokenizer behind one shape (:class:`Codec`), and how tokens become text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from octavo.errors import CheckpointError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class DecoderKind(Enum):
    """How tokens become text, as far as incremental detokenization cares."""

    BYTES = "bytes"
    """Every token stands for bytes (byte-level BPE): text is the UTF-8 of their concatenation."""
    METASPACE = "metaspace"
    """SentencePiece style: U+2581 is a space, ``<0xAB>`` may be a byte, a leading space may be dropped."""
    OTHER = "other"
    """Only decoding a window of tokens tells (WordPiece and the like)."""


class Added(msgspec.Struct, frozen=True):
    """A token that is matched in the text before the model sees it."""

    content: str
    special: bool


class Codec(Protocol):
    """Text to ids and back, without policy about BOS, EOS and limits."""

    kind: DecoderKind
    strips_space: bool
    """METASPACE only: decoding drops one leading space of the whole text."""
    byte_fallback: bool
    """METASPACE only: ``<0xAB>`` tokens are bytes."""

    def encode(self, text: str, processed: bool) -> list[int]:
        """Ids of `text`; with `processed` the file's own post-processor adds its special tokens."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Text of `ids`; unknown ids give nothing."""

    def token(self, token_id: int) -> str | None:
        """The vocabulary's string for an id."""

    def id(self, token: str) -> int | None:
        """The id of a vocabulary string."""

    def added(self) -> dict[int, Added]:
        """All added tokens by id."""

    def add(self, tokens: Sequence[Added]) -> None:
        """Add tokens that the vocabulary lacks (new ids at the end) or mark existing ones as special."""

    def size(self) -> int:
        """One more than the largest id."""

    def named(self) -> dict[str, str]:
        """Special tokens by name (``bos_token``...) as far as the vocabulary itself knows them."""


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def unreadable(path: Path, what: str) -> CheckpointError:
    """The error for a small file that `what` is wrong with; a git-lfs pointer is named as the cause."""
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        pointer = False
    if pointer:
        return CheckpointError(
            f"{path} is a git-lfs pointer, not the file itself.",
            hint="Run `git lfs install && git lfs pull` in that folder, or download the model again.",
        )
    return CheckpointError(f"{path} {what}.", hint="Download the file again.")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} when there is no such file. Raises CheckpointError for broken JSON."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, f"is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def _flat_decoders(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json decoder, sequences unfolded."""
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in _flat_decoders(part)]
    return [decoder]


def _metaspace_traits(steps: list[dict[str, Any]]) -> tuple[bool, bool] | None:
    """(strips_space, byte_fallback) when the steps are SentencePiece's way of decoding, else None."""
    if len(steps) == 1 and steps[0]["type"] == "Metaspace" and steps[0].get("replacement") == "▁":
        scheme = steps[0].get(
            "prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never"
        )
        return scheme != "never", False
    types = [step["type"] for step in steps]
    if types not in (
        ["Replace", "ByteFallback", "Fuse"],
        ["Replace", "ByteFallback", "Fuse", "Strip"],
        ["Replace", "Fuse"],
    ):
        return None
    if steps[0].get("pattern") != {"String": "▁"} or steps[0].get("content") != " ":
        return None
    if types[-1] == "Strip":
        strip = steps[-1]
        if (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0):
            return None
    return types[-1] == "Strip", "ByteFallback" in types


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (Radford et al. 2019); printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + i): b for i, b in enumerate(rest)})
    return table


_BYTE_OF_CHAR = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level BPE token; one with a foreign character (an added one) is its own UTF-8."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode("utf-8")


def fallback_byte(token: str) -> int | None:
    """The byte that a SentencePiece byte token (``<0x0A>``) stands for, None for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def metaspace_text(tokens: Sequence[str], codec: Codec) -> str:
    """Text of SentencePiece pieces, as tokenizers' Replace, ByteFallback, Fuse, Strip."""
    text = ""
    pending = bytearray()
    for token in [*tokens, ""]:
        byte = fallback_byte(token) if codec.byte_fallback else None
        if byte is not None:
            pending.append(byte)
            continue
        try:
            text += pending.decode("utf-8")
        except UnicodeDecodeError:
            text += REPLACEMENT * len(pending)
        pending.clear()
        text += token.replace("▁", " ")
    return text.removeprefix(" ") if codec.strips_space else text


class HuggingFaceCodec:
    """The ``tokenizers`` library over a tokenizer.json, or over vocab.json and merges.txt."""

    def __init__(self, backend: Any, named: dict[str, str] | None = None) -> None:
        """`named`: special tokens that are known by the kind of vocabulary."""
        self._backend = backend
        self._named = named or {}
        backend.no_truncation()
        backend.no_padding()
        decoder = None
        if backend.decoder is not None:
            decoder = json.loads(backend.decoder.__getstate__())
        steps = _flat_decoders(decoder)
        traits = _metaspace_traits(steps)
        self.strips_space, self.byte_fallback = traits or (False, False)
        if [step["type"] for step in steps] == ["ByteLevel"]:
            self.kind = DecoderKind.BYTES
        else:
            self.kind = DecoderKind.OTHER if traits is None else DecoderKind.METASPACE

    @staticmethod
    def from_file(path: Path) -> HuggingFaceCodec:
        """Read a tokenizer.json. Raises CheckpointError."""
        from tokenizers import Tokenizer as Backend

        try:
            return HuggingFaceCodec(Backend.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise unreadable(path, f"cannot be read as a tokenizer: {str(error)[:300]}") from None

    @staticmethod
    def from_vocab(vocab: Path, merges: Path, add_prefix_space: bool) -> HuggingFaceCodec:
        """GPT-2's byte-level BPE from its two files. Raises CheckpointError."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        try:
            backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"{vocab} and {merges.name} cannot be read as a tokenizer: {error}."
            ) from None
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        backend.decoder = decoders.ByteLevel()
        end = "<|endoftext|>"
        known = backend.token_to_id(end) is not None
        return HuggingFaceCodec(backend, dict.fromkeys(("bos_token", "eos_token"), end) if known else None)

    def definition(self) -> dict[str, Any]:
        """The tokenizer as a tokenizer.json holds it, tokens added later included."""
        parsed: dict[str, Any] = json.loads(self._backend.to_str())
        return parsed

    def encode(self, text: str, processed: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=processed).ids
        return ids

    def encode_pair(self, text: str, pair: str | None, limit: int | None) -> tuple[list[int], int | None]:
        """(ids with special tokens, cut to `limit`; where type 1 begins): see Tokenizer.encode_pair."""
        backend = self._backend
        parts = [backend.encode(one, add_special_tokens=False) for one in (text, pair) if one is not None]
        if limit is not None:
            room = max(0, limit - backend.num_special_tokens_to_add(pair is not None))
            sizes = [len(part.ids) for part in parts]
            while sum(sizes) > room:  # off the longer one, of equal ones off the second
                at = max(range(len(sizes)), key=lambda i: (sizes[i], i))
                rest = sum(sizes) - sizes[at]
                sizes[at] = max(room - rest, rest if len(sizes) > 1 and sizes[at] > rest else sizes[at] - 1)
            for part, size in zip(parts, sizes, strict=True):
                part.truncate(size)
        whole = backend.post_process(*parts)
        types = whole.type_ids
        return list(whole.ids), types.index(1) if 1 in types else None

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token(self, token_id: int) -> str | None:
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def id(self, token: str) -> int | None:
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def added(self) -> dict[int, Added]:
        return {i: Added(t.content, t.special) for i, t in self._backend.get_added_tokens_decoder().items()}

    def add(self, tokens: Sequence[Added]) -> None:
        from tokenizers import AddedToken

        known = {token.content: token for token in self._backend.get_added_tokens_decoder().values()}
        for token in tokens:
            old = known.get(token.content)
            if old is None:
                new = AddedToken(token.content, special=token.special, normalized=not token.special)
            elif token.special and not old.special:
                new = old
                new.special = True
            else:
                continue
            (self._backend.add_special_tokens if token.special else self._backend.add_tokens)([new])

    def size(self) -> int:
        vocab: int = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        return max([vocab, *(int(i) + 1 for i in added)])

    def named(self) -> dict[str, str]:
        return self._named


_NO_DUMMY_PREFIX = bytes((3 << 3 | 2, 2, 3 << 3 | 0, 0))
"""``normalizer_spec { add_dummy_prefix: false }`` of sentencepiece_model.proto: appended to a serialized
message, it overrides that one field (protobuf merges repeated sub-messages, the last value wins)."""


class SentencePieceCodec:
    """The ``sentencepiece`` library over a tokenizer.model, with added tokens split off first."""

    kind = DecoderKind.METASPACE

    def __init__(self, path: Path, legacy: bool = False) -> None:
        """Read `path`. `legacy`: every stretch between added tokens gets the dummy space, not only one."""
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        self._inner = sentencepiece.SentencePieceProcessor()
        try:
            self._model.Load(str(path))
            self._inner.LoadFromSerializedProto(self._model.serialized_model_proto() + _NO_DUMMY_PREFIX)
        except (OSError, RuntimeError) as error:
            raise unreadable(path, f"cannot be read as a SentencePiece model: {error}") from None
        self._legacy = legacy
        count = self._model.GetPieceSize()
        self._pieces: list[str] = [self._model.IdToPiece(i) for i in range(count)]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._added: dict[int, Added] = {
            i: Added(self._pieces[i], True) for i in range(count) if self._model.IsControl(i)
        }
        self._added.update(
            {i: Added(self._pieces[i], True) for i in range(count) if self._model.IsUnknown(i)}
        )
        self.byte_fallback = any(self._model.IsByte(i) for i in range(count))
        probe = self._model.EncodeAsPieces("a")
        self.strips_space = bool(probe) and probe[0].startswith("▁")
        self._split = self._pattern()

    def pieces(self) -> list[tuple[str, float, str]]:
        """(text, score, kind) of the pieces by id; kind: normal, unknown, control, unused, byte."""
        model = self._model
        kinds = (
            ("unknown", model.IsUnknown),
            ("control", model.IsControl),
            ("unused", model.IsUnused),
            ("byte", model.IsByte),
        )
        return [
            (
                model.IdToPiece(i),
                model.GetScore(i),
                next((kind for kind, is_it in kinds if is_it(i)), "normal"),
            )
            for i in range(model.GetPieceSize())
        ]

    def _pattern(self) -> re.Pattern[str] | None:
        """Matches any added token, longest first."""
        contents = sorted((t.content for t in self._added.values() if t.content), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else None

    def encode(self, text: str, processed: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._split.split(text) if self._split else [text]):
            if i % 2:
                ids.append(self._ids[part])
            elif part:
                model = self._model if self._legacy or not ids else self._inner
                ids.extend(model.EncodeAsIds(part))
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        kept = [i for i in ids if not (skip_special and i in self._added and self._added[i].special)]
        return metaspace_text([t for i in kept if (t := self.token(i)) is not None], self)

    def token(self, token_id: int) -> str | None:
        if 0 <= token_id < len(self._pieces):
            return self._pieces[token_id]
        return None

    def id(self, token: str) -> int | None:
        return self._ids.get(token)

    def added(self) -> dict[int, Added]:
        return dict(self._added)

    def add(self, tokens: Sequence[Added]) -> None:
        for token in tokens:
            if token.content not in self._ids:
                self._ids[token.content] = len(self._pieces)
                self._pieces.append(token.content)
            self._added[self._ids[token.content]] = token
        self._split = self._pattern()

    def size(self) -> int:
        return len(self._pieces)

    def named(self) -> dict[str, str]:
        ids = {
            "bos_token": self._model.bos_id(),
            "eos_token": self._model.eos_id(),
            "unk_token": self._model.unk_id(),
        }
        return {name: self._pieces[i] for name, i in ids.items() if i >= 0}


def load_codec(folder: Path, config: dict[str, Any]) -> Codec:
    """The codec of a model folder; `config` is tokenizer_config.json. Raises CheckpointError."""
    if (folder / "tokenizer.json").is_file():
        return HuggingFaceCodec.from_file(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return SentencePieceCodec(folder / "tokenizer.model", legacy=bool(config.get("legacy", False)))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        prefix = bool(config.get("add_prefix_space", False))
        return HuggingFaceCodec.from_vocab(folder / "vocab.json", folder / "merges.txt", prefix)
    raise CheckpointError(
        f"{folder} has no tokenizer: none of tokenizer.json, tokenizer.model, vocab.json with merges.txt.",
        hint="Name the folder that has one with --tokenizer, or use --skip-tokenizer-init.",
    )
