"""transformers as a peer: run by any Python that has it, as a script that imports nothing of Octavo.

One argument, a JSON object: model (folder or id), dtype, random (weights from the configuration alone),
batch, input_len, output_len, threads. Says {"version"} when the model is there; then for each line of input
runs one batch and says {"prefill_s", "decode_s"}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Load, then answer lines until there are no more."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    import torch
    import transformers

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    model = _load(asked, torch, transformers)
    _say({"version": transformers.__version__})
    for _ in sys.stdin:
        _say(_run(asked, torch, model))


def _load(asked: dict[str, Any], torch: Any, transformers: Any) -> Any:
    dtype = getattr(torch, asked["dtype"])
    if asked["random"]:
        torch.set_default_dtype(dtype)
        config = transformers.AutoConfig.from_pretrained(asked["model"])
        model = transformers.AutoModelForCausalLM.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(asked["model"])
    return model.to(dtype).eval()


def _run(asked: dict[str, Any], torch: Any, model: Any) -> dict[str, float]:
    """One batch of random ids, greedy, with the model's own KV cache."""
    shape = (asked["batch"], asked["input_len"])
    ids = torch.randint(0, model.config.vocab_size, shape)
    with torch.inference_mode():
        begun = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        newest = out.logits[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(asked["output_len"] - 1):
            out = model(newest, past_key_values=out.past_key_values, use_cache=True)
            newest = out.logits[:, -1:].argmax(-1)
        done = time.perf_counter()
    return {"prefill_s": prefilled - begun, "decode_s": done - prefilled}


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
