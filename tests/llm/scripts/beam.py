"""Beam search."""

from vllm import LLM, TextPrompt, TokensPrompt
from vllm.sampling_params import BeamSearchParams

llm = LLM(max_model_len=128)
ids = llm.get_tokenizer().encode("The sky")
outputs = llm.beam_search(
    [TextPrompt(prompt="Water is"), TokensPrompt(prompt_token_ids=ids)],
    BeamSearchParams(beam_width=3, max_tokens=6),
)
for output in outputs:
    best = [sequence.cum_logprob for sequence in output.sequences]
    assert len(best) == 3
    assert best == sorted(best, reverse=True)
print("beam", outputs[1].sequences[0].text[:7])
