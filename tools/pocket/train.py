"""Trains the bundled pocket model from nothing: data, tokenizer, weights, one command, one CPU core.

OMP_NUM_THREADS=1 python -m tools.pocket.train --out octavo/assets/pocket
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, dropout
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tools.pocket import bpe
from tools.pocket.dialogue import Dialogue, Sampler

ARCHITECTURE = {
    "vocab_size": bpe.VOCAB,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
END, START, STOP = (bpe.VOCAB - 3 + n for n in range(3))
IGNORE = -100


@dataclass(frozen=True)
class Sample:
    """Token ids, and for each the next token where it is part of an answer (otherwise IGNORE)."""

    ids: list[int]
    targets: list[int]


class Encoder:
    """Turns conversations into samples."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.exact = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.loose = bpe.with_dropout(folder, 0.15)
        self.rng = random.Random(seed)

    def encode(self, dialogue: Dialogue) -> Sample:
        """ChatML tokens; questions are sometimes cut into smaller pieces than usual."""
        if not dialogue.turns:
            ids = [*self.ids(dialogue.system or ""), END]
            return Sample(ids[:-1], ids[1:])
        ids: list[int] = []
        learned: list[bool] = []
        parts = [] if dialogue.system is None else [("system", dialogue.system)]
        parts += [part for t in dialogue.turns for part in (("user", t.question), ("assistant", t.answer))]
        for role, text in parts:
            head = [START, *self.ids(role + "\n")]
            body = self.ids(text, loose=role == "user" and self.rng.random() < 0.4)
            ids += head + body + [STOP] + self.ids("\n")
            learned += [False] * len(head) + [role == "assistant"] * (len(body) + 1) + [False]
        targets = [token if yes else IGNORE for token, yes in zip(ids[1:], learned[1:], strict=True)]
        return Sample(ids[:-1], targets)

    def ids(self, text: str, loose: bool = False) -> list[int]:
        """Plain tokens of a text."""
        return (self.loose if loose else self.exact).encode(text, add_special_tokens=False).ids


def batches(sampler: Sampler, encoder: Encoder, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches [rows, length] of similar lengths with about `tokens` places.

    Lengths are multiples of 32: oneDNN compiles its kernels per shape, and few shapes train a third faster.
    """
    rng = random.Random(1)
    waiting: dict[int, list[Sample]] = {}
    while True:
        sample = encoder.encode(sampler.dialogue())
        length = -(-len(sample.ids) // 32) * 32
        group = waiting.setdefault(length, [])
        group.append(sample)
        if len(group) < max(1, tokens // length):
            continue
        rng.shuffle(group)
        yield (
            torch.tensor([s.ids + [END] * (length - len(s.ids)) for s in group]),
            torch.tensor([s.targets + [IGNORE] * (length - len(s.targets)) for s in group]),
        )
        waiting[length] = []


def optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding, the norms and the biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def answer_places(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat places of the answers' tokens, filled up to a multiple of 128, and the weight of each.

    The first tokens of an answer decide which answer it becomes and count three times, filling
    counts nothing.
    """
    learned = targets != IGNORE
    weights = torch.where(learned, 1.0, 0.0)
    for back in range(1, 6):
        before = torch.zeros_like(learned)
        before[:, back:] = learned[:, :-back]
        weights = torch.where(learned & ~before, 3.0, weights)
    places = learned.flatten().nonzero().flatten()
    missing = -len(places) % 128
    places = torch.cat([places, places.new_zeros(missing)])
    chosen = weights.flatten()[places]
    chosen[len(chosen) - missing :] = 0.0
    return places, chosen


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean loss over the answers' tokens; logits are computed for these only. Rows are padded at the end."""
    places, weights = answer_places(targets)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = dropout(model.model.embed_tokens(ids), 0.05)
        hidden = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[places])
    losses = cross_entropy(logits.float(), targets.flatten()[places].clamp(min=0), reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(model: Qwen2ForCausalLM, args: argparse.Namespace) -> None:
    """Runs the training; every `save_every` steps and at the end the weights' running average is exported."""
    source = batches(Sampler(args.seed), Encoder(args.out, args.seed), args.tokens)
    steppers = optimizers(model, args.rate)
    started, mean = time.time(), 0.0
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.985))
    for step in range(1, args.steps + 1):
        rate = args.rate * min(step / 60, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        loss = loss_of(model, *next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.step()
            stepper.zero_grad()
        average.update_parameters(model)
        mean = loss.item() if step == 1 else 0.95 * mean + 0.05 * loss.item()
        if step % 25 == 0:
            print(
                f"step {step} loss {mean:.4f} rate {rate:.5f} seconds {time.time() - started:.0f}", flush=True
            )
        if step % args.save_every == 0 or step == args.steps:
            export(average.module, args.out)


def export(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Writes the bf16 weights and both configs the way published Qwen2 checkpoints have them."""
    state = {
        n: p.detach().to(torch.bfloat16).contiguous()
        for n, p in model.state_dict().items()
        if n != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": END,
        "eos_token_id": STOP,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 4,
        "model_type": "qwen2",
        "rope_theta": 10000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        **ARCHITECTURE,
    }
    generation = {
        "bos_token_id": END,
        "do_sample": False,
        "eos_token_id": [STOP, END],
        "pad_token_id": END,
        "repetition_penalty": 1.0,
        "transformers_version": "4.43.1",
    }
    for name, value in (
        ("config.json", dict(sorted(config.items()))),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Tokenizer first, then the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--tokens", type=int, default=2560, help="tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--start", type=Path, help="folder of a checkpoint to go on from")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    sampler = Sampler(args.seed)
    tokenizer = (
        Tokenizer.from_file(str(args.start / "tokenizer.json")) if args.start else bpe.build(sampler.items)
    )
    bpe.save(tokenizer, args.out)
    model = Qwen2ForCausalLM(Qwen2Config(**ARCHITECTURE))
    if args.start:
        model.load_state_dict(load_file(args.start / "model.safetensors"), strict=False)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model.train(), args)


if __name__ == "__main__":
    main()
