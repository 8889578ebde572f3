"""What LLM and AsyncLLM do besides answering: metrics, profiles, calls that have no meaning here."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scripted_engine import ScriptedEngine, async_llm, llm_of, params, run

from octavo import LLM, ModelRegistry, SamplingParams
from octavo.errors import BadRequest, OctavoError
from octavo.llm.control import NotHere
from octavo.pipeline.prepare import Preparer
from octavo.types.metrics import Counter, Gauge, Histogram
from octavo.types.stats import STEP_TOKEN_EDGES, EngineStats


@pytest.fixture(scope="module")
def llm() -> LLM:
    pytest.importorskip("octavo._native", reason="the extension is not built")
    return LLM(device="cpu", max_model_len=128)


def test_metrics_of_finished_requests(llm: LLM) -> None:
    def read() -> dict[str, Any]:
        return {
            metric.name: metric
            for metric in llm.get_metrics()
            if metric.labels.get("finished_reason") in (None, "length")
        }

    before = read()
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    llm.generate(["The sky", "The sky is", "Water"], greedy)
    after = read()

    def grown(name: str, field: str = "value") -> Any:
        return getattr(after[name], field) - getattr(before[name], field)

    assert all(name.startswith("vllm:") for name in after)
    assert isinstance(after["vllm:num_requests_running"], Gauge)
    assert after["vllm:num_requests_running"].value == 0
    assert isinstance(after["vllm:generation_tokens"], Counter)
    assert grown("vllm:generation_tokens") == 9
    assert grown("vllm:request_success") == 3
    assert isinstance(after["vllm:time_to_first_token_seconds"], Histogram)
    assert grown("vllm:time_to_first_token_seconds", "count") == 3
    assert grown("vllm:time_to_first_token_seconds", "sum") > 0
    assert grown("vllm:request_generation_tokens", "sum") == 9
    buckets = after["vllm:request_generation_tokens"].buckets
    assert buckets["2.0"] == before["vllm:request_generation_tokens"].buckets["2.0"]
    assert buckets["5.0"] - before["vllm:request_generation_tokens"].buckets["5.0"] == 3
    assert buckets["+Inf"] == after["vllm:request_generation_tokens"].count
    steps = after["vllm:iteration_tokens_total"]
    assert len(steps.buckets) == len(STEP_TOKEN_EDGES) + 1
    assert steps.buckets["+Inf"] == steps.count
    assert grown("vllm:iteration_tokens_total", "sum") == grown("vllm:prompt_tokens") + 9 - 3
    assert after["vllm:cache_config_info"].labels["block_size"] == "16"


def test_requests_that_were_left_are_not_counted_as_finished(
    engine: ScriptedEngine, preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = llm_of(engine, preparer)
    monkeypatch.setattr(engine, "stats", EngineStats, raising=False)
    stream = one.generate("Hello", params(5), stream=True)
    next(stream)
    stream.close()
    one.generate("Hello", params(2))
    found = {
        m.labels["finished_reason"]: m.value for m in one.get_metrics() if m.name == "vllm:request_success"
    }
    assert found == {"stop": 0, "length": 1, "abort": 0, "error": 0, "repetition": 0}


def test_a_profile_is_one_line(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OctavoError, match="start_profile"):
        llm.stop_profile()
    llm.start_profile()
    llm.generate("Hello", SamplingParams(max_tokens=4, ignore_eos=True))
    with caplog.at_level(logging.INFO, "octavo"):
        logging.getLogger("octavo").propagate = True
        llm.stop_profile()
    line = caplog.messages[-1]
    assert line.startswith("Profile: 4 steps of ")
    for part in ("schedule", "arrays", "forward", "sample", "commit"):
        assert f"{part} " in line


def test_calls_to_workers(llm: LLM) -> None:
    assert llm.collective_rpc("reset_mm_cache") == [None]
    assert llm.collective_rpc("reset_prefix_cache") == [True]
    llm.collective_rpc("sleep", args=(1,))
    assert llm.is_sleeping()
    llm.collective_rpc("wake_up", kwargs={"tags": None})
    assert not llm.is_sleeping()
    for method in ("load_weights", "generate", lambda worker: worker):
        with pytest.raises(NotHere, match="workers") as caught:
            llm.collective_rpc(method)
        assert isinstance(caught.value, NotImplementedError)
    with pytest.raises(NotHere, match="PyTorch"):
        llm.apply_model(lambda model: model)
    assert llm.get_world_size() == 1
    assert llm.check_health() is None
    assert llm.reset_mm_cache() is None


def test_the_model_config(llm: LLM) -> None:
    config = llm.model_config
    assert config.max_model_len == 128
    assert config.get_vocab_size() == config.vocab_size == len(llm.get_tokenizer())
    assert config.model


def test_the_registry() -> None:
    assert "Qwen2ForCausalLM" in ModelRegistry.get_supported_archs()
    with pytest.raises(NotHere, match="MyModel"):
        ModelRegistry.register_model("MyModel", object)


def test_the_asynchronous_class_has_them_too(engine: ScriptedEngine, preparer: Preparer) -> None:
    async def work() -> None:
        one = async_llm(engine, preparer)
        assert (await one.get_model_config()).max_model_len == 200
        assert await one.collective_rpc("reset_prefix_cache") == [True]
        assert await one.reset_mm_cache() is None
        assert await one.is_tracing_enabled() is False
        assert await one.get_supported_tasks() == ("generate",)
        with pytest.raises(BadRequest, match="no 'x' here"):
            await anext(one.generate("Hi", params(1), tokenization_kwargs={"x": 1}))
        with pytest.raises(NotHere, match="workers"):
            await one.collective_rpc("load_weights")

    run(work())


def test_times_of_kv_blocks_are_measured_when_asked(llm: LLM) -> None:
    assert not any("kv_block" in metric.name for metric in llm.get_metrics())
    small = LLM(
        device="cpu",
        max_model_len=64,
        num_gpu_blocks_override=6,
        kv_cache_metrics=True,
        kv_cache_metrics_sample=1.0,
        long_prefill_token_threshold=16,
    )
    prompts = [[100 + n] * 40 for n in range(4)]
    for prompt in [*prompts, prompts[-1]]:
        small.generate([prompt], SamplingParams(max_tokens=2, ignore_eos=True))
    found = {metric.name: metric for metric in small.get_metrics() if "kv_block" in metric.name}
    assert sorted(found) == [
        "vllm:kv_block_idle_before_evict_seconds",
        "vllm:kv_block_lifetime_seconds",
        "vllm:kv_block_reuse_gap_seconds",
    ]
    for metric in found.values():
        assert isinstance(metric, Histogram)
        assert metric.count > 0
        assert metric.sum > 0
    steps = {metric.name: metric for metric in small.get_metrics()}["vllm:iteration_tokens_total"]
    assert steps.buckets["16.0"] == steps.count, "no step has more of a prompt than the threshold"


def test_the_prefix_cache_may_be_passed_by(llm: LLM) -> None:
    prompt = "The sky is blue because the air scatters short waves of light far more than the long ones."
    plain = SamplingParams(max_tokens=3, temperature=0.0)
    first = llm.generate(prompt, plain)[0]
    again = llm.generate(prompt, plain)[0]
    skipped = llm.generate(
        prompt, SamplingParams(max_tokens=3, temperature=0.0, skip_reading_prefix_cache=True)
    )[0]
    assert again.num_cached_tokens > 0
    assert skipped.num_cached_tokens == 0
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == skipped.outputs[0].token_ids
