"""The bundled pocket model: its files, its tokenizer, and the text that it is trained on."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "octavo" / "assets" / "pocket"
LIMIT_BYTES = 8_000_000


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tools.pocket.generate")


@pytest.fixture
def dialogue(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tools.pocket.dialogue")


def read(name: str) -> dict[str, object]:
    return json.loads((ASSETS / name).read_text(encoding="utf-8"))


def test_assets_fit_into_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= LIMIT_BYTES


def test_config_is_a_small_qwen2() -> None:
    config = read("config.json")
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["model_type"] == "qwen2"
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    assert config["hidden_size"] // config["num_attention_heads"] == 64


def test_tokenizer_matches_the_config() -> None:
    tokenizer = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == read("config.json")["vocab_size"]
    assert tokenizer.token_to_id("<|im_end|>") in read("generation_config.json")["eos_token_id"]
    assert tokenizer.token_to_id("<|endoftext|>") in read("generation_config.json")["eos_token_id"]


@pytest.mark.parametrize(
    "text",
    [
        "Why is the sky blue?",
        "天空为什么是蓝色的？",
        "  two  spaces\n\nand\ttabs ",
        "naïve café 12,345.67",
        "🙂 ok 𝔘",
        "E = mc²",
    ],
)
def test_tokenizer_round_trips(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_weights_have_the_names_and_the_type_of_a_published_checkpoint() -> None:
    with (ASSETS / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert "lm_head.weight" not in header
    assert header["model.embed_tokens.weight"]["shape"] == [3584, 256]


def test_questions_name_a_piece_of_a_trained_answer(generate: ModuleType) -> None:
    answers = {q: item.answer for item in generate.all_items() for q in item.questions}
    for case in json.loads((ASSETS / "questions.json").read_text(encoding="utf-8")):
        assert case["contains"] in answers[case["prompt"]]


def test_the_text_is_the_same_every_time(generate: ModuleType, dialogue: ModuleType) -> None:
    assert generate.all_items() == generate.all_items()
    first, second = dialogue.Sampler(3), dialogue.Sampler(3)
    assert [first.dialogue() for _ in range(50)] == [second.dialogue() for _ in range(50)]


def test_held_out_wordings_are_not_trained(generate: ModuleType) -> None:
    items = generate.all_items()
    trained = {q for item in items for q in item.questions}
    held = {q for item in items for q in item.held_out}
    assert held
    assert not held & trained
    for lang in ("en", "zh"):
        assert not set(generate.wrappers(lang)) & set(generate.wrappers(lang, held_out=True))


def test_one_wording_has_one_answer(generate: ModuleType) -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for item in generate.all_items():
        for question in item.questions:
            answers.setdefault((item.lang, question.lower()), set()).add(item.answer)
    assert not {key: found for key, found in answers.items() if len(found) > 1}
