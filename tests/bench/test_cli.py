"""The command line of octavo bench: help at once, flags of serve taken, mistakes in one sentence."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.bench import flags, latency, serve, throughput
from octavo.bench.cli import COMMANDS, main
from octavo.bench.options import read_words
from octavo.bench.shapes import SHAPES, dummy_folder
from octavo.errors import ConfigError

ROOT = Path(__file__).parents[2]
HEAVY = {"numpy", "starlette", "uvicorn", "jinja2", "tokenizers", "msgspec", "yaml", "torch", "asyncio"}


@pytest.mark.parametrize("words", [("bench", "--help"), ("bench", "latency", "--help")])
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "octavo", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=True,
    )  # fmt: skip
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    assert HEAVY.isdisjoint(line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines)


def test_help_names_every_subcommand_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    for name, own in flags.OWN.items():
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"--{flag.name}" in out for flag in own)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latncy"], "Did you mean latency?"),
        (["latency", "--batchsize", "2"], "Did you mean --batch-size?"),
        (["latency", "a", "b"], "Unexpected word 'b'"),
        (["latency", "a", "--model", "b"], "Two models named"),
        (["serve", "--dummy", "gpt-9"], "There are: qwen2.5-0.5b"),
        (["serve", "m", "--dummy", "qwen3-4b"], "a model is named too"),
    ],
)
def test_usage_errors(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "values", "said"),
    [
        (latency.Options, {"batch_size": 0}, "--batch-size is 0"),
        (throughput.Options, {"num_prompts": 0}, "--num-prompts is 0"),
        (serve.Options, {"request_rate": "fast"}, "--request-rate: 'fast'"),
        (serve.Options, {"request_rate": "0"}, "above 0"),
        (serve.Options, {"backend": "grpc"}, "--backend: there is no 'grpc'"),
        (serve.Options, {"max_concurrency": 0}, "--max-concurrency is 0"),
    ],
)
def test_values_that_mean_nothing(make, values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**values)


def test_every_flag_has_a_place_in_the_options() -> None:
    assert set(flags.OWN) == set(COMMANDS)
    for name, own in flags.OWN.items():
        options = importlib.import_module(f"octavo.bench.{name}").Options
        names = {flag.target.removeprefix("cli.") for flag in own}
        assert names == set(options.__dataclass_fields__) - {"benchmark"}


def test_shared_flags_pass_and_own_flags_win(tmp_path: Path) -> None:
    words = ["m", "--input-len", "5", "--max-model-len", "2k", "--backend", "torch", "--enforce-eager"]
    asked = read_words(words, flags.LATENCY)
    assert asked.own == {"input_len": 5}
    assert asked.settings.engine == {"model": "m", "max_model_len": 2000, "backend": "torch"}
    asked = read_words(
        ["m", "--port", "1", "--max-num-seqs", "3", "--no-enable-prefix-caching", "--hf-overrides.a.b", "1",
         "--served-model-name", "x", "y", "--seed=4"],
        flags.SERVE,
    )  # fmt: skip
    assert asked.own == {"port": 1}
    assert asked.seed == 4
    again = read_words(asked.server_words, flags.LATENCY)
    assert again.settings.engine == asked.settings.engine
    assert again.settings.server == asked.settings.server


def test_config_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: mine\ninput-len: 9\nmax_num_seqs: 3\n")
    asked = read_words(["--config", str(file), "--input-len", "7"], flags.LATENCY)
    assert asked.own == {"input_len": 7}
    assert asked.settings.engine == {"model": "mine", "max_num_seqs": 3}


def test_dummies_are_whole_models() -> None:
    from octavo.build.declare import declare
    from octavo.config.arch import read_arch

    billions = {"qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "llama-3.2-1b": 1.236, "qwen3-4b": 4.02}
    billions["mistral-7b"] = 7.248
    for name, shape in SHAPES.items():
        count = 0
        for _, param in declare(read_arch(shape, {})).named_params():
            size = 1
            for length in param.shape:
                size *= length
            count += size
        assert count / 1e9 == pytest.approx(billions[name], rel=0.005), name


def test_a_dummys_tokenizer_has_a_word_for_each_id() -> None:
    from octavo.pipeline.tokenizer import Tokenizer

    folder = dummy_folder("mistral-7b")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 32768
    tokenizer = Tokenizer.load(folder)
    assert list(tokenizer.encode("w7 w31999", False)) == [7, 31999]
    assert tokenizer.decode([7, 8]).split() == ["w7", "w8"]
