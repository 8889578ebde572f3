"""The tokenizer equals transformers and the published expectations, and reads a folder's side files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from octavo.errors import CheckpointError
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import DecoderKind

TEXTS = [
    "Why is the sky blue?",
    "  two  spaces ",
    "天空为什么是蓝色的？🙂",
    "",
    "a\n\n\tb",
    "<|im_start|>user\n<|im_end|>",
]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, byte_tokenizer: Tokenizer) -> Path:
    byte_tokenizer.codec._backend.save(str(tmp_path / "tokenizer.json"))  # type: ignore[attr-defined]
    return tmp_path


def test_round_trip_keeps_every_text(byte_tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = byte_tokenizer.encode(text, add_special_tokens=False)
        assert byte_tokenizer.decode(ids) == text


def test_special_tokens_in_text_become_their_ids(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == byte_tokenizer.token_id("<|im_start|>")
    assert ids[-1] == byte_tokenizer.eos_id
    assert byte_tokenizer.decode(ids, skip_special_tokens=True) == "hi"


def test_add_bos_token_from_the_config_and_overridden(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": "<|im_start|>", "add_bos_token": True})
    bos = Tokenizer.load(folder).bos_id
    assert bos is not None
    assert Tokenizer.load(folder).encode("a")[0] == bos
    assert Tokenizer.load(folder).encode("a", add_special_tokens=False)[0] != bos
    assert Tokenizer.load(folder, add_bos_token=False).encode("a")[0] != bos
    write(folder, "tokenizer_config.json", {"bos_token": "<|im_start|>"})
    assert Tokenizer.load(folder).encode("a")[0] != bos
    assert Tokenizer.load(folder, add_bos_token=True).encode("a")[0] == bos


def test_add_eos_token(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "<|im_end|>", "add_eos_token": True})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a")[-1] == tokenizer.eos_id


def test_side_files_name_and_add_special_tokens(folder: Path) -> None:
    size = Tokenizer.load(folder).vocab_size
    write(folder, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<pad>"})
    write(folder, "added_tokens.json", {"<tool>": size + 1})
    write(
        folder,
        "tokenizer_config.json",
        {"added_tokens_decoder": {str(size): {"content": "<extra>", "special": True}}, "unk_token": None},
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.token_id("<extra>") == size
    assert tokenizer.encode("<extra><tool>", add_special_tokens=False) == [size, size + 1]
    assert size in tokenizer.special_ids
    assert size + 1 not in tokenizer.special_ids
    assert tokenizer.pad_id == size + 2
    assert tokenizer.unk_id is None


def test_truncation_in_the_file_is_not_applied(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    write(folder, "tokenizer.json", raw)
    assert len(Tokenizer.load(folder).encode("one two three four five six seven")) > 3


def test_vocab_and_merges_equal_the_tokenizer_json(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    backend = byte_tokenizer.codec._backend  # type: ignore[attr-defined]
    backend.model.save(str(tmp_path))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.codec.kind is DecoderKind.BYTES
    for text in TEXTS[:5]:
        assert tokenizer.encode(text) == byte_tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_model(tmp_path: Path) -> None:
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the sky is blue because the air scatters blue light\n" * 50, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    write(tmp_path, "added_tokens.json", {"<|user|>": 5000})
    tokenizer = Tokenizer.load(tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("the sky", "blue 天 light", "  spaces  "):
        assert tokenizer.encode(text, add_special_tokens=False) == model.EncodeAsIds(text)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == model.Decode(
            model.EncodeAsIds(text)
        )
    ids = tokenizer.encode("<s>the sky<|user|>blue", add_special_tokens=False)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.token_id("<|user|>") in ids
    assert tokenizer.decode(ids) == "<s>the sky<|user|>blue"
    (tmp_path / "tokenizer_config.json").unlink()
    bare = Tokenizer.load(tmp_path)
    assert (bare.bos_token, bare.eos_token) == ("<s>", "</s>")
    assert bare.encode("the sky")[0] == bare.bos_id
    assert Tokenizer.load(tmp_path, add_bos_token=False).encode("the sky") == model.EncodeAsIds("the sky")


def test_token_bytes(
    byte_tokenizer: Tokenizer, piece_tokenizer: Tokenizer, word_tokenizer: Tokenizer
) -> None:
    text = "天空 sky"
    ids = byte_tokenizer.encode(text)
    assert b"".join(byte_tokenizer.token_bytes(i) or b"" for i in ids) == text.encode()
    assert piece_tokenizer.token_bytes(3 + 0xE4) == b"\xe4"
    assert piece_tokenizer.token_bytes(piece_tokenizer.token_id("▁the") or 0) == b" the"
    assert word_tokenizer.token_bytes(2) is None
    assert byte_tokenizer.token_bytes(10**6) == b""


def test_ids_outside_the_vocabulary_decode_to_nothing(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.decode([10**6, -1, any_tokenizer.vocab_size]) == ""
    assert any_tokenizer.convert_ids_to_tokens([10**6]) == [None]


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert-base-uncased", "minimind", "stories260k"])
def test_expected_ids_and_texts(shared: Path, name: str) -> None:
    data = shared / "data"
    folder = data / "weights" / name if name == "stories260k" else data / "tokenizers" / name
    tokenizer = Tokenizer.load(folder)
    for case in lines(data / "tokenizers" / "expected" / f"hf-{name}.jsonl"):
        text, ids, special = str(case["text"]), case["ids"], case["ids_with_special"]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == special
        assert tokenizer.decode(ids) == case["decoded"]  # type: ignore[arg-type]
        assert tokenizer.decode(special, skip_special_tokens=True) == case["decoded_skip_special"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "file"), [("gpt2", "llamacpp-gpt-2"), ("qwen3", "llamacpp-qwen2")])
def test_expected_ids_of_another_engine(shared: Path, name: str, file: str) -> None:
    tokenizer = Tokenizer.load(shared / "data" / "tokenizers" / name)
    for case in lines(shared / "data" / "tokenizers" / "expected" / f"{file}.jsonl"):
        assert tokenizer.encode(str(case["text"]), add_special_tokens=False) == case["ids"]


@pytest.mark.parametrize("name", ["mistral-v1", "mistral-v3"])
def test_expected_sentencepiece(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.load(shared / "data" / "tokenizers" / name)
    for case in lines(shared / "data" / "tokenizers" / "expected" / f"sentencepiece-{name}.jsonl"):
        if "<s>" in str(case["text"]):
            continue  # control tokens in the text are ids here, as in transformers, and plain text there
        assert tokenizer.encode(str(case["text"]), add_special_tokens=False) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]  # type: ignore[arg-type]


def test_equal_to_transformers(shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folders = sorted((shared / "oracles" / "models").glob("*/tokenizer.json"))
    folders += [
        shared / "data" / "tokenizers" / "qwen3" / "x",
        shared / "data" / "weights" / "stories260k" / "x",
    ]
    seen: set[str] = set()
    for path in folders:
        folder = path.parent
        key = (folder / "tokenizer.json").read_text() + (folder / "tokenizer_config.json").read_text()
        if key in seen:
            continue
        seen.add(key)
        theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
        assert ours.eos_id == theirs.eos_token_id
        assert ours.bos_id == theirs.bos_token_id
        assert ours.special_ids == set(theirs.all_special_ids) or ours.special_ids >= set(
            theirs.all_special_ids
        )
        for text in TEXTS:
            ids = theirs.encode(text)
            assert ours.encode(text) == ids
            assert ours.encode(text, add_special_tokens=False) == theirs.encode(
                text, add_special_tokens=False
            )
            assert ours.decode(ids) == theirs.decode(ids)
            assert ours.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True)


def test_backend_is_the_plain_library(byte_tokenizer: Tokenizer) -> None:
    assert isinstance(byte_tokenizer.codec._backend, Backend)  # type: ignore[attr-defined]
