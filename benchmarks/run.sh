#!/bin/sh
# Every figure of benchmarks/README.md, in one go: sh benchmarks/run.sh [OUT]. About half an hour.
# Stop whatever else runs on the machine first; JSON, text and plots go to OUT (benchmarks/results).
set -eu
cd "$(dirname "$0")/.."
OUT=${1:-benchmarks/results}
OCTAVO=${OCTAVO:-.venv/bin/octavo}
SHAPE=${SHAPE:-qwen2.5-0.5b}
mkdir -p "$OUT"

# Prints a command's output and keeps it: step NAME SUBCOMMAND ...
step() {
    name=$1
    shift
    echo "== octavo bench $*"
    "$OCTAVO" bench "$@" | tee "$OUT/$name.txt"
}

# One user: decode against the memory limit of the same run, and where a step's time goes, op by op.
step latency-b1 latency --dummy "$SHAPE" --dtype bfloat16 --input-len 128 --output-len 128 --batch-size 1 \
    --num-iters-warmup 1 --num-iters 5 --profile --output-json "$OUT/latency-b1.json"
# Prompts of 512 tokens: prefill, op by op.
step latency-pp512 latency --dummy "$SHAPE" --dtype bfloat16 --input-len 512 --output-len 8 --batch-size 1 \
    --num-iters-warmup 1 --num-iters 5 --profile --output-json "$OUT/latency-pp512.json"
# 32 running requests: the time outside the plan.
step latency-b32 latency --dummy "$SHAPE" --dtype bfloat16 --input-len 128 --output-len 128 --batch-size 32 \
    --num-iters-warmup 1 --num-iters 2 --profile --output-json "$OUT/latency-b32.json"
# The same on the bundled model: the smallest step there is.
step latency-pocket-b32 latency --input-len 32 --output-len 128 --batch-size 32 \
    --output-json "$OUT/latency-pocket-b32.json"
step throughput throughput --dummy "$SHAPE" --dtype bfloat16 --input-len 128 --output-len 128 --num-prompts 64 \
    --output-json "$OUT/throughput.json"
# Each kernel alone in the model's shapes, beside the machine's limits.
step kernels kernels --dummy "$SHAPE" --dtype bfloat16 --output-json "$OUT/kernels.json"
# Batches of 1 to 64 sequences.
step sweep-batch sweep latency --vary batch-size=1,2,4,8,16,32,64 --dummy "$SHAPE" --dtype bfloat16 --input-len 128 \
    --output-len 32 --num-iters-warmup 1 --num-iters 2 --output-json "$OUT/sweep-batch.json" --plot "$OUT/sweep-batch.svg"
# A fresh process until its first token: the bundled model, then the real shape.
step startup-pocket startup --output-json "$OUT/startup-pocket.json"
step startup startup --dummy "$SHAPE" --dtype bfloat16 --num-iters-warm 3 --output-json "$OUT/startup.json"
# The same batch by transformers (test-only dependency), in turns; says so when it is not there.
step against-transformers latency --dummy "$SHAPE" --dtype bfloat16 --input-len 128 --output-len 64 --batch-size 1 \
    --num-iters-warmup 1 --num-iters 2 --against transformers --rounds 5 --output-json "$OUT/against-transformers.json" ||
    true
# 16 concurrent streams of 128 in, 128 out, over HTTP.
step serve serve --dummy "$SHAPE" --dtype bfloat16 --random-input-len 128 --random-output-len 128 --num-prompts 64 \
    --max-concurrency 16 --metric-percentiles 50,90,99 --output-json "$OUT/serve.json" --plot "$OUT/serve.svg"
