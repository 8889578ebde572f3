"""The tokenizer that a GGUF file holds, made into one of the `tokenizers` library, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from octavo.errors import CheckpointError
from octavo.log import logger
from octavo.pipeline.pretokenizers import DEFAULT, PRES, Pre
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import HuggingFaceCodec, fallback_byte

log = logger(__name__)

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_SPACE = "▁"
_NAMED = {
    "bos_token": ("bos",),
    "eos_token": ("eos",),
    "unk_token": ("unknown",),
    "pad_token": ("padding",),
    "sep_token": ("seperator", "separator"),
    "cls_token": ("cls",),
    "mask_token": ("mask",),
}
"""Special tokens, and what GGUF calls them (its keys have the spelling mistake)."""
_ADDS_BOS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
)
"""Pre-tokenizers whose files begin every text with BOS unless they say otherwise."""


def gguf_tokenizer(
    metadata: Mapping[str, Any], where: str, *, add_bos_token: bool | None = None
) -> Tokenizer | None:
    """The tokenizer of a file's metadata, None when the file holds none (`no_vocab`).

    `where` names the file in errors. Raises CheckpointError for one that is broken or of an unknown kind.
    """
    kind = metadata.get("tokenizer.ggml.model", "no_vocab")
    if isinstance(kind, str) and kind in ("no_vocab", "none"):
        return None
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise CheckpointError(
            f"{where}: its tokenizer is of the kind {kind!r:.60}, which Octavo does not know.",
            hint="Name the folder of the model's tokenizer with --tokenizer.",
        )
    vocabulary = _Vocabulary(metadata, where)
    try:
        backend = _BUILDERS[kind](vocabulary)
        vocabulary.add_to(backend)
        codec = HuggingFaceCodec(backend)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{where}: its tokenizer cannot be made: {str(error)[:300]}.") from None
    return Tokenizer(codec, vocabulary.config(kind), add_bos_token=add_bos_token)


class _Vocabulary:
    """The lists and special tokens of the metadata, checked."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where
        self.tokens: list[str] = list(self.texts("tokens"))
        kinds = self.get("token_type")
        self.kinds: list[int] = kinds.tolist() if hasattr(kinds, "tolist") else [1] * len(self.tokens)
        if len(self.kinds) != len(self.tokens):
            raise CheckpointError(f"{where}: {len(self.tokens)} tokens, but {len(self.kinds)} token types.")
        pre = self.get("pre")
        self.pre = (pre if isinstance(pre, str) else "") or "default"

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def texts(self, key: str) -> list[str]:
        found = self.get(key)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise CheckpointError(f"{self.where}: tokenizer.ggml.{key} is missing or no list of texts.")
        return found

    def scores(self) -> list[float]:
        found = self.get("scores")
        if not hasattr(found, "tolist") or len(found) != len(self.tokens):
            raise CheckpointError(
                f"{self.where}: tokenizer.ggml.scores is missing or not one for each token."
            )
        return [float(score) for score in found.tolist()]

    def special(self, *names: str) -> str | None:
        """The text of a special token by GGUF's names of it."""
        for name in names:
            index = self.get(f"{name}_token_id")
            if type(index) is int and 0 <= index < len(self.tokens):
                return self.tokens[index]
        return None

    def words(self) -> dict[str, int]:
        """Text -> id; of several tokens with one text the first counts."""
        found: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            found.setdefault(token, index)
        return found

    def add_to(self, backend: Any) -> None:
        """Tokens that are matched in the text before all else."""
        from tokenizers import AddedToken

        strips = "phi-3" in (name := str(self.metadata.get("general.name", "")).lower()) or "phi3" in name
        for kind, add in ((_CONTROL, backend.add_special_tokens), (_USER_DEFINED, backend.add_tokens)):
            special = kind == _CONTROL
            texts = [t for t, k in zip(self.tokens, self.kinds, strict=True) if k == kind and t]
            kept = ("<unk>", "<s>", "<|endoftext|>")
            # Phi-3's special tokens take the space behind them; the file has no word for that.
            add(
                [
                    AddedToken(text, special=special, normalized=False, rstrip=strips and text not in kept)
                    for text in dict.fromkeys(texts)
                ]
            )

    def config(self, kind: str) -> dict[str, Any]:
        """What tokenizer_config.json would say."""
        found: dict[str, Any] = {"chat_template": gguf_templates(self.metadata)}
        for ours, theirs in _NAMED.items():
            if (text := self.special(*theirs)) is not None:
                found[ours] = text
        if kind == "bert":
            found.update(clean_up_tokenization_spaces=True)
            return found
        default = kind == "llama" or (kind == "gpt2" and self.pre in _ADDS_BOS)
        begins, ends = self.get("add_bos_token"), self.get("add_eos_token")
        found["add_bos_token"] = begins if isinstance(begins, bool) else default
        found["add_eos_token"] = ends if isinstance(ends, bool) else False
        return found


