"""How much memory a loaded model keeps: its packed weights, its KV cache, and what else the process holds.

    python benchmarks/memory.py MODEL [--quantization int8] [--max-model-len 1024] [--max-num-seqs 4]

The aim is at most 1.1 times the packed weights, the KV cache, and 150 MB. A process of its own loads the
model and answers once; its resident memory is read before the load, after it and at its peak (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

SPARE_BYTES = 150_000_000
SHARE = 1.1

_CHILD = """
import json, sys
import octavo.server.run
from octavo import launch
from octavo.config.engine import EngineConfig
from octavo.types.engine import EngineRequest, SamplingSpec

def kept(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

before = kept("VmRSS")
launched = launch.build(EngineConfig(quiet=True, **json.loads(sys.argv[1])))
loaded = kept("VmRSS")
engine = launched.engine
sampling = SamplingSpec(max_tokens=16)
engine.submit(EngineRequest(id="a", prompt=tuple(range(16)), sampling=sampling, arrival_s=0))
while engine.busy():
    engine.step()
print(json.dumps({
    "before": before, "loaded": loaded, "resident": kept("VmRSS"), "peak": kept("VmHWM"),
    "packed": launched.model.packed_bytes, "kv": launched.cache.nbytes,
}))
"""


def measure(model: str, **engine: Any) -> dict[str, int]:
    """In bytes: `before` the load, `loaded`, `resident` after an answer, `peak`, `packed` weights, `kv`,
    and the `bound` that is aimed at.
    """
    words = [sys.executable, "-c", _CHILD, json.dumps({"model": model, **engine})]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "bound": int(SHARE * found["packed"]) + found["kv"] + SPARE_BYTES}


def main() -> int:
    """Measure one model; 1 where it keeps more than the aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--max-num-seqs", type=int, default=4)
    found = measure(**{key: value for key, value in vars(parser.parse_args()).items() if value is not None})
    for name, value in found.items():
        print(f"{name:<10}{value / 1e6:10.1f} MB")
    others = found["resident"] - found["packed"] - found["kv"]
    print(f"beside the weights and the KV cache: {others / 1e6:.1f} MB")
    return int(found["resident"] > found["bound"])


if __name__ == "__main__":
    sys.exit(main())
