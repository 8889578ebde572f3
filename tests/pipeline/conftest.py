"""Small tokenizers made on the spot, and the shared data where the checkout has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import HuggingFaceCodec

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "parsers"))  # the examples of calls
SHARED = (Path(__file__).parents[2] / "../shared").resolve()

TRAINING = [
    "Why is the sky blue? The sky is blue because air scatters blue light more than red light.",
    "天空为什么是蓝色的？因为空气散射蓝光。你好，世界！",
    "def main():\n    print('hello world')\n\n\nnaïve café – “quotes” 🙂🙃",
    "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |\n",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_backend() -> Backend:
    """A byte-level BPE with ChatML's special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.add_tokens([AddedToken("<think>", special=False)])
    return backend


def piece_backend() -> Backend:
    """A Llama-like SentencePiece BPE: U+2581 for a space, bytes for characters that it does not know."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁"]
    tokens += [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens += ["▁t", "▁th", "▁the", "▁s", "▁sk", "▁sky", "天", "."]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "s"), ("▁s", "k"), ("▁sk", "y")]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def word_backend() -> Backend:
    """A WordPiece vocabulary: the kind that only a window of tokens can decode."""
    words = ["[UNK]", "[SEP]", "the", "sky", "is", "blue", "##s", "##ness", ".", ",", "light"]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return backend


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return Tokenizer(HuggingFaceCodec(byte_backend()), config)


@pytest.fixture(scope="session")
def piece_tokenizer() -> Tokenizer:
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return Tokenizer(HuggingFaceCodec(piece_backend()), config)


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    return Tokenizer(HuggingFaceCodec(word_backend()), {"sep_token": "[SEP]"})


@pytest.fixture(scope="session", params=["byte", "piece", "word"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data; the test is skipped where the checkout has none."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there")
    return SHARED
