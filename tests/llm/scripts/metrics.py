"""Reading the metrics."""

from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter, Gauge, Histogram, Vector

llm = LLM(max_model_len=128, disable_log_stats=False)
llm.generate(["The sky is", "Water is"], SamplingParams(temperature=0.8, top_p=0.95, max_tokens=4))
kinds = set()
for metric in llm.get_metrics():
    if isinstance(metric, (Counter, Gauge)):
        assert metric.value >= 0
    elif isinstance(metric, Vector):
        assert isinstance(metric.values, list)
    else:
        assert isinstance(metric, Histogram)
        assert metric.sum >= 0
        assert list(metric.buckets)[-1] == "+Inf"
    kinds.add(type(metric).__name__)
print("metrics", sorted(kinds))
