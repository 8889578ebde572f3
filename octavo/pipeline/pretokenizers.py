"""GGUF's names of pre-tokenizers (tokenizer.ggml.pre) and what they are in a tokenizer.json.

A pre-tokenizer cuts text into words before byte-pair merging: expressions one after another, each on the
pieces of the one before. The expressions are those of the published tokenizer.json files of the models that
gave the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression inside the ByteLevel pre-tokenizer (Radford et al. 2019)."""
QWEN2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
QWEN35 = (
    _ENDINGS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?"
    r"|\p{N}{1,3}|" + _REST_SLASH
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    + _REST_SLASH
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_VIKING = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"

Step = dict[str, Any]
"""A pre-tokenizer as tokenizer.json writes it."""


@dataclass(frozen=True)
class Pre:
    """How a byte-pair tokenizer cuts its text."""

    steps: tuple[Step, ...]
    ignore_merges: bool = False
    """A word that is in the vocabulary is one token, whatever the merges say."""
    nfc: bool = False
    """The text is put into Unicode's composed form first."""


def _split(expression: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _bytes(words: bool) -> Step:
    """Bytes as printable characters; with `words` cut by GPT2 first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


_DIGITS: Step = {"type": "Digits", "individual_digits": True}
_WORDS = _bytes(True)


def _by(*expressions: str) -> tuple[Step, ...]:
    return (*(_split(expression) for expression in expressions), _bytes(False))


_GPT2 = Pre((_WORDS,))
_DIGITWISE = Pre((_DIGITS, _WORDS))
_LLAMA3 = Pre(_by(LLAMA3), ignore_merges=True)
_CL100K = Pre(_by(LLAMA3))
_QWEN2 = Pre(_by(QWEN2), nfc=True)
_GPT4O = Pre(_by(GPT4O))
_DEEPSEEK3 = Pre(_by(r"\p{N}{1,3}", _CJK, DEEPSEEK3))

PRES: dict[str, Pre] = {
    "gpt-2": _GPT2,
    **dict.fromkeys(("mpt", "jais", "trillion", "granite-docling", "exaone4", "phi-2", "gigachat"), _GPT2),
    **dict.fromkeys(("roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"), _GPT2),
    **dict.fromkeys(("jina-v2-code", "a.x-4.0", "mellum", "modern-bert"), _GPT2),
    "olmo": Pre((_WORDS,), nfc=True),
    "smollm": _DIGITWISE,
    **dict.fromkeys(("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITWISE),
    "command-r": Pre((_DIGITS, _WORDS), nfc=True),
    "llama-bpe": _LLAMA3,
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    "glm4": Pre(_by(LLAMA3), ignore_merges=True),
    "dbrx": _CL100K,
    **dict.fromkeys(("smaug-bpe", "chatglm-bpe"), _CL100K),
    "qwen2": _QWEN2,
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), _QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), Pre(_by(QWEN2))),
    "qwen35": Pre(_by(QWEN35), nfc=True),
    "gpt-4o": _GPT4O,
    **dict.fromkeys(("llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "tekken": Pre(_by(TEKKEN), ignore_merges=True),
    "deepseek-v3": _DEEPSEEK3,
    **dict.fromkeys(("hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    "deepseek-llm": Pre(_by(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+")),
    "deepseek-coder": Pre(_by(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "bailingmoe": Pre(_by(_BAILING)),
    **dict.fromkeys(("bailingmoe2", "llada-moe"), Pre(_by(_BAILING))),
    "seed-coder": Pre(_by(_SEED)),
    "falcon": Pre((_split(r"[\p{P}\$\+<=>\^~\|`]+"), _WORDS, _split("[0-9][0-9][0-9]"))),
    "bloom": Pre(_by(_VIKING)),
    **dict.fromkeys(("poro-chat", "gpt3-finnish"), Pre(_by(_VIKING))),
    "viking": Pre((_split(_VIKING), _DIGITS, _bytes(False))),
}
"""tokenizer.ggml.pre -> how to cut. The first name of a way of cutting is the one that a new file gets."""

DEFAULT = "gpt-2"
"""What files without a name, or with "default", are read with."""

_PREFERRED = {
    "command-r": "command-r",
    "starcoder2": "starcoder",
    "stablelm": "stablelm2",
    "granite": "refact",
}
"""GGUF architecture -> the name that its files bear, of several that cut alike."""


def flat_steps(pre_tokenizer: Step | None) -> list[Step]:
    """The steps of a tokenizer.json's pre-tokenizer, sequences unfolded."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [step for part in pre_tokenizer.get("pretokenizers", []) for step in flat_steps(part)]
    return [pre_tokenizer]


def name_of(steps: Iterable[Step], architecture: str, *, ignore_merges: bool) -> str | None:
    """The name of a way of cutting, or None. `architecture` is GGUF's."""
    wanted = _signature(steps)
    fitting = [name for name, pre in PRES.items() if _signature(pre.steps) == wanted]
    exact = [name for name in fitting if PRES[name].ignore_merges == ignore_merges] or fitting
    preferred = _PREFERRED.get(architecture)
    if preferred in exact:
        return preferred
    return exact[0] if exact else None


def _signature(steps: Iterable[Step]) -> tuple[tuple[object, ...], ...]:
    """What two ways of cutting must share; GPT2's expression is the same written out or built in."""
    found: list[tuple[object, ...]] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Split":
            pattern = step.get("pattern", {})
            text = pattern.get("Regex", pattern.get("String"))
            how = (step.get("behavior"), bool(step.get("invert")))
            # Removing what does not match is keeping what does, as long as something always matches.
            if how == ("Removed", True):
                how = ("Isolated", False)
            found.append(("words",) if text == GPT2 else (kind, text, *how))
        elif kind == "ByteLevel":
            found += [("words",)] if step.get("use_regex", True) else []
        elif kind == "Digits":
            found.append((kind, bool(step.get("individual_digits"))))
        else:
            found.append((kind, repr(sorted(step.items()))))
    return tuple(found)
