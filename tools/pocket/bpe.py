"""The pocket model's tokenizer: byte-level BPE in Qwen2's form, trained on the training text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tools.pocket.dialogue import DEFAULT_SYSTEM
from tools.pocket.generate import Item, system_prompts

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 3584
# Longest token in bytes: Chinese sentences have no spaces, and whole phrases as tokens would not generalise.
LONGEST = 10
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build(items: list[Item]) -> Tokenizer:
    """Trains the tokenizer on answers (three times), training wordings and system prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    texts = [i.answer for i in items if i.source != "sums"] * 3 + system_prompts() + [DEFAULT_SYSTEM]
    texts += [q for i in items if i.source not in ("sums", "big") for q in i.questions[:40]]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    if tokenizer.get_vocab_size() != VOCAB:
        raise ValueError(f"the text gives only {tokenizer.get_vocab_size()} tokens, not {VOCAB}")
    return tokenizer


def config() -> dict[str, object]:
    """tokenizer_config.json, in the spelling of Qwen2's published checkpoints."""
    added = {
        str(VOCAB - len(SPECIAL) + n): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for n, token in enumerate(SPECIAL)
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json (without white space, it is a third smaller) and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(tokenizer.to_str())
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def with_dropout(folder: Path, dropout: float) -> Tokenizer:
    """The saved tokenizer, leaving out merges at random: training then sees words in rarer pieces, too."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["dropout"] = dropout
    return Tokenizer.from_str(json.dumps(document))
