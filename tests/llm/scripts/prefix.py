"""Prompts that begin alike."""

from vllm import LLM, SamplingParams

prefix = (
    "You are an expert school principal, skilled in managing staff. Draft ten questions for an interview of "
    "a teacher. "
)
prompts = [
    prefix + text for text in ("Hello, my name is", "The president is", "The capital is", "The future is")
]
params = SamplingParams(temperature=0.0, max_tokens=8)
plain = LLM(max_model_len=256, enable_prefix_caching=False)
wanted = [o.outputs[0].text for o in plain.generate(prompts, params)]
del plain
llm = LLM(max_model_len=256, enable_prefix_caching=True, gpu_memory_utilization=0.4)
llm.generate(prompts[0], params)
outputs = llm.generate(prompts, params)
assert [o.outputs[0].text for o in outputs] == wanted
assert all(o.num_cached_tokens > 0 for o in outputs)
assert llm.reset_prefix_cache()
assert llm.generate(prompts[1], params)[0].num_cached_tokens == 0
print("prefix")
