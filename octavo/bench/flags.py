"""The flags of each ``octavo bench`` subcommand, with vLLM's names.

Every flag of ``octavo serve`` parses beside them (the same table, :mod:`octavo.config.flag_table`); where a
name is in both, the one here wins.
"""

from __future__ import annotations

from octavo.config.flag_table import Flag

_DUMMY = Flag(
    "dummy",
    "str",
    "cli.dummy",
    "Random weights of a real shape: qwen2.5-0.5b, qwen2.5-1.5b, llama-3.2-1b, qwen3-4b or mistral-7b.",
)
_JSON = Flag("output-json", "str", "cli.output_json", "Write the results as JSON to this file.")
_DETOKENIZE = Flag("disable-detokenize", "bool", "cli.disable_detokenize", "Make no text of the tokens.")

_DATA = (
    Flag(
        "dataset-name",
        "str",
        "cli.dataset_name",
        "random (token ids), file (prompts; also sharegpt, custom) or trace (arrival times and lengths).",
    ),
    Flag(
        "dataset-path",
        "str",
        "cli.dataset_path",
        "JSONL, JSON (ShareGPT), CSV or plain text, one prompt a line; Azure CSV and Mooncake JSONL traces.",
        aliases=("--dataset",),
    ),
    Flag("num-prompts", "int", "cli.num_prompts", "How many requests (64)."),
    Flag(
        "random-input-len",
        "int",
        "cli.input_len",
        "Random prompts: tokens of each (128).",
        aliases=("--input-len",),
    ),
    Flag(
        "random-output-len",
        "int",
        "cli.output_len",
        "Tokens of each answer (128; with a file: instead of the file's own lengths).",
        aliases=("--output-len", "--custom-output-len", "--sharegpt-output-len"),
    ),
    Flag(
        "random-range-ratio",
        "float",
        "cli.range_ratio",
        "Random lengths: uniform within this share around the given ones, 0 up to 1 (0).",
    ),
    Flag(
        "random-prefix-len",
        "int",
        "cli.prefix_len",
        "Random prompts: tokens that all of them begin with (0).",
        aliases=("--prefix-len",),
    ),
)

LATENCY = (
    Flag("input-len", "int", "cli.input_len", "Tokens of each prompt (32)."),
    Flag("output-len", "int", "cli.output_len", "Tokens of each answer (128)."),
    Flag("batch-size", "int", "cli.batch_size", "Requests that run together (8)."),
    Flag("n", "int", "cli.n", "Answers to each prompt (1)."),
    Flag("temperature", "float", "cli.temperature", "Of the sampling (1); 0 is greedy."),
    Flag("num-iters-warmup", "int", "cli.num_iters_warmup", "Runs before the clock starts (2)."),
    Flag("num-iters", "int", "cli.num_iters", "Runs that are timed (10)."),
    Flag("profile", "bool", "cli.profile", "Also time every op of one prefill and one decode step."),
    Flag(
        "grid",
        "bool",
        "cli.grid",
        "Prompts of 128, 512, 2048 tokens, and decoding at a context of 0, 2048, 8192, on one engine.",
    ),
    Flag(
        "against",
        "str",
        "cli.against",
        "Measure Octavo and these engines in turns: of llamacpp, vllm, openvino, transformers, with commas.",
    ),
    Flag(
        "figures",
        "words",
        "cli.figures",
        "--against, --grid: ppN is a prompt of N tokens, bN decodes N sequences, bN@C at a context of C.",
    ),
    Flag(
        "peer-command",
        "words",
        "cli.peer_command",
        "--against: NAME=PATH of a peer's Python, of vllm, or of the folder of llama-bench.",
    ),
    Flag(
        "peer-model",
        "words",
        "cli.peer_model",
        "--against: NAME=PATH of the model in a peer's own form, instead of one that Octavo makes.",
    ),
    Flag("rounds", "int", "cli.rounds", "--against, --grid: turns of each figure (5)."),
    _DETOKENIZE,
    _JSON,
    _DUMMY,
)

THROUGHPUT = (
    *_DATA,
    Flag("n", "int", "cli.n", "Answers to each prompt (1)."),
    Flag("grid", "bool", "cli.grid", "Instead: decoding in batches of 1, 2, 4 .. 64, on one engine."),
    Flag("async-engine", "bool", "cli.async_engine", "Accepted: the engine is the same one."),
    _DETOKENIZE,
    _JSON,
    _DUMMY,
)

_TARGET = (
    Flag(
        "backend", "str", "cli.backend", "openai (completions) or openai-chat.", aliases=("--endpoint-type",)
    ),
    Flag(
        "base-url", "str", "cli.base_url", "The server, such as http://127.0.0.1:8000; none: one is started."
    ),
    Flag("host", "str", "cli.host", "The server's host (127.0.0.1 when only --port is given)."),
    Flag("port", "int", "cli.port", "The server's port (8000 when only --host is given)."),
    Flag("endpoint", "str", "cli.endpoint", "Path of the requests; default: the backend's own."),
    Flag("api-key", "str", "cli.api_key", "Sent as a bearer token; default: OPENAI_API_KEY."),
    Flag("header", "words", "cli.header", "More headers, each KEY=VALUE."),
    Flag("ready-check-timeout-sec", "float", "cli.ready_timeout_s", "How long to wait for the server (600)."),
)

