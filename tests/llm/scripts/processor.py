"""A function over the logits."""

import torch
from vllm import LLM, SamplingParams


def no_repeat(output_ids, logits: torch.Tensor) -> torch.Tensor:
    if output_ids:
        logits[torch.tensor(output_ids)] = -float("inf")
    return logits


llm = LLM(max_model_len=128)
params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logits_processors=[no_repeat])
ids = llm.generate("The sky is", params)[0].outputs[0].token_ids
assert len(set(ids)) == len(ids) == 24
print("processor")
