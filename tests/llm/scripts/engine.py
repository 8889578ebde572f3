"""A loop of one's own over LLMEngine."""

from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from vllm.engine.llm_engine import LLMEngine as SameEngine
from vllm.utils import FlexibleArgumentParser


def prompts():
    return [
        (
            "A robot may not injure a human being",
            SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1),
        ),
        ("To be or not to be,", SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2)),
        (
            "What is the meaning of life?",
            SamplingParams(n=2, temperature=0.8, top_p=0.95, frequency_penalty=0.1),
        ),
    ]


def process(engine: LLMEngine, waiting):
    number, finished = 0, {}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            prompt, params = waiting.pop(0)
            engine.add_request(str(number), prompt, params)
            number += 1
        outputs: list[RequestOutput] = engine.step()
        finished.update({output.request_id: output for output in outputs if output.finished})
    return finished


args = EngineArgs.add_cli_args(FlexibleArgumentParser(description="d")).parse_args(["--max-model-len", "128"])
engine = SameEngine.from_engine_args(EngineArgs.from_cli_args(args))
done = process(engine, prompts())
assert sorted(done) == ["0", "1", "2"]
assert len(done["2"].outputs) == 2
assert len(done["0"].prompt_logprobs) == len(done["0"].prompt_token_ids)
print("engine")
