"""A peer in a process of its own: run by any Python that has it, as a script that imports nothing of Octavo.

One argument, a JSON object: engine, model, dtype, threads, vocab. Says {"version"} on its stdout when the
model is loaded; then for each line of input, {"prompt", "batch", "output"}, says {"tokens_per_s"}: of the
prompts when output is 0, else of decoding. Between lines no thread of it is awake.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Ids = list[list[int]]


def main() -> None:
    """Load, then answer lines until there are no more."""
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # The files beside this one are no modules of the engine's.
    asked: dict[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What the engine prints goes to stderr.
    engine = ENGINES[asked["engine"]](asked)
    _say(
        answers,
        {"version": importlib.metadata.version(asked["engine"].replace("openvino", "openvino-genai"))},
    )
    for line in sys.stdin:
        work = json.loads(line)
        _say(answers, {"tokens_per_s": rate(engine, asked["vocab"], work)})
        time.sleep(0.3)


def rate(engine: Engine, vocab: int, work: dict[str, int]) -> float:
    """Tokens per second. Timed prompts are new ones; those that are decoded after are always the same."""
    output = work["output"]
    ids = prompts(vocab, work["batch"], work["prompt"], 0 if output else random.randrange(1, 1 << 30))
    seconds = engine.seconds(ids, output)
    return work["batch"] * (output or work["prompt"]) / seconds


def prompts(vocab: int, count: int, length: int, seed: int) -> Ids:
    """Random token ids, the same for the same seed."""
    rng = random.Random(f"{seed} {count} {length}")
    return [[rng.randrange(vocab) for _ in range(length)] for _ in range(count)]


def _say(stream: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=stream, flush=True)


class Engine:
    """What an engine must do."""

    def seconds(self, ids: Ids, output: int) -> float:
        """Seconds to compute the prompts (output 0), or to decode `output` tokens after each of them."""
        raise NotImplementedError


class Transformers(Engine):
    """Eager, greedy, with the model's own KV cache."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(asked["threads"])
        kind = transformers.AutoModelForCausalLM
        self.model = kind.from_pretrained(asked["model"], dtype=getattr(torch, asked["dtype"])).eval()

    def seconds(self, ids: Ids, output: int) -> float:
        with self.torch.inference_mode():
            begun = time.perf_counter()
            out = self.model(self.torch.tensor(ids), use_cache=True, logits_to_keep=1)
            newest = out.logits[:, -1:].argmax(-1)
            if not output:
                return time.perf_counter() - begun
            begun = time.perf_counter()
            for _ in range(output):
                out = self.model(newest, past_key_values=out.past_key_values, use_cache=True)
                newest = out.logits[:, -1:].argmax(-1)
            return time.perf_counter() - begun


class Stepped(Engine):
    """An engine that is driven step by step and keeps computed prompts in a cache."""

    seen: Ids | None = None

    def add(self, ids: list[int], tokens: int) -> None:
        """Queue a prompt with `tokens` greedy tokens after it, whatever they are."""
        raise NotImplementedError

    def step(self) -> bool:
        """One step of all that is queued; False when nothing is left."""
        raise NotImplementedError

    def seconds(self, ids: Ids, output: int) -> float:
        if output and self.seen != ids:
            # Cached prompts are computed in one step, so that all decode together after it.
            self.seen = ids
            self._run(ids, 1)
        steps = self._run(ids, output + 1)
        return steps[-1] - steps[-1 - output] if output else steps[-1] - steps[0]

    def _run(self, ids: Ids, tokens: int) -> list[float]:
        """The times of the start and of the ends of the steps."""
        times = [time.perf_counter()]
        for one in ids:
            self.add(one, tokens)
        while self.step():
            times.append(time.perf_counter())
        return times


class Vllm(Stepped):
    """vLLM's engine in this process."""

    def __init__(self, asked: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.params = SamplingParams
        self.engine = LLM(
            model=asked["model"],
            dtype=asked["dtype"],
            skip_tokenizer_init=True,
            max_model_len=4096,
            max_num_seqs=64,
            enable_prefix_caching=True,
        ).llm_engine
        self.count = 0

    def add(self, ids: list[int], tokens: int) -> None:
        self.count += 1
        params = self.params(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.count), {"prompt_token_ids": ids}, params)

    def step(self) -> bool:
        if not self.engine.has_unfinished_requests():
            return False
        self.engine.step()
        return True


class OpenVino(Stepped):
    """GenAI's continuous batching pipeline."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import numpy
        import openvino
        import openvino_genai as genai

        self.numpy, self.tensor = numpy, openvino.Tensor
        self.config = genai.GenerationConfig
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = True
        threads = {"INFERENCE_NUM_THREADS": asked["threads"]}
        self.pipe = genai.ContinuousBatchingPipeline(asked["model"], scheduler, "CPU", threads)
        self.handles: list[Any] = []
        self.count = 0

    def add(self, ids: list[int], tokens: int) -> None:
        config = self.config()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        self.count += 1
        tokens = self.tensor(self.numpy.array([ids], self.numpy.int64))
        # A request whose handle is gone is dropped.
        self.handles.append(self.pipe.add_request(self.count, tokens, config))

    def step(self) -> bool:
        if not self.pipe.has_non_finished_requests():
            self.handles.clear()
            return False
        self.pipe.step()
        return True


ENGINES: dict[str, Callable[[dict[str, Any]], Engine]] = {
    "transformers": Transformers,
    "vllm": Vllm,
    "openvino": OpenVino,
}


if __name__ == "__main__":
    main()