def _byte_level(v: _Vocabulary) -> Any:
    """GPT-2's way: bytes as characters, words cut by the named pre-tokenizer, merges by rank."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pre = _pre(v)
    merges = [_pair(v, merge) for merge in v.texts("merges")]
    backend = Backend(models.BPE(vocab=v.words(), merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(v: _Vocabulary, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ") if not merge.startswith(" ") else ("", "", "")
    if not space or not right:
        raise CheckpointError(f"{v.where}: the merge {merge!r:.60} is no pair of tokens.")
    return left, right


def _pre(v: _Vocabulary) -> Pre:
    if v.pre in PRES:
        return PRES[v.pre]
    if v.pre != "default":
        log.warning(
            "%s: the pre-tokenizer %.60r is not known: cutting words as %s does. --tokenizer names another "
            "tokenizer.",
            v.where,
            v.pre,
            DEFAULT,
        )
    return PRES[DEFAULT]


def _pre_tokenizer(pre: Pre) -> Any:
    """The steps as the library's objects."""
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    for step in pre.steps:
        if step["type"] == "Split":
            made.append(pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), "isolated", invert=False))
        elif step["type"] == "Digits":
            made.append(pre_tokenizers.Digits(individual_digits=step["individual_digits"]))
        else:
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"]))
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def _sentence_piece(v: _Vocabulary) -> Any:
    """SentencePiece's BPE: the pair whose piece has the best score is merged first; unknown text as bytes.

    As merges: every way to make a piece of two others, pieces with better scores first.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    words, scores = v.words(), v.scores()
    merges = []
    for index in sorted(range(len(v.tokens)), key=lambda i: -scores[i]):
        piece = v.tokens[index]
        if v.kinds[index] in (_CONTROL, _UNKNOWN, _BYTE, _UNUSED, _USER_DEFINED):
            continue
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        found = [(words[a], words[b], a, b) for a, b in halves if a in words and b in words]
        merges += [(a, b) for _, _, a, b in sorted(found)]
    bytewise = _BYTE in v.kinds or any(fallback_byte(token) is not None for token in v.tokens)
    unknown = next((t for t, k in zip(v.tokens, v.kinds, strict=True) if k == _UNKNOWN), v.special("unknown"))
    backend = Backend(
        models.BPE(vocab=words, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytewise)
    )
    prefix = v.get("add_space_prefix")
    prefix = True if prefix is None else bool(prefix)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _word_piece(v: _Vocabulary) -> Any:
    """BERT's WordPiece. GGUF marks the beginning of a word where BERT marks the rest of one."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    for index, (token, kind) in enumerate(zip(v.tokens, v.kinds, strict=True)):
        if token.startswith(_SPACE):
            v.tokens[index] = token[len(_SPACE) :]
        elif kind not in (_CONTROL, _UNKNOWN, _UNUSED, _USER_DEFINED) and token[:1] + token[-1:] != "[]":
            v.tokens[index] = f"##{token}"
    unknown = v.special("unknown") or "[UNK]"
    words = v.words()
    words.setdefault(unknown, len(v.tokens))
    backend = Backend(models.WordPiece(vocab=words, unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    first, last = v.special("cls", "bos") or "[CLS]", v.special("seperator", "separator", "eos") or "[SEP]"
    if first in words and last in words:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, words[first]), (last, words[last])],
        )
    return backend


def _unigram(v: _Vocabulary) -> Any:
    """SentencePiece's other model, that of XLM-RoBERTa and T5: the likeliest pieces of a text."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    unknown = next((i for i, kind in enumerate(v.kinds) if kind == _UNKNOWN), None)
    backend = Backend(models.Unigram(list(zip(v.tokens, v.scores(), strict=True)), unk_id=unknown))
    steps: list[Any] = []
    charsmap = v.get("precompiled_charsmap")
    if hasattr(charsmap, "tobytes") and charsmap.size:
        steps.append(normalizers.Precompiled(_charsmap(charsmap.astype(np.uint8).tobytes(), v.where)))
    if v.get("remove_extra_whitespaces"):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "never" if v.get("add_space_prefix") is False else "always"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def _charsmap(raw: bytes, where: str) -> bytes:
    """SentencePiece's table of replacements, checked: a trie's size, its units (a double array, Aoe 1989),
    and the replacements, each ending in a zero. The library that reads it goes wherever a unit points.
    """
    size = int.from_bytes(raw[:4], "little")
    units = np.frombuffer(raw[4 : 4 + size], "<u4", count=size // 4 if 4 + size <= len(raw) else 0).astype(
        np.int64
    )
    texts = np.frombuffer(raw[4 + size :], np.uint8)
    leaves = units >> 31 == 1
    values = units[leaves] & 0x7FFFFFFF
    children = np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))
    if (
        not len(units)
        or not len(texts)
        or texts[-1]
        or ((children | 255)[~leaves] >= len(units)).any()
        or (values >= len(texts)).any()
        or (texts[values] & 0xC0 == 0x80).any()
    ):
        raise CheckpointError(f"{where}: tokenizer.ggml.precompiled_charsmap is damaged.")
    return raw


_BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece, "t5": _unigram}


def gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a file by name: `default`, and those of `tokenizer.chat_template.NAME`."""
    found = {}
    for key, value in metadata.items():
        head, _, name = key.partition("tokenizer.chat_template")
        if not head and isinstance(value, str) and (not name or name.startswith(".")):
            found[name.removeprefix(".") or "default"] = value
    return found