_LOAD = (
    Flag(
        "request-rate", "str", "cli.request_rate", "Requests per second on average; inf: all at once (inf)."
    ),
    Flag(
        "burstiness",
        "float",
        "cli.burstiness",
        "Shape of the gamma distribution of gaps: 1 Poisson, below 1 burstier (1).",
    ),
    Flag("max-concurrency", "int", "cli.max_concurrency", "Requests under way at the same time, at most."),
    Flag("num-warmups", "int", "cli.num_warmups", "Requests before the clock starts (1)."),
    Flag(
        "trace-speed", "float", "cli.trace_speed", "Traces: play arrival times this many times as fast (1)."
    ),
    Flag("ignore-eos", "bool", "cli.ignore_eos", "Answers run to their full length (on; --no-ignore-eos)."),
    Flag("temperature", "float", "cli.temperature", "Of the sampling (0: greedy)."),
    Flag("top-p", "float", "cli.top_p", "Of the sampling."),
    Flag("top-k", "int", "cli.top_k", "Of the sampling."),
    Flag("min-p", "float", "cli.min_p", "Of the sampling."),
    Flag("extra-body", "json", "cli.extra_body", "More fields of every request."),
)

_REPORT = (
    Flag("percentile-metrics", "str", "cli.percentile_metrics", "Of ttft, tpot, itl, e2el (all)."),
    Flag("metric-percentiles", "str", "cli.metric_percentiles", "Percentiles, such as 50,90,99 (99)."),
    Flag(
        "goodput",
        "words",
        "cli.goodput",
        "Bounds in ms, such as ttft:500 tpot:50: count requests within all.",
    ),
    Flag("save-result", "bool", "cli.save_result", "Write the results as JSON."),
    Flag("save-detailed", "bool", "cli.save_detailed", "With every request's times and text."),
    Flag("append-result", "bool", "cli.append_result", "Add to the file instead of replacing it."),
    Flag("result-dir", "str", "cli.result_dir", "Folder of the results (here)."),
    Flag(
        "result-filename",
        "str",
        "cli.result_filename",
        "Name of the results; default: from rate, model and time.",
    ),
    Flag("label", "str", "cli.label", "Stands in the results."),
    Flag("metadata", "words", "cli.metadata", "KEY=VALUE pairs that stand in the results."),
    Flag("plot", "str", "cli.plot", "Draw the result into this .svg or .png file."),
    Flag("disable-tqdm", "bool", "cli.disable_tqdm", "No progress bar."),
)

SERVE = (*_TARGET, *_DATA, *_LOAD, *_REPORT, _JSON, _DUMMY)

QUALITY = (
    Flag("text", "str", "cli.text", "The text, a UTF-8 file."),
    Flag("window", "int", "cli.window", "Tokens of a window, the one that begins it included (256)."),
    Flag("max-windows", "int", "cli.max_windows", "Only this many windows from the start of the text."),
    Flag(
        "add-special-tokens",
        "bool",
        "cli.add_special_tokens",
        "Begin each window as the tokenizer says (on).",
    ),
    _JSON,
)

KERNELS = (
    Flag("rows", "words", "cli.rows", "Rows of the matrix products (1 8 32 512)."),
    Flag("contexts", "words", "cli.contexts", "Tokens that attention sees (512 2048 8192)."),
    Flag(
        "formats",
        "words",
        "cli.formats",
        "Number formats of the matrices, or all (bfloat16 int8 int4 lut4-mxfp4).",
    ),
    Flag("parts", "words", "cli.parts", "Of linear, attention, between, sampler (all)."),
    Flag("num-iters", "int", "cli.num_iters", "Timed runs of each; the median counts (9)."),
    _JSON,
    _DUMMY,
)

STARTUP = (
    Flag(
        "num-iters-cold", "int", "cli.num_iters_cold", "Starts with the model's files put out of memory (0)."
    ),
    Flag("num-iters-warm", "int", "cli.num_iters_warm", "Starts with the files in memory (5)."),
    Flag("input-len", "int", "cli.input_len", "Tokens of the first prompt (16)."),
    Flag("idle", "bool", "cli.idle", "Also measure the idle processor share, for 2 s (on)."),
    _JSON,
    _DUMMY,
)

SWEEP = (
    Flag("vary", "words", "cli.vary", "Flags and their values, such as batch-size=1,2,4 input-len=128,512."),
    Flag(
        "plot", "str", "cli.plot", "Draw one figure over the first varied flag into this .svg or .png file."
    ),
    Flag("plot-metric", "str", "cli.plot_metric", "Which figure of the JSON, such as decode_tokens_per_s."),
    _JSON,
)

OWN: dict[str, tuple[Flag, ...]] = {
    "latency": LATENCY,
    "throughput": THROUGHPUT,
    "serve": SERVE,
    "sweep": SWEEP,
    "startup": STARTUP,
    "quality": QUALITY,
    "kernels": KERNELS,
}
"""Subcommand to its own flags."""

SWEPT = ("latency", "throughput", "serve")
"""What a sweep can repeat."""
