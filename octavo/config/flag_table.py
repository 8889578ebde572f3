"""The flags that mean something: name, kind, where the value goes, and one line of help.

`target` is ``engine.FIELD`` (:class:`~octavo.config.engine.EngineConfig`), ``server.FIELD`` (the server's
settings), ``cli.NAME`` (the command itself) or ``rule.NAME`` (a rule in :mod:`octavo.config.flag_rules`). A
``!`` before it turns a boolean around. Flags without a meaning here stand in :mod:`octavo.config.flag_names`.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """One flag. `name` is written with hyphens and without the leading ``--``."""

    name: str
    kind: str
    target: str
    help: str
    group: str = ""
    aliases: tuple[str, ...] = ()
    """Whole spellings: ``-tp``, ``--other-name``."""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    """Bounds of a number, both allowed."""


DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
TASKS = ("auto", "generate", "embedding", "embed", "classify", "score", "reward", "transcription", "draft")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")

_MODEL = (
    Flag("model", "str", "engine.model", "Checkpoint: a directory or a hub id."),
    Flag("tokenizer", "str", "engine.tokenizer", "Tokenizer directory or hub id, when not the model's own."),
    Flag("revision", "str", "engine.revision", "Branch, tag or commit of a hub model."),
    Flag("tokenizer-revision", "str", "engine.tokenizer_revision", "The same for the tokenizer."),
    Flag("download-dir", "str", "engine.download_dir", "Where downloads go, instead of the hub's cache."),
    Flag(
        "hf-token",
        "maybe",
        "rule.hf_token",
        "Token for private hub models; alone: the one you logged in with.",
    ),
    Flag(
        "load-format", "str", "rule.load_format", "auto, safetensors, pt, npcache or dummy (random weights)."
    ),
    Flag("dtype", "str", "engine.dtype", "Rounding of the activations; all work on any CPU.", choices=DTYPES),
    Flag(
        "quantization",
        "str",
        "engine.quantization",
        "int8, int4 or bitsandbytes (NF4): round plain weights while they are loaded; else how the "
        "checkpoint is stored.",
        aliases=("-q",),
    ),
    Flag(
        "activation-dtype",
        "str",
        "engine.activation_dtype",
        "What 4- and 8-bit matrices see of their input: int8, or bf16 or fp32 to keep more of it. "
        "auto: fp32 with --dtype float32 (W8A8 stays int8), else int8.",
        choices=("auto", "int8", "bf16", "fp32"),
    ),
    Flag(
        "hf-overrides",
        "json",
        "rule.hf_overrides",
        "Replace keys of config.json.",
        aliases=("--hf-override",),
    ),
    Flag("rope-scaling", "json", "rule.rope_scaling", "Older way to override rope scaling."),
    Flag("rope-theta", "float", "rule.rope_theta", "Older way to override the rope base."),
    Flag("trust-remote-code", "bool", "engine.trust_remote_code", "Accepted; model folders are only data."),
    Flag(
        "max-model-len",
        "length",
        "engine.max_model_len",
        "Longest prompt plus answer, in tokens, or auto.",
        least=1,
    ),
    Flag(
        "generation-config",
        "str",
        "engine.generation_config",
        "auto (the model's), vllm (neutral) or a folder.",
    ),
    Flag(
        "override-generation-config",
        "json",
        "engine.override_generation_config",
        "Replace sampling defaults.",
    ),
    Flag("seed", "int", "engine.seed", "Seed of the engine; a request's own seed wins."),
    Flag("device", "str", "rule.device", "auto or cpu; other names are accepted and run on the CPU."),
    Flag(
        "runner",
        "str",
        "engine.runner",
        "generate, or pooling for embeddings, labels and scores; auto: what the checkpoint is.",
        choices=("auto", "generate", "pooling"),
    ),
    Flag(
        "convert",
        "str",
        "engine.convert",
        "What --runner pooling makes of a generative checkpoint: embed, classify or score.",
        choices=("auto", "none", "embed", "classify", "score"),
    ),
    Flag(
        "pooler-config",
        "json",
        "engine.pooler_config",
        'Override pooling: {"pooling_type": "MEAN", "use_activation": false}.',
        aliases=("--override-pooler-config",),
    ),
    Flag("task", "str", "rule.task", "Older name of --runner with --convert.", choices=TASKS),
    Flag("skip-tokenizer-init", "bool", "engine.skip_tokenizer_init", "Token ids in and out, no text."),
    Flag("add-bos-token", "bool", "engine.add_bos_token", "Force or forbid the beginning-of-text token."),
)
_ENGINE = (
    Flag("max-num-seqs", "int", "engine.max_num_seqs", "Requests that run at the same time (64).", least=1),
    Flag(
        "max-num-batched-tokens",
        "int",
        "engine.max_num_batched_tokens",
        "Tokens computed in one step.",
        least=1,
    ),
    Flag(
        "long-prefill-token-threshold",
        "int",
        "engine.max_chunk_tokens",
        "At most so many tokens of one prompt in a step; 0: as many as fit (0).",
        least=0,
    ),
    Flag(
        "kv-cache-metrics",
        "bool",
        "engine.kv_cache_metrics",
        "Measure how long KV blocks live, lie idle and wait to be used again.",
    ),
    Flag(
        "kv-cache-metrics-sample",
        "float",
        "engine.kv_cache_metrics_sample",
        "Share of the blocks that is measured (0.01).",
        least=0,
        most=1,
    ),
    Flag(
        "max-num-queued-reqs",
        "int",
        "engine.max_queued_requests",
        "Waiting requests before 429 (1024).",
        least=1,
    ),
    Flag(
        "max-num-queued-tokens",
        "int",
        "engine.max_queued_tokens",
        "Waiting prompt tokens before 429 (4000000).",
        least=1,
    ),
    Flag(
        "kv-cache-memory",
        "size",
        "engine.kv_cache_memory_bytes",
        "Memory of the KV cache: 2GiB, 512MB.",
        aliases=("--kv-cache-memory-bytes",),
        least=1,
    ),
    Flag("memory-share", "float", "rule.memory_share", "Otherwise: this share of the free memory (0.5)."),
    Flag(
        "gpu-memory-utilization", "float", "rule.gpu_memory", "vLLM's name; values below 0.5 lower the share."
    ),
    Flag("block-size", "int", "engine.block_size", "Tokens in one block of the KV cache (16).", least=1),
    Flag(
        "kv-cache-dtype",
        "str",
        "rule.kv_cache_dtype",
        "Number format of the KV cache: auto, float32, float16, bfloat16, fp8, fp8_e4m3 or int8.",
    ),
    Flag(
        "num-gpu-blocks-override", "int", "engine.num_blocks_override", "Exact number of KV blocks.", least=1
    ),
    Flag(
        "enable-prefix-caching",
        "bool",
        "engine.enable_prefix_caching",
        "Share the KV of equal beginnings (on).",
    ),
    Flag(
        "scheduling-policy",
        "str",
        "engine.scheduling_policy",
        "Who runs first (fcfs).",
        choices=("fcfs", "priority"),
    ),
    Flag("tensor-parallel-size", "int", "rule.tensor_parallel", "Reduced to 1 on one CPU.", aliases=("-tp",)),
)
_LORA = (
    Flag("enable-lora", "bool", "engine.enable_lora", "Take LoRA adapters beside the model."),
    Flag(
        "lora-modules",
        "words",
        "rule.lora_modules",
        'Adapters to begin with: name=path, or JSON {"name": ..., "path": ...}.',
    ),
    Flag("max-loras", "int", "engine.max_loras", "Different adapters in one step (8).", least=1, most=1024),
    Flag(
        "max-cpu-loras",
        "int",
        "engine.max_cpu_loras",
        "Adapters kept in memory; the others are read again when wanted (--max-loras).",
        least=1,
        most=4096,
    ),
    Flag("max-lora-rank", "int", "engine.max_lora_rank", "Largest rank (256).", least=1, most=512),
    Flag(
        "lora-dtype",
        "str",
        "engine.lora_dtype",
        "What adapters are kept in: auto (as stored, no wider than --dtype), or that dtype.",
        choices=("auto", "float32", "float16", "bfloat16"),
    ),
)
_TEXT = (
    Flag(
        "chat-template",
        "str",
        "engine.chat_template",
        "A Jinja file, a JSON file holding one, or the template.",
    ),
    Flag(
        "default-chat-template-kwargs", "json", "engine.chat_template_kwargs", "Arguments for every template."
    ),
    Flag(
        "trust-request-chat-template",
        "bool",
        "server.trust_request_chat_template",
        "Take templates of clients.",
    ),
    Flag(
        "tool-call-parser",
        "str",
        "engine.tool_call_parser",
        "How the model writes tool calls: hermes, llama3_json, ...; none; auto (by the chat template).",
    ),
    Flag(
        "reasoning-parser",
        "str",
        "engine.reasoning_parser",
        "How the model marks its reasoning: qwen3, deepseek_r1, ...; none; auto (by the chat template).",
    ),
    Flag(
        "exclude-tools-when-tool-choice-none",
        "bool",
        "server.exclude_tools_when_none",
        "Do not show tools to the model when tool_choice is none.",
    ),
    Flag(
        "stream-interval",
        "int",
        "engine.stream_interval",
        "Tokens in one piece of a stream, behind the first (1).",
        least=1,
    ),
    Flag("response-role", "str", "server.response_role", "Role of answers (assistant)."),
    Flag(
        "max-logprobs",
        "int",
        "engine.max_logprobs",
        "Most logprobs a request may ask for; -1: no limit (20).",
        least=-1,
    ),
    Flag(
        "logprobs-mode",
        "str",
        "engine.logprobs_mode",
        "What logprobs of answers hold (raw_logprobs); processed: after penalties, temperature, top_p, ...",
        choices=("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    ),
    Flag(
        "logits-processors",
        "words",
        "rule.logits_processors",
        "Refused: programs give functions in SamplingParams instead.",
    ),
    Flag("return-tokens-as-token-ids", "bool", "server.return_tokens_as_token_ids", "Tokens as token_id:N."),
)
_SERVER = (
    Flag("host", "str", "server.host", "Address to listen on (127.0.0.1)."),
    Flag("port", "int", "server.port", "Port to listen on (8000).", least=0, most=65535),
    Flag("uds", "str", "server.uds", "A unix socket instead of host and port."),
    Flag("served-model-name", "words", "server.served_names", "Names the API gives the model."),
    Flag("api-key", "words", "server.api_keys", "Keys of which clients must send one."),
    Flag(
        "management-api-key",
        "words",
        "server.management_api_keys",
        "Keys that may also load adapters and download models; --api-key then may not.",
    ),
    Flag(
        "admin-api-key",
        "words",
        "server.admin_api_keys",
        "Keys that may do everything; the other keys may not use development routes then.",
    ),
    Flag(
        "allowed-hosts",
        "words",
        "server.allowed_hosts",
        "Host names accepted beside loopback's; * for all.",
    ),
    Flag("allowed-origins", "words", "server.allowed_origins", "CORS: web pages that may call the server."),
    Flag("allowed-methods", "words", "server.allowed_methods", "CORS: methods."),
    Flag("allowed-headers", "words", "server.allowed_headers", "CORS: headers."),
    Flag("allow-credentials", "bool", "server.allow_credentials", "CORS: cookies and the like."),
    Flag("ssl-keyfile", "str", "server.ssl_keyfile", "TLS: private key."),
    Flag("ssl-keyfile-password", "str", "server.ssl_keyfile_password", "TLS: its password."),
    Flag("ssl-certfile", "str", "server.ssl_certfile", "TLS: certificate."),
    Flag("ssl-ca-certs", "str", "server.ssl_ca_certs", "TLS: authorities that sign client certificates."),
    Flag(
        "ssl-cert-reqs",
        "int",
        "server.ssl_cert_reqs",
        "TLS: 0 none, 1 optional, 2 required.",
        least=0,
        most=2,
    ),
    Flag("ssl-ciphers", "str", "server.ssl_ciphers", "TLS: cipher list."),
    Flag(
        "middleware",
        "words",
        "server.middleware",
        "Your own ASGI middleware around the routes: module.Class or an async function.",
    ),
    Flag("root-path", "str", "server.root_path", "Prefix that a proxy strips."),
    Flag("disable-fastapi-docs", "bool", "server.disable_docs", "No /docs and /openapi.json."),
    Flag("enable-request-id-headers", "bool", "server.enable_request_id_headers", "Echo X-Request-Id."),
    Flag(
        "enable-prompt-tokens-details",
        "bool",
        "server.enable_prompt_tokens_details",
        "Cached tokens in usage.",
    ),
    Flag(
        "enable-tokenizer-info-endpoint",
        "bool",
        "server.enable_tokenizer_info",
        "GET /tokenizer_info: the tokenizer's configuration.",
    ),
    Flag("enable-per-request-metrics", "bool", "server.enable_per_request_metrics", "Times in replies."),
    Flag("enable-force-include-usage", "bool", "server.enable_force_include_usage", "Usage in every stream."),
    Flag(
        "sse-keep-alive-interval",
        "float",
        "server.sse_keep_alive_interval",
        "Seconds between keep-alives.",
        least=0,
    ),
    Flag(
        "shutdown-timeout",
        "float",
        "server.shutdown_timeout_s",
        "Seconds that running requests may still take (30).",
        least=0,
    ),
    Flag("allow-pull", "bool", "server.allow_pull", "Let clients download models (POST /api/pull)."),
    Flag(
        "batch-dir",
        "str",
        "server.batch_dir",
        "Folder of files, batches and stored responses (under ~/.cache/octavo).",
    ),
    Flag(
        "batch-concurrency",
        "int",
        "server.batch_concurrency",
        "Lines of a batch at work together (8).",
        least=1,
        most=4096,
    ),
    Flag("max-body-bytes", "size", "server.max_body_bytes", "Largest request body (64MiB).", least=1),
    Flag("metrics-prefix", "str", "server.metrics_prefix", "Prefix of the metrics' names (vllm:)."),
    Flag(
        "otlp-traces-endpoint",
        "str",
        "server.otlp_traces_endpoint",
        "OpenTelemetry collector that gets a span for each request.",
    ),
)
_LOG = (
    Flag(
        "uvicorn-log-level",
        "str",
        "server.uvicorn_log_level",
        "Log level of the web server (info).",
        choices=LOG_LEVELS,
    ),
    Flag("disable-uvicorn-access-log", "bool", "server.disable_access_log", "No line per request."),
    Flag(
        "disable-access-log-for-endpoints",
        "str",
        "server.quiet_endpoints",
        "Paths without such a line, with commas between (/health,/ping,/metrics; '' for none).",
    ),
    Flag(
        "enable-log-requests",
        "bool",
        "server.enable_log_requests",
        "A line for each request: its id and settings, never its text.",
    ),
    Flag("disable-log-stats", "bool", "engine.disable_log_stats", "No statistics line every 10 s."),
)
_OCTAVO = (
    Flag(
        "default-max-tokens",
        "int",
        "engine.default_max_tokens",
        "Answer length when a request names none.",
        least=1,
    ),
    Flag("loop-guard", "bool", "engine.loop_guard", "End answers caught in an exact loop (on)."),
    Flag("backend", "str", "engine.backend", "Who computes (native).", choices=("native", "numpy", "torch")),
    Flag(
        "threads",
        "int",
        "engine.threads",
        "Threads of the kernels; default: the free cores.",
        least=1,
        most=1024,
    ),
    Flag(
        "decode-threads",
        "int",
        "engine.decode_threads",
        "Those of steps that only decode (--threads).",
        least=1,
        most=1024,
    ),
    Flag(
        "prefill-threads",
        "int",
        "engine.prefill_threads",
        "Those of steps that read prompts (--threads).",
        least=1,
        most=1024,
    ),
    Flag("quiet", "bool", "engine.quiet", "No progress bars."),
    Flag("config", "str", "cli.config", "A YAML file with flags; those on the command line win."),
    Flag("debug", "bool", "cli.debug", "Show tracebacks."),
)
GROUPS: tuple[tuple[str, str, tuple[Flag, ...]], ...] = (
    ("model", "the checkpoint and how it is read", _MODEL),
    ("engine", "memory, batching and scheduling", _ENGINE),
    ("lora", "adapters", _LORA),
    ("text", "chat templates and logprobs", _TEXT),
    ("server", "the HTTP server", _SERVER),
    ("log", "what is written to stderr", _LOG),
    ("octavo", "Octavo's own", _OCTAVO),
)
"""(group, title, flags)."""

LATER_GROUPS: tuple[tuple[str, str], ...] = (
    ("gpu", "accepted without effect: GPU and compiler tuning"),
    ("multi-node", "accepted without effect: more machines; counts above 1 are refused"),
    ("later", "accepted without effect: not in this version"),
    ("decided", "accepted without effect: decided from the checkpoint and the machine"),
    ("niche", "accepted without effect: niche"),
    ("older", "accepted without effect: flags of older vLLM releases"),
)
"""Groups of :data:`octavo.config.flag_names.ACCEPTED`."""
