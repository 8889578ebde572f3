"""Embeddings and scores."""

from vllm import LLM, PoolingParams
from vllm.config import PoolerConfig

llm = LLM(
    runner="pooling", convert="embed", pooler_config=PoolerConfig(pooling_type="MEAN"), max_model_len=128
)
outputs = llm.embed(
    ["Hello, my name is", "The capital of France is"], pooling_params=PoolingParams(dimensions=32)
)
for output in outputs:
    assert len(output.outputs.embedding) == 32
    assert abs(sum(x * x for x in output.outputs.embedding) - 1) < 1e-4
(output,) = llm.encode("Hello", pooling_task="embed")
assert output.outputs.data.ndim == 1
scores = llm.score("What is the capital of France?", ["Paris", "Water is wet"])
assert len(scores) == 2
assert all(-1 <= s.outputs.score <= 1.0001 for s in scores)
print("embed")
