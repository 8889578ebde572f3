"""Streams in an asyncio program."""

import asyncio

from vllm import AsyncEngineArgs, SamplingParams
from vllm.engine.async_llm_engine import AsyncLLMEngine
from vllm.sampling_params import RequestOutputKind


async def answer(engine, name, kind):
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True, output_kind=kind)
    return [o.outputs[0].token_ids async for o in engine.generate("The sky is", params, request_id=name)]


async def main():
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(max_model_len=128, enforce_eager=True))
    deltas, whole = await asyncio.gather(
        answer(engine, "a", RequestOutputKind.DELTA), answer(engine, "b", RequestOutputKind.FINAL_ONLY)
    )
    assert [t for piece in deltas for t in piece] == whole[0]
    assert len(whole) == 1
    assert (await engine.get_model_config()).max_model_len == 128
    await engine.check_health()
    engine.shutdown()


asyncio.run(main())
print("async")
