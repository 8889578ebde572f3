"""Scripts written for vLLM, run unchanged."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
built = importlib.util.find_spec("octavo._native") is not None

NAMES = """
import sys
import vllm
from vllm import LLM, AsyncEngineArgs, AsyncLLMEngine, EngineArgs, SamplingParams
from vllm import TextPrompt, TokensPrompt, __version__
from vllm.engine.arg_utils import EngineArgs as SameArgs
from vllm.engine.async_llm_engine import AsyncLLMEngine as SameEngine
from vllm.entrypoints.llm import LLM as SameLLM
from vllm.inputs import TokensPrompt as SameTokens
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams as SameParams
from vllm.utils import FlexibleArgumentParser, random_uuid
from vllm.v1.engine.async_llm import AsyncLLM
import vllm.entrypoints.openai.api_server
import octavo

assert __name__ == "__main__"
assert SamplingParams is SameParams is octavo.SamplingParams
assert LLM is SameLLM is octavo.LLM
assert EngineArgs is SameArgs and TokensPrompt is SameTokens and AsyncLLMEngine is SameEngine is AsyncLLM
assert __version__.startswith("0.") and vllm.__version__ == __version__
assert len(random_uuid()) == 32
assert SamplingParams(temperature=0.5, output_kind=RequestOutputKind.DELTA).temperature == 0.5
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
args = parser.parse_args(["--max_model_len", "5", "--tensor-parallel-size=1"])
assert EngineArgs.from_cli_args(args).max_model_len == "5"
try:
    vllm.NoSuchThing
except AttributeError as error:
    assert "NoSuchThing" in str(error)
else:
    raise SystemExit("vllm.NoSuchThing")
try:
    import vllm.model_executor
except ModuleNotFoundError as error:
    assert "stand-in" in str(error)
else:
    raise SystemExit("vllm.model_executor")
import beside
print(sys.argv, beside.HERE)
"""

OFFLINE = """
import os
os.environ["VLLM_TARGET_DEVICE"] = "cpu"
from vllm import LLM, SamplingParams

llm = LLM(device="cpu", tensor_parallel_size=1, trust_remote_code=True, dtype="bfloat16", max_model_len=512)
tokenizer = llm.get_tokenizer()
text = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Why is the sky blue?"}], tokenize=False, add_generation_prompt=True
)
params = SamplingParams(temperature=0.0, top_p=0.8, repetition_penalty=1.05, max_tokens=64)
for output in llm.generate([text], params):
    print("Prompt:", repr(output.prompt))
    print("Text:", output.outputs[0].text)
print("Text:", end=" ")
for chunk in llm.generate([text], params, stream=True):
    print(chunk.outputs[0].text, end="")
"""


def run_script(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(code)
    (folder / "beside.py").write_text("HERE = 'beside'\n")
    return subprocess.run(
        [sys.executable, "-m", "octavo.as_vllm", str(script), *words],
        capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_names_resolve_to_ours(tmp_path: Path) -> None:
    done = run_script(tmp_path, NAMES, "--flag", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{[str(tmp_path / 'script.py'), '--flag', 'x']} beside"


def test_exit_codes_and_tracebacks_are_the_scripts_own(tmp_path: Path) -> None:
    assert run_script(tmp_path, "raise SystemExit(7)").returncode == 7
    done = run_script(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("words", "code"), [((), 2), (("/no/such.py",), 2), (("--help",), 0), (("-m",), 2)])
def test_without_a_script(words: tuple[str, ...], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo.as_vllm", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "octavo.as_vllm", "-m", "vllm.entrypoints.openai.api_server"],
        ["-m", "octavo.entrypoints.openai.api_server"],
        ["-m", "octavo.entrypoints.api_server"],
    ],
)
def test_the_server_modules_are_octavo_serve(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words, "--help=port"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Port to listen on (8000)." in done.stdout
    wrong = subprocess.run(
        [sys.executable, *words, "--prot", "1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert wrong.returncode == 2
    assert "Did you mean --port?" in wrong.stderr


@pytest.mark.skipif(not built, reason="the extension is not built")
def test_an_offline_script_of_the_stories(tmp_path: Path) -> None:
    done = run_script(tmp_path, OFFLINE)
    assert done.returncode == 0, done.stderr
    prompt, whole, streamed = done.stdout.splitlines()
    assert prompt.startswith("Prompt: '<|im_start|>")
    assert whole == streamed
    assert len(whole) > len("Text: ")
