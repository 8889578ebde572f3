"""What people typed, with the package's name changed: one test for each story, on the bundled model.

The stories are command lines, request bodies and scripts of people who deployed vLLM on laptops and CPU
servers. Servers run in this process; their settings come from the very words of the command line.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

pytest.importorskip("octavo._native", reason="the extension is not built")

from octavo import LLM, SamplingParams
from octavo.cli.common import read_words
from octavo.cli.main import run
from octavo.cli.serve import server_settings
from octavo.config import machine
from octavo.config.environment import clamp_kv_cache_space, read_environment
from octavo.config.start import engine_config
from octavo.errors import CheckpointError, ConfigError, OctavoError, PromptTooLong
from octavo.launch import POCKET
from tests.server.running import LIMIT_S, Running

ROOT = Path(__file__).resolve().parents[2]
ORACLES = ROOT / "../shared/oracles"
SKY = [{"role": "user", "content": "Why is the sky blue?"}]
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n"
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def serve(*words: str) -> Running:
    """`octavo serve WORDS` in this process, on a free port."""
    settings = read_words(words)
    config = engine_config(settings)
    server = server_settings(settings, read_environment())

    def load(metrics: Any) -> Any:
        from octavo import launch

        return launch.service(launch.build(config, server.served_names), metrics)

    return Running(load, **{**msgspec.structs.asdict(server), "port": 0, "disable_access_log": True})


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """(exit code, the one line on stderr) of a command line that cannot work."""
    code = run(words)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("octavo: ")
    assert err.count("\n") == 1
    return code, err


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=LIMIT_S)


def copy_of_pocket(folder: Path) -> Path:
    shutil.copytree(POCKET, folder)
    return folder


@pytest.fixture(autouse=True)
def plain_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log records go to caplog only: a handler of one test would keep that test's stderr."""
    monkeypatch.setattr("octavo.log.setup", lambda level=None: None)
    monkeypatch.setattr(logging.getLogger("octavo"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("octavo"), "propagate", True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with a model in ~/ModelSpace/Qwen2-0.5B."""
    home = tmp_path_factory.mktemp("home")
    (home / "ModelSpace").mkdir()
    (home / "ModelSpace" / "Qwen2-0.5B").symlink_to(POCKET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serve("--model", "~/ModelSpace/Qwen2-0.5B", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def llm() -> LLM:
    """As in the script of the story about Gemma on a CPU."""
    return LLM(
        model=str(POCKET),
        dtype="bfloat16",
        trust_remote_code=True,
        device="cpu",
        max_model_len=1024,
        threads=1,
    )


# ---- starting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["octavo.entrypoints.openai.api_server", "octavo.entrypoints.api_server"])
def test_entrypoint_modules_are_serve(
    module: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m ...api_server --model ~/ModelSpace/Qwen2-0.5B --port 8000 --host 0.0.0.0 -tp 4`"""
    seen: list[Any] = []
    monkeypatch.setattr("octavo.server.run.serve", lambda factory, settings: seen.append(settings) or 0)
    line = "--model ~/ModelSpace/Qwen2-0.5B --port 8000 --host 0.0.0.0 --tensor-parallel-size 4"
    monkeypatch.setattr(sys, "argv", [module, *line.split()])
    sys.modules.pop(module, None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert ended.value.code == 0
    assert (seen[0].host, seen[0].port) == ("0.0.0.0", 8000)
    assert "4 reduced to 1: this CPU is one device" in capsys.readouterr().err


def test_variables_of_vllm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """`VLLM_CPU_OMP_THREADS_BIND=0-15 OMP_NUM_THREADS=16 VLLM_CPU_KVCACHE_SPACE=40  # MB`"""
    environ = {
        "VLLM_CPU_OMP_THREADS_BIND": "0-15",
        "OMP_NUM_THREADS": "16",
        "VLLM_CPU_KVCACHE_SPACE": "40",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_USE_LEGACY_ENGINE": "1",
        "VLLM_USE_V1": "0",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    monkeypatch.setattr(machine, "affinity", lambda: frozenset({0, 1}))
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None, raising=False)
    with caplog.at_level("WARNING", logger="octavo"):
        config = engine_config(read_words(["--model", str(POCKET)]), environ)
        assert config.kv_cache_memory_bytes == 40 << 30
        assert config.threads == 2
        assert clamp_kv_cache_space(40 << 30, 6 << 30, environ) == 6 << 30
    assert "CPUs 2-15 are not available" in caplog.messages[0]
    assert (
        "VLLM_CPU_KVCACHE_SPACE=40 asks for 40 GiB (the unit is GiB; for megabytes write 40MB)" in caplog.text
    )
    assert "VLLM_USE" not in caplog.text + capsys.readouterr().err


def test_context_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    """7B on a small card: nobody should have to find --max-model-len by trial."""
    with caplog.at_level("WARNING", logger="octavo"):
        llm = LLM(kv_cache_memory="1MiB", threads=1)
    assert "needs more KV cache than there is memory for: using 512" in caplog.text
    with pytest.raises(PromptTooLong, match="at most 511"):
        llm.generate([1] * 600)


@pytest.mark.parametrize("dtype", ["auto", "half", "bfloat16", "float32"])
def test_every_dtype_runs_on_this_cpu(dtype: str) -> None:
    """`"rms_norm_impl" not implemented for 'BFloat16'`, on the first request."""
    made = LLM(dtype=dtype, threads=1).chat(SKY, GREEDY)[0].outputs[0].text
    assert made.startswith("Sunlight")


# ---- what was named as the model --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["gemma-f16", "gemma.gguf", "dir/gemma-00001-of-00002"])
def test_gguf_is_known_by_its_first_bytes(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--model gemma-3-12b-it-Q4_K_M.gguf`, and the same file saved without its suffix."""
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF" + bytes(64))
    if "/" in where:
        path.with_name("gemma-00002-of-00002").write_bytes(b"GGUF" + bytes(64))
    name = str(path.parent if "/" in where else path)
    code, err = fails(capsys, "serve", name, "--port", "0")
    assert code == 1
    assert "is GGUF version 0" in err
    with pytest.raises(CheckpointError, match="is GGUF version 0"):
        LLM(model=name)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_git_lfs_clone_without_the_files(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`git clone https://www.modelscope.cn/qwen/qwen2-0.5b.git`"""
    folder = copy_of_pocket(tmp_path / "qwen2-0.5b")
    (folder / file).write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match=rf"{file} is a git-lfs pointer.*git lfs pull"):
        LLM(str(folder))


def test_paths_of_the_hubs_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ModelScope writes `___` for `.`; Hugging Face keeps models two folders down."""
    folder = tmp_path / "hub" / "Ovis1___6-Gemma2-9B-GPTQ-Int4"
    folder.parent.mkdir()
    folder.symlink_to(POCKET)
    with serve(str(folder), "--threads", "1") as server:
        for name in ("Ovis1.6-Gemma2-9B-GPTQ-Int4", folder.name, str(folder)):
            assert post(server, "/v1/completions", model=name, prompt="a", max_tokens=1).status_code == 200
    snapshot = tmp_path / "models--Qwen--Qwen2-0.5B" / "snapshots" / "abc"
    copy_of_pocket(snapshot)
    code, err = fails(capsys, "serve", str(snapshot.parents[1]), "--port", "0")
    assert code == 1
    assert f"Did you mean {snapshot}?" in err


def test_unsupported_architecture_lists_the_supported(tmp_path: Path) -> None:
    """Ovis is a vision model."""
    folder = copy_of_pocket(tmp_path / "Ovis")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["Ovis"], "model_type": "ovis"})
    )
    with pytest.raises(OctavoError, match=r"Ovis is not supported. Supported: .*Qwen2ForCausalLM"):
        LLM(str(folder))


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter, a file of a model, and a name that is nothing."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2-0.5B"}')
    assert "LoRA adapter made for Qwen/Qwen2-0.5B" in fails(capsys, "serve", str(tmp_path))[1]
    assert f"Name its folder: {POCKET}" in fails(capsys, "serve", str(POCKET / "model.safetensors"))[1]
    assert "neither a folder" in fails(capsys, "serve", "/data/Qwen/Qwen2.5-1.5B", "--port", "0")[1]


def test_flags_of_a_quantized_model_on_another(capsys: pytest.CaptureFixture[str]) -> None:
    """`--load-format bitsandbytes --add_bos_token=True --dtype=half -tp 2`, and `--quantization gptq`"""
    line = "--load-format bitsandbytes --add_bos_token=True --dtype=half -tp 2 --threads 1"
    with serve(str(POCKET), *line.split(), "--gpu-memory-utilization", "0.95") as server:
        assert post(server, "/v1/completions", prompt="a", max_tokens=1).status_code == 200
    err = capsys.readouterr().err
    assert "--load-format: bitsandbytes accepted; the format is read from the checkpoint itself." in err
    with pytest.raises(ConfigError, match="the checkpoint is not quantized, and only int8, int4 and"):
        LLM(str(POCKET), quantization="gptq")


# ---- flags ------------------------------------------------------------------------------------------------


def test_a_long_line_of_flags(tmp_path: Path) -> None:
    """Gemma's command line, with a template in a JSON file and parts for the system's message too."""
    template = tmp_path / "chat_template_fixed.json"
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    source += "<|im_start|>assistant\n"
    template.write_text(json.dumps({"chat_template": source}))
    line = "--dtype float32 --gpu-memory-utilization .95 --max-model-len 512 --max-num-seqs 1 --enforce-eager"
    line += " --served-model-name gemma-3-12b-it --trust-remote-code --threads 1"
    parts = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", "Be brief."), ("user", "Why is the sky blue?"))
    ]
    with serve("--model", str(POCKET), *line.split(), "--chat-template", str(template)) as server:
        reply = post(server, "/v1/chat/completions", model="gemma-3-12b-it", messages=parts, temperature=0)
        shown = post(server, "/tokenize", messages=parts, return_token_strs=True).json()
    assert reply.json()["choices"][0]["message"]["content"]
    assert "".join(shown["token_strs"]).startswith("<|im_start|>systemĊBeĠbrief.<|im_end|>")


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """`--mm-embed-counts image:256` never existed."""
    code, err = fails(capsys, "serve", "--mm-embed-counts", "image:256")
    assert code == 2
    assert "Unknown flag --mm-embed-counts. Did you mean --" in err
    assert "--help=all" in fails(capsys, "serve", "--xyzzy")[1]


def test_several_served_names() -> None:
    """`--served-model-name gpt-3.5-turbo`"""
    with serve("--served-model-name", "gpt-3.5-turbo", "pocket", "--threads", "1") as server:
        listed = [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]]
        assert listed == ["gpt-3.5-turbo", "pocket"]
        for name in listed:
            reply = post(server, "/v1/completions", model=name, prompt="a", max_tokens=1).json()
            assert reply["model"] == "gpt-3.5-turbo"


# ---- requests ---------------------------------------------------------------------------------------------


def test_the_path_as_typed_is_the_name(server: Running, home: Path) -> None:
    """`vllm serve $HOME/.../Qwen2.5-1.5B`, then the path or the id in `model`."""
    path = str(home / "ModelSpace" / "Qwen2-0.5B")
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == path
    for name in (path, path + "/", "~/ModelSpace/Qwen2-0.5B", "ModelSpace/Qwen2-0.5B", "Qwen2-0.5B"):
        reply = post(server, "/v1/completions", model=name, prompt="a", max_tokens=1)
        assert reply.status_code == 200, name
        assert reply.json()["model"] == path
    for name in ("Qwen3-0.5B", "0.5B", "/Qwen2-0.5B", "other/Qwen2-0.5B", "a\0b"):
        assert post(server, "/v1/completions", model=name, prompt="a").status_code == 404, name


def test_chat_opened_in_a_browser(server: Running) -> None:
    """GET /v1/chat/completions"""
    response = httpx.get(f"{server.url}/v1/chat/completions")
    assert response.status_code == 405
    assert "use POST" in response.json()["error"]["message"]


def test_without_max_tokens_a_run_of_newlines_ends(server: Running) -> None:
    """A base model that never emits its end token: "hangs, burns CPU"."""
    newline = post(server, "/tokenize", prompt="\n").json()["tokens"][0]
    body: Any = {"messages": SKY, "temperature": 0, "logit_bias": {str(newline): 100}}
    choice = post(server, "/v1/chat/completions", **body).json()
    assert choice["choices"][0]["finish_reason"] == "length"
    assert choice["choices"][0]["stop_reason"] == "repetition"
    assert choice["usage"]["completion_tokens"] < 500


def test_completions_stop_at_the_end_of_a_turn(server: Running) -> None:
    """An answer followed by unrelated text, until max_tokens."""
    prompt = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    reply = post(server, "/v1/completions", prompt=prompt, temperature=0, max_tokens=1000).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["text"].startswith("Sunlight")


def test_extra_sampling_fields_and_any_key(server: Running, home: Path) -> None:
    """curl with `repetition_penalty` at the top level; the client with `api_key='EMPTY'`."""
    assert post(server, "/v1/chat/completions", messages=SKY, repetition_penalty=1.05).status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", timeout=LIMIT_S) as client:
        extra = {"repetition_penalty": 1.05, "top_k": 20}
        chat = client.chat.completions.create(
            model=str(home / "ModelSpace" / "Qwen2-0.5B"),
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            extra_body=extra,
        )
    assert chat.choices[0].message.content


def test_legacy_generate(server: Running) -> None:
    """A Gradio page that splits chunks on NUL bytes and reads `json["text"][0]`."""
    body: Any = {"prompt": "Octavo is", "max_tokens": 12, "temperature": 0}
    whole = post(server, "/generate", **body, stream=False).json()["text"][0]
    assert whole.startswith("Octavo is")
    pieces = post(server, "/generate", **body, stream=True).content.split(b"\0")
    assert pieces.pop() == b""
    texts = [json.loads(piece)["text"][0] for piece in pieces]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == whole


def test_a_misspelt_field_is_named(server: Running) -> None:
    """`"max-tokens": 1000`"""
    body: Any = {"messages": SKY, "max-tokens": 1000}
    response = post(server, "/v1/chat/completions", **body)
    assert response.status_code == 200
    assert "did you mean 'max_tokens'" in response.headers["x-octavo-warning"]


def test_images_on_a_text_model(server: Running) -> None:
    """`python3 -m http.server 8008` and an image URL in the messages."""
    part = {"type": "image_url", "image_url": {"url": "http://192.168.1.5:8008/cat.png"}}
    response = post(server, "/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400
    assert "this model takes text only" in response.json()["error"]["message"]


# ---- scripts ----------------------------------------------------------------------------------------------


def test_stream_in_a_script_gives_deltas(llm: LLM) -> None:
    """`for out in llm.generate([prompt], sp, stream=True): print(out.outputs[0].text, end='')`"""
    prompt = "Why is the sky blue?"
    pieces = [out.outputs[0].text for out in llm.generate([prompt], GREEDY, stream=True)]
    assert len(pieces) > 1
    assert "".join(pieces) == llm.generate(prompt, GREEDY)[0].outputs[0].text


SCRIPT = f"""
import os
os.environ['VLLM_TARGET_DEVICE'] = 'cpu'
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
tokenizer = AutoTokenizer.from_pretrained({str(POCKET)!r})
messages = [{{"role": "user", "content": "天空为什么是蓝色的？"}}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
sampling_params = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=512)
llm = LLM(model={str(POCKET)!r}, tensor_parallel_size=1, device='cpu')
outputs = llm.generate([text], sampling_params)
for output in outputs:
    print(f"Prompt: {{output.prompt!r}}, Generated text: {{output.outputs[0].text!r}}")
"""


@pytest.mark.skipif(find_spec("transformers") is None, reason="the script imports transformers")
def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """The script of Qwen's page, as it was written for vLLM."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "octavo.as_vllm", str(tmp_path / "script.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "<|im_start|>user\\n天空为什么是蓝色的？" in done.stdout
    assert "Generated text: '" in done.stdout


def test_tensor_parallel_size_in_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    """`LLM(model, tensor_parallel_size=4)`"""
    assert LLM(tensor_parallel_size=4, threads=1).generate("a", GREEDY)[0].outputs[0].text
    assert "tensor_parallel_size: 4 reduced to 1" in capsys.readouterr().err


# ---- checkpoints beside the repository --------------------------------------------------------------------

QUANTIZED: list[tuple[str, str]] = [
    ("awq-qwen2-g64", "awq"),
    ("gptq-qwen2-g32-actorder", "gptq"),
    ("ct-qwen2-w8a8-int8-dyn", "compressed-tensors"),
]


@pytest.mark.skipif(not ORACLES.is_dir(), reason="needs the checkpoints of ../shared/oracles")
@pytest.mark.parametrize(("folder", "method"), QUANTIZED)
def test_quantized_checkpoints_run_or_say_so(folder: str, method: str) -> None:
    """GPTQ, AWQ and W8A8 checkpoints: an answer, or one sentence that names the format."""
    try:
        llm = LLM(str(ORACLES / "quant" / folder), threads=1)
    except CheckpointError as error:
        said = str(error)
    else:
        said = f"'{method}'" if llm.generate([1, 2, 3], GREEDY)[0].outputs[0].token_ids else "nothing"
    assert f"'{method}'" in said


@pytest.mark.skipif(not ORACLES.is_dir(), reason="needs the checkpoints of ../shared/oracles")
@pytest.mark.parametrize(("folder", "method"), QUANTIZED)
@pytest.mark.parametrize(
    "line",
    [
        "--load-format bitsandbytes --quantization bitsandbytes",
        "--quantization gptq --add_bos_token=True",
        "--quantization gptq --tensor-parallel-size 2 --dtype=half --gpu-memory-utilization 0.95",
    ],
)
def test_the_checkpoint_wins_over_flags_of_another(
    folder: str, method: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A compressed-tensors checkpoint with bitsandbytes flags, and the like: a warning, and it runs."""
    path = str(ORACLES / "quant" / folder)
    with caplog.at_level("WARNING", logger="octavo"), serve(path, *line.split(), "--threads", "1") as server:
        assert post(server, "/v1/completions", prompt=[1, 2, 3], max_tokens=2).status_code == 200
    named = line.split("--quantization ")[1].split()[0]
    said = f"The checkpoint is quantized with {method}: --quantization {named} is not used."
    assert (said in caplog.text) == (named != method)


STORIES = ROOT / "../shared/data/weights/stories260k"


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the models of ../shared/data")
def test_a_trained_gguf_without_its_suffix_tells_its_story(tmp_path: Path) -> None:
    """A file that llama.cpp's converter wrote, saved as `model-f16`: its own tokenizer, its own end token."""
    path = tmp_path / "model-f16"
    shutil.copy(STORIES / "stories260k-F16.gguf", path)
    with serve("--model", str(path), "--threads", "1") as server:
        reply = post(server, "/v1/completions", prompt="Once upon a time, there was", temperature=0)
        assert reply.json()["choices"][0]["text"].startswith(" a little girl named Lily.")
        chat = post(server, "/v1/chat/completions", messages=SKY)
        assert chat.status_code == 400
        assert "no chat template" in chat.json()["error"]["message"]
        assert "/v1/completions" in chat.json()["error"]["message"]


def test_without_max_tokens_the_log_says_how_long_it_may_be(caplog: pytest.LogCaptureFixture) -> None:
    """`Running: 1 reqs` was all that anybody saw."""
    with serve("--threads", "1") as server, caplog.at_level("WARNING", logger="octavo"):
        assert post(server, "/v1/chat/completions", messages=SKY).status_code == 200
    assert "A request has no max_tokens; up to 20" in caplog.text
    with serve("--default-max-tokens", "5", "--threads", "1") as server:
        reply = post(server, "/v1/chat/completions", messages=SKY).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 5
