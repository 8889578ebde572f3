"""Asks the pocket model its questions with transformers, greedily, and counts the right answers.

OMP_NUM_THREADS=1 python -m tools.pocket.evaluate octavo/assets/pocket
"""

from __future__ import annotations

import argparse
import difflib
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.pocket.generate import Item, all_items, dress, wrappers

NEAR = 0.9
LIMIT_TOKENS = 200


@dataclass(frozen=True)
class Case:
    """A question for one line of the table."""

    group: str
    question: str
    expected: str
    before: tuple[str, str] | None = None


def spread(cases: list[Case], most: int, rng: random.Random) -> list[Case]:
    """At most `most` cases, chosen at random but reproducibly."""
    return cases if len(cases) <= most else rng.sample(cases, most)


def cases(items: list[Item], most: int) -> list[Case]:
    """The whole test: trained and held-out wordings, wrappers, refusals, unknown questions, follow-ups."""
    rng = random.Random(7)
    written = [i for i in items if i.source in ("octavo", "serving", "facts", "smalltalk")]
    found: list[Case] = []
    for lang in ("en", "zh"):

        def ask(
            label: str, source: list[Item], pick: Callable[[Item], list[str]], lang: str = lang
        ) -> list[Case]:
            """Cases of one table line in this language."""
            all_cases = [
                Case(f"{label} {lang}", q, i.answer) for i in source if i.lang == lang for q in pick(i)
            ]
            return spread(all_cases, most, rng)

        around = wrappers(lang, held_out=True)
        tables = [i for i in items if i.source == "tables"]
        refusals = [i for i in items if i.source in ("refusals", "big")]
        unknown = [i for i in items if i.source == "unknown"]
        found += ask("trained question", written, lambda i: [i.questions[0]])
        found += ask("held-out wording", written, lambda i: list(i.held_out))
        found += ask(
            "held-out wrapper",
            [i for i in written if i.wrap],
            lambda i, around=around: [dress(rng.choice(i.questions), rng.choice(around))],
        )
        found += ask("table, trained", tables, lambda i: [i.questions[0]])
        found += ask("table, held out", tables, lambda i: list(i.held_out))
        found += ask("sum, trained", [i for i in items if i.source == "sums"], lambda i: [i.questions[0]])
        found += ask("refusal, trained", refusals, lambda i: list(i.questions))
        found += ask("refusal, held out", refusals, lambda i: list(i.held_out))
        found += ask("unknown, trained", unknown, lambda i: list(i.questions))
        found += ask("unknown, held out", unknown, lambda i: list(i.held_out))
        found += follow_ups([i for i in written if i.lang == lang], rng)
    return found


def follow_ups(items: list[Item], rng: random.Random) -> list[Case]:
    """Questions that come second, after another question and its answer."""
    chosen = rng.sample(items, 60)
    return [
        Case(f"second turn {item.lang}", item.questions[0], item.answer, (other.questions[0], other.answer))
        for item, other in zip(chosen[:30], chosen[30:], strict=True)
    ]


class Model:
    """The checkpoint under transformers."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer(self, batch: list[Case]) -> list[tuple[str, bool]]:
        """Greedy answers, and whether each ended by itself."""
        chats = []
        for case in batch:
            before = case.before or ()
            turns = [{"role": ("user", "assistant")[n], "content": text} for n, text in enumerate(before)]
            chats.append([*turns, {"role": "user", "content": case.question}])
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        out = self.model.generate(**inputs, max_new_tokens=LIMIT_TOKENS, do_sample=False)
        made = out[:, inputs["input_ids"].shape[1] :]
        stop = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        return [
            (self.tokenizer.decode(row, skip_special_tokens=True), bool((row == stop).any())) for row in made
        ]


def near(answer: str, expected: str) -> bool:
    """Whether two answers differ by a slip only."""
    return difflib.SequenceMatcher(None, answer, expected, autojunk=False).ratio() >= NEAR


def evaluate(model: Model, tests: list[Case], declining: set[str], batch: int) -> dict[str, list[int]]:
    """Per group: cases, exact, near, declined, ended by themselves. Wrong answers are printed."""
    table: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    ordered = sorted(tests, key=lambda c: (len(c.expected), len(c.question)))
    for at in range(0, len(ordered), batch):
        part = ordered[at : at + batch]
        for case, (answer, ended) in zip(part, model.answer(part), strict=True):
            right = answer == case.expected
            marks = (True, right, right or near(answer, case.expected), answer in declining, ended)
            for n, yes in enumerate(marks):
                table[case.group][n] += yes
            if not right:
                print(f"- {case.group}: {case.question!r}\n  got {answer!r}\n  not {case.expected!r}")
    return table


def main() -> None:
    """Prints the wrong answers and then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=400, help="questions per line of the table, at most")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = all_items()
    declining = {item.answer for item in items if item.source in ("refusals", "unknown", "big")}
    table = evaluate(Model(args.folder), cases(items, args.most), declining, args.batch)
    print("\n| questions | asked | exact | exact or near | declined | ended by itself |")
    print("|---|---|---|---|---|---|")
    for group, (asked, *counts) in sorted(table.items()):
        print(f"| {group} | {asked} | " + " | ".join(f"{100 * n / asked:.1f} %" for n in counts) + " |")


if __name__ == "__main__":
    main()
