"""Defaults from generation_config.json, as --generation-config and its override select them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.config.generation import load_generation_config, token_ids
from octavo.errors import BadRequest, ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "max_new_tokens": 300,
        "do_sample": False,
        "eos_token_id": [5, 6],
        "min_p": None,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return tmp_path


def test_auto_fills_what_the_client_left_open(folder: Path) -> None:
    config = load_generation_config("auto", folder)
    params = config.apply({"top_p": 0.5, "temperature": None, "n": 2})
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (0.6, 0.5, 20, 1.05)
    assert (params.min_p, params.n, params.max_tokens) == (0.0, 2, None)
    assert config.eos_ids == (5, 6)
    assert config.max_tokens == 300


def test_neutral_defaults_keep_the_end_tokens(folder: Path) -> None:
    config = load_generation_config("vllm", folder)
    params = config.apply({})
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 1.0, 0, None)
    assert config.eos_ids == (5, 6)


def test_another_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tmp_path_factory.mktemp("model")
    assert load_generation_config(str(folder), model).apply({}).top_k == 20
    with pytest.raises(ConfigError, match=r"no generation_config\.json"):
        load_generation_config(str(model), folder)
    assert load_generation_config("auto", model).defaults == {}


def test_override_wins_and_its_max_new_tokens_is_a_ceiling(folder: Path) -> None:
    config = load_generation_config("auto", folder, {"temperature": 0.1, "max_new_tokens": 50})
    assert config.apply({}).temperature == 0.1
    assert config.max_tokens == 50
    assert config.apply({"max_tokens": 80}).max_tokens == 50
    assert load_generation_config("auto", folder).apply({"max_tokens": 800}).max_tokens == 800


def test_temperature_zero_means_greedy(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.0}')
    config = load_generation_config("auto", tmp_path)
    assert config.apply({}).temperature == 0.0
    assert config.apply({"temperature": 0.7}).temperature == 0.7


def test_unusable_files_and_values(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable"):
        load_generation_config("auto", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ConfigError, match="top_p"):
        load_generation_config("auto", tmp_path)
    with pytest.raises(BadRequest, match="temperature"):
        load_generation_config("vllm", None).apply({"temperature": 9})


def test_token_ids() -> None:
    assert token_ids(5) == (5,)
    assert token_ids([5, 6, None, True]) == (5, 6)
    assert token_ids(None) == ()
