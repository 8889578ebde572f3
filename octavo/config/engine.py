"""What a person can ask of an engine; made once by the command line, LLM(...) or a test."""

from __future__ import annotations

from typing import Any

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that do not depend on the checkpoint. None means "decide from the model and the machine"."""

    model: str | None = None
    """A directory or a hub id; None: the bundled pocket model."""
    tokenizer: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    download_dir: str | None = None
    hf_token: str | None = None
    load_format: str = "auto"
    """auto, safetensors, pt, dummy, npcache."""
    dtype: str = "auto"
    """auto, half, float16, bfloat16, float, float32."""
    quantization: str | None = None
    """int8, int4 or bitsandbytes: round a dense checkpoint's matrices while they are loaded; quantized ones
    stay so."""
    activation_dtype: str = "auto"
    """What quantized matrices see of their input: int8 (blocks of 32), bf16 or fp32. auto: fp32 for dtype
    float32, but what a W8A8 checkpoint says; else int8."""
    runner: str = "auto"
    """auto (what the checkpoint is), generate, or pooling: vectors, labels or scores in place of text."""
    convert: str = "auto"
    """What a generative checkpoint is made into for pooling: embed, classify or score."""
    pooler_config: dict[str, Any] = msgspec.field(default_factory=dict)
    backend: str = "native"
    """native, numpy or torch."""
    hf_overrides: dict[str, Any] = msgspec.field(default_factory=dict)
    trust_remote_code: bool = False
    """Accepted, never needed: model folders are data."""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    max_chunk_tokens: int = 0
    """Of one prompt in a step; 0: as many as fit."""
    kv_cache_metrics: bool = False
    kv_cache_metrics_sample: float = 0.01
    """Share of the KV blocks whose times are taken."""
    stream_interval: int = 1
    """Tokens in one piece of a stream, where a request says nothing."""
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    memory_share: float = 0.5
    """Without kv_cache_memory_bytes: at most this share of the memory left after loading is cache."""
    kv_cache_dtype: str = "auto"
    """auto (the model's), float32, float16, bfloat16, fp8 or fp8_e4m3, int8 (with scales)."""
    num_blocks_override: int | None = None
    threads: int | None = None
    """Of every step; None: what machine.cpu_count() says."""
    decode_threads: int | None = None
    prefill_threads: int | None = None
    """Of steps that only decode, and of those that read prompts; None: as many as `threads`."""
    seed: int = 0
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    max_queued_requests: int = 1024
    max_queued_tokens: int = 4_000_000
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    """Also raw_logits, processed_logprobs or processed_logits."""
    chat_template: str | None = None
    """A path or the template itself."""
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    """How the model marks tool calls and reasoning: vLLM's names, auto (by the chat template) or none."""
    generation_config: str = "auto"
    """auto: from the model; vllm: Octavo's neutral defaults; else a folder."""
    override_generation_config: dict[str, Any] = msgspec.field(default_factory=dict)
    default_max_tokens: int | None = None
    loop_guard: bool = True
    add_bos_token: bool | None = None
    skip_tokenizer_init: bool = False
    enable_lora: bool = False
    lora_modules: tuple[str, ...] = ()
    """Adapters to begin with: `name=path`, or JSON objects (name, path, base_model_name)."""
    max_loras: int = 8
    """Different adapters in one step."""
    max_cpu_loras: int | None = None
    """Adapters kept in memory; None: max_loras. Others are read from disk when a request wants them."""
    max_lora_rank: int = 256
    lora_dtype: str = "auto"
    """auto (as stored, float32 rounded to the model's dtype), float32, float16 or bfloat16."""
    tensor_parallel_size: int = 1
    disable_log_stats: bool = False
    quiet: bool = False
    """No progress bars."""
