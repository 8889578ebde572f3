"""octavo bench: measure throughput, latency and serving with vllm bench's options."""
