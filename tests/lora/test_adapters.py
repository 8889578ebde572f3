"""Adapters beside the base give what the base with the adapter merged in gives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_cases import (
    ALL,
    GREEDY,
    PROMPTS,
    ask,
    make,
    merged,
    request,
    values,
    write_adapter,
)
from safetensors.numpy import load_file, save_file

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.lora.load import AdapterLoader
from octavo.types.lora import LoRARequest

ORACLES = Path(__file__).parents[3] / "shared" / "oracles"


def same(llm: LLM, adapter: Path, alone: LLM, tolerance: float = 2e-4) -> None:
    """The adapter's answers are those of a merged model."""
    got = ask(llm, PROMPTS, request(1, adapter))
    for ours, theirs in zip(got, ask(alone, PROMPTS), strict=True):
        assert values(ours)[0] == values(theirs)[0]
        np.testing.assert_allclose(values(ours)[1], values(theirs)[1], atol=tolerance)
    plain = ask(llm, PROMPTS)
    assert any(values(a)[0] != values(b)[0] for a, b in zip(got, plain, strict=True)), "it does nothing"


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("rank", [1, 8, 256])
def test_like_the_merged_model(rank: int, backend: str, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", rank, rank, ALL, lora_alpha=rank / 2)
    alone = make(merged(tmp_path / "m", adapter, 0.5), backend=backend)
    same(make(base, backend=backend), adapter, alone)


CASES: list[tuple[str, int, list[str], dict[str, Any], float | dict[str, float]]] = [
    ("rslora", 9, ALL, {"use_rslora": True, "lora_alpha": 3}, 3 / math.sqrt(9)),
    ("regex", 4, ["gate_proj", "down_proj"], {"target_modules": r".*\.mlp\.(gate|down)_proj"}, 1.0),
    ("all-linear", 4, ["q_proj", "up_proj"], {"target_modules": "all-linear"}, 1.0),
    ("one of three", 4, ["v_proj"], {}, 1.0),
    ("head", 4, ["lm_head", "q_proj"], {}, 1.0),
    ("embedding", 4, ["embed_tokens", "q_proj"], {"lora_alpha": 2}, 0.5),
    (
        "patterns",
        4,
        ["q_proj", "down_proj"],
        {
            "ranks": {"down_proj": 16},
            "rank_pattern": {"down_proj": 16},
            "alpha_pattern": {r"layers\.\d.self_attn.q_proj": 6},
        },
        {"q_proj": 6 / 4, "down_proj": 4 / 16},
    ),
]


@pytest.mark.parametrize(
    ("rank", "names", "said", "scale"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_what_the_config_says(
    backend: str, rank: int, names: list[str], said: dict[str, Any], scale: Any, base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", 3, rank, names, **said)
    alone = make(merged(tmp_path / "m", adapter, scale), backend=backend)
    same(make(base, backend=backend), adapter, alone)


def test_layers_that_are_not_wanted_are_left_out(base: Path, tmp_path: Path) -> None:
    llm = make(base)
    both = write_adapter(tmp_path / "both", 3, 4, ["q_proj"])
    one = write_adapter(tmp_path / "one", 3, 4, ["q_proj"], layers_to_transform=[1])
    answers = [values(ask(llm, PROMPTS[:1], request(i + 1, a))[0]) for i, a in enumerate((both, one))]
    assert not np.array_equal(answers[0][1], answers[1][1])


SPELLINGS = [
    ("base_model.model.", ""),
    (".weight", ".default.weight"),
    ("base_model.model.", "base_model.model.base_model.model."),
    ("base_model.model.", "base_model.model._orig_mod."),
    ("base_model.model.", "module.base_model.model."),
    ("base_model.model.model.", "base_model.model.model.language_model."),
]


@pytest.mark.parametrize(("there", "instead"), SPELLINGS, ids=[new or "none" for _, new in SPELLINGS])
def test_names_of_wraps(there: str, instead: str, base: Path, tmp_path: Path) -> None:
    """What a training put around the model is in the names, and means nothing."""
    llm = make(base)
    folders = [write_adapter(tmp_path / name, 1, 4, ALL) for name in "ab"]
    file = folders[1] / "adapter_model.safetensors"
    save_file({name.replace(there, instead): tensor for name, tensor in load_file(file).items()}, file)
    first, second = (values(ask(llm, PROMPTS[:1], request(i + 1, f))[0]) for i, f in enumerate(folders))
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


def test_alpha_of_zero_changes_nothing(base: Path, tmp_path: Path) -> None:
    llm = make(base)
    adapter = write_adapter(tmp_path / "a", 1, 4, ALL, lora_alpha=0)
    got, plain = (values(ask(llm, PROMPTS[:1], lora)[0]) for lora in (request(1, adapter), None))
    assert np.array_equal(got[1], plain[1])


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixed_batch_changes_no_bit(
    quantization: str | None, dtype: str, base: Path, tmp_path: Path
) -> None:
    """Two adapters and the base in one batch, prompts in chunks, blocks shared: each as if it were alone."""
    keywords: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "backend": "native"}
    first = request(1, write_adapter(tmp_path / "a", 1, 8, ALL))
    second = request(2, write_adapter(tmp_path / "b", 2, 3, ["q_proj", "down_proj"]))
    lora = [first, None, second, first]
    alone = [
        values(ask(make(base, enable_prefix_caching=False, **keywords), [prompt], one)[0])
        for prompt, one in zip(PROMPTS, lora, strict=True)
    ]
    mixed = make(base, max_num_batched_tokens=16, max_num_seqs=8, **keywords)
    for _ in range(2):  # the second time the prompts come from the prefix cache
        for (tokens, numbers), output in zip(alone, ask(mixed, PROMPTS, lora), strict=True):
            assert values(output)[0] == tokens
            assert np.array_equal(values(output)[1], numbers)


def test_cached_blocks_are_an_adapters_own(base: Path, tmp_path: Path) -> None:
    llm, prompt = make(base), [list(range(1, 70))]
    adapter = write_adapter(tmp_path / "a", 1, 8, ALL)

    def cached(lora: LoRARequest | None) -> int:
        return ask(llm, prompt, lora)[0].num_cached_tokens or 0

    one, two = LoRARequest("one", 1, str(adapter)), LoRARequest("two", 2, str(adapter))
    assert [cached(lora) for lora in (None, None, one, one, two, None)] == [0, 64, 0, 64, 0, 64]
    write_adapter(tmp_path / "a", 2, 8, ALL)
    assert cached(LoRARequest("one", 1, str(adapter), load_inplace=True)) == 0


def test_an_adapter_that_is_read_anew_is_read_once_for_all_prompts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, path = make(base), str(write_adapter(tmp_path / "a", 1, 8, ALL))
    read, reads = AdapterLoader.read, list[str]()

    def counted(self: AdapterLoader, name: str, path: str) -> Any:
        reads.append(name)
        return read(self, name, path)

    monkeypatch.setattr(AdapterLoader, "read", counted)
    for count in (1, 2):
        ask(llm, PROMPTS, LoRARequest("one", 1, path, load_inplace=True))
        assert reads == ["one"] * count


def test_more_adapters_than_places(base: Path, tmp_path: Path) -> None:
    """Four adapters through one place, in one call, and with so few blocks that sequences are preempted."""
    lora = [request(i, write_adapter(tmp_path / str(i), i, 4, ALL)) for i in range(1, 5)]
    alone = [values(ask(make(base), [PROMPTS[1]], one)[0]) for one in lora]
    for keywords in ({"max_loras": 1}, {"max_loras": 2, "max_cpu_loras": 3, "num_gpu_blocks_override": 16}):
        llm = make(base, max_model_len=64, **keywords)
        got = ask(llm, [PROMPTS[1]] * 8, [*lora, *lora])
        for output, (tokens, numbers) in zip(got, [*alone, *alone], strict=True):
            assert values(output)[0] == tokens
            assert np.array_equal(values(output)[1], numbers)
            assert output.lora_request in lora


def test_async_requests_share_a_new_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that come together read it once; then it can be forgotten, and read again by its id."""
    lora = request(1, write_adapter(tmp_path / "a", 1, 8, ALL))
    [alone] = ask(make(base), PROMPTS[:1], lora)
    read, reads, second = AdapterLoader.read, list[str](), threading.Barrier(2)

    def slow(self: AdapterLoader, name: str, path: str) -> Any:
        reads.append(name)
        with contextlib.suppress(threading.BrokenBarrierError):
            second.wait(0.3)  # long enough for another one to come, if it may
        return read(self, name, path)

    monkeypatch.setattr(AdapterLoader, "read", slow)
    llm = AsyncLLM(str(base), dtype="float32", enable_lora=True, skip_tokenizer_init=True, quiet=True)

    async def answer() -> list[int]:
        prompt = {"prompt_token_ids": PROMPTS[0]}
        outputs = [output async for output in llm.generate(prompt, GREEDY, lora_request=lora)]
        return outputs[-1].outputs[0].token_ids

    async def go() -> None:
        assert await asyncio.gather(*(answer() for _ in range(8))) == [values(alone)[0]] * 8
        assert await llm.list_loras() == {1}
        assert len(reads) == 1
        assert (await llm.remove_lora(1), await llm.remove_lora(1)) == (True, False)
        assert not await llm.list_loras()
        assert await llm.add_lora(lora)
        assert await llm.pin_lora(1)
        await llm.shutdown()

    asyncio.run(go())


def test_files_that_change_fail_one_request(base: Path, tmp_path: Path) -> None:
    """An adapter that lost its place is read again; when its files are others by then, that request fails."""
    llm = make(base, max_loras=1)
    first, second = (request(i, write_adapter(tmp_path / str(i), i, 4, ALL)) for i in (1, 2))
    ask(llm, PROMPTS[:1], first)
    ask(llm, PROMPTS[:1], second)
    write_adapter(tmp_path / "1", 9, 4, ALL)
    with pytest.raises(Exception, match="could not be read"):
        ask(llm, PROMPTS[:1], first)
    assert ask(llm, PROMPTS[:1], second)[0].finished


@pytest.mark.parametrize("backend", ["native", "numpy", "torch"])
@pytest.mark.parametrize("name", ["llama-all-r16", "llama-all-r16-rslora", "qwen2-qv-r8"])
def test_like_peft(name: str, backend: str) -> None:
    """Adapters that PEFT wrote, and what PEFT's own forward pass gives."""
    folder = ORACLES / "lora" / f"lora-{name}"
    if not folder.exists():
        pytest.skip("the oracles are not in this checkout")
    if backend == "torch":
        pytest.importorskip("torch")
    golden = json.loads((folder / "golden.json").read_text())
    llm = make(ORACLES / "models" / golden["base"], max_model_len=512, backend=backend)
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=20, detokenize=False)
    cases = golden["cases"]
    outputs = llm.generate(
        [{"prompt_token_ids": case["prompt_ids"]} for case in cases], params, lora_request=request(1, folder)
    )
    for case, output in zip(cases, outputs, strict=True):
        answer = output.outputs[0]
        assert answer.token_ids == case["greedy_ids"]
        assert answer.logprobs is not None
        expected = dict(zip(case["top_ids"], case["top_logprobs"], strict=True))
        assert all(abs(answer.logprobs[0][i].logprob - value) < 1e-4 for i, value in expected.items())
