#!/bin/sh
# Octavo against the engines that are installed, in turns: sh benchmarks/peers.sh [OUT]. About 15 minutes on two cores
# once the peers' forms of the checkpoints are made. JSON and text go to OUT (benchmarks/results/peers), the table to
# OUT/table.md. Stop whatever else runs on the machine first.
# Where the peers are: LLAMACPP (folder of llama-bench), VLLM and OPENVINO (each a Python that has it).
# What runs: CELLS, shape:format words; ROUNDS turns of each.
set -eu
cd "$(dirname "$0")/.."
OUT=${1:-benchmarks/results/peers}
OCTAVO=${OCTAVO:-.venv/bin/octavo}
PYTHON=${PYTHON:-.venv/bin/python}
ROUNDS=${ROUNDS:-3}
CELLS=${CELLS:-"qwen2.5-0.5b:bf16 qwen2.5-0.5b:int8 qwen2.5-0.5b:int4 qwen2.5-1.5b:int8 qwen2.5-1.5b:int4"}
mkdir -p "$OUT"

peers=
set --
for pair in "llamacpp=${LLAMACPP:-}" "vllm=${VLLM:-}" "openvino=${OPENVINO:-}"; do
    [ -n "${pair#*=}" ] || continue
    peers=$peers${peers:+,}${pair%%=*}
    set -- "$@" "$pair"
done
[ -n "$peers" ] || { echo "Name a peer: LLAMACPP, VLLM, OPENVINO (benchmarks/README.md)." >&2; exit 2; }

for cell in $CELLS; do
    shape=${cell%:*} format=${cell#*:}
    case $format in bf16) how= ;; *) how="--quantization $format" ;; esac
    echo "== $shape $format"
    # A cell that fails leaves the others their turn.
    # shellcheck disable=SC2086  # $how is one flag and its value, or nothing.
    "$OCTAVO" bench latency --dummy "$shape" $how --against "$peers" --peer-command "$@" --rounds "$ROUNDS" \
        --output-len 16 --figures pp512 b1 b8 b32 --output-json "$OUT/$shape-$format.json" |
        tee "$OUT/$shape-$format.txt" || echo "$cell failed" >&2
done
"$PYTHON" benchmarks/peers_table.py "$OUT" | tee "$OUT/table.md"
