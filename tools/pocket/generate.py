"""Reads the question files in data/ and makes the items the pocket model learns, with a held-out part.

The files share one form: `[name]` opens a block (`!` after the name: no wrappers around its questions),
then `en: question | question || held-out question`, `en> answer` (several lines are joined with a line
break), the same for `zh`, and optional rows (`- a | b`, held-out rows `~ a | b`) for the places {0}, {1}
in questions and answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

DATA = Path(__file__).parent / "data"
LANGUAGES = ("en", "zh")
# How often an item of each file is drawn, relative to a hand-written question.
WEIGHTS = {
    "octavo": 1.0,
    "serving": 1.0,
    "facts": 1.0,
    "smalltalk": 1.0,
    "tables": 0.4,
    "refusals": 2.5,
    "sums": 0.4,
    "big": 4.0,
    "unknown": 150.0,
}


@dataclass
class Block:
    """One `[name]` section of a data file, as written."""

    name: str
    wrap: bool
    asked: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    held_rows: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """One answer, the wordings that ask for it in training and those kept for the evaluation."""

    name: str
    source: str
    lang: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    wrap: bool
    weight: float


def cells(text: str) -> list[str]:
    """Splits `a | b | c` and drops empty cells."""
    return [cell.strip() for cell in text.split("|") if cell.strip()]


def read_blocks(path: Path) -> list[Block]:
    """Parses one data file."""
    blocks: list[Block] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name, _, mark = line[1:-1].partition(" ")
            blocks.append(Block(name, wrap=mark != "!"))
            continue
        add_line(blocks[-1], line)
    return blocks


def add_line(block: Block, line: str) -> None:
    """Adds one line (questions, answer or row) to its block."""
    if line[0] in "-~":
        rows = block.rows if line[0] == "-" else block.held_rows
        rows.append(cells(line[1:]))
        return
    lang, kind, text = line[:2], line[2], line[3:].strip()
    if lang not in LANGUAGES or kind not in ":>":
        raise ValueError(f"cannot read this line of block {block.name}: {line}")
    if kind == ">":
        block.answers.setdefault(lang, []).append(text)
        return
    asked, _, held = text.partition("||")
    block.asked[lang] = cells(asked)
    block.held[lang] = cells(held)


def expand(patterns: list[str], rows: list[list[str]]) -> list[str]:
    """Fills every pattern with every row; each result once, in order."""
    return list(dict.fromkeys(p.format(*row) for p in patterns for row in rows or [[]]))


def make_item(block: Block, source: str, lang: str, rows: list[list[str]], name: str) -> Item:
    """One item from a block and the rows that share its answer."""
    fill = "{" in "".join(block.asked[lang] + block.held[lang]) and bool(rows)
    asked = expand(block.asked[lang], rows) if fill else block.asked[lang]
    held = expand(block.held[lang], rows) if fill else block.held[lang]
    asked, held = share_patterns(name + lang, asked, held)
    answer = "\n".join(block.answers[lang])
    if source == "tables":
        answer = answer.format(*rows[0])
    kept = tuple(q for q in held if q not in asked)
    return Item(name, source, lang, answer, tuple(asked), kept, block.wrap, WEIGHTS[source])


def share_patterns(name: str, asked: list[str], held: list[str]) -> tuple[list[str], list[str]]:
    """Moves a held-out wording to the trained ones for half of the items.

    Otherwise forms such as "Explain ..." would be seen in training with unknown topics only, and be refused.
    """
    if held and crc32(name.encode()) % 2:
        return [*asked, held[0]], held[1:]
    return asked, held


def written_items(source: str) -> Iterator[Item]:
    """Items of a file in which every block has its own answer; in tables.txt every row has."""
    for block in read_blocks(DATA / f"{source}.txt"):
        for lang in LANGUAGES:
            if source != "tables":
                yield make_item(block, source, lang, block.rows, block.name)
                continue
            for row in block.rows:
                yield make_item(block, source, lang, [row], f"{block.name}-{row[0]}")


def shared_answers() -> dict[str, str]:
    """The answers that many questions share: `en`, `zh` (unknown), `big en`, `big zh` (sums too large)."""
    lines = (DATA / "unknown_answer.txt").read_text(encoding="utf-8").splitlines()
    return {key.strip(): text.strip() for key, _, text in (line.partition(">") for line in lines)}


def unknown_items() -> Iterator[Item]:
    """One item per block and language: trained rows with trained patterns, everything else held out."""
    answers = shared_answers()
    blocks = read_blocks(DATA / "unknown.txt")
    for block in blocks:
        for lang in LANGUAGES:
            known, other = share_patterns(block.name + lang, block.asked[lang], block.held[lang])
            asked = expand(known, block.rows)
            held = expand(other, block.rows)[::7] + expand([*known, *other], block.held_rows)
            kept = tuple(dict.fromkeys(q for q in held if q not in asked))
            weight = WEIGHTS["unknown"] / (2 * len(blocks))
            yield Item(block.name, "unknown", lang, answers[lang], tuple(asked), kept, block.wrap, weight)


SUM_PATTERNS = {
    "en": (
        (
            "What is {a} {word} {b}?",
            "How much is {a} {word} {b}?",
            "{a} {sign} {b} = ?",
            "{a}{sign}{b}",
            "What is {a} {sign} {b}?",
            "Calculate {a} {sign} {b}",
        ),
        ("Tell me what {a} {word} {b} is.",),
    ),
    "zh": (
        ("{a}{word}{b}等于多少？", "{a} {sign} {b} 等于几？", "{a}{word}{b}是多少？", "计算 {a} {sign} {b}"),
        ("请算一下{a}{word}{b}。",),
    ),
}
SIGN_WORDS = {
    "+": {"en": "plus", "zh": "加"},
    "-": {"en": "minus", "zh": "减"},
    "×": {"en": "times", "zh": "乘以"},
}


def small_sums() -> Iterator[tuple[int, str, int, int]]:
    """The sums that the model learns by heart: (a, sign, b, result)."""
    for a in range(11):
        for b in range(11):
            yield a, "+", b, a + b
            if a >= b:
                yield a, "-", b, a - b
            if a and b:
                yield a, "×", b, a * b


def sum_items() -> Iterator[Item]:
    """Small sums, each an item, and sums that are too big with the answer that says so."""
    for lang in LANGUAGES:
        asked, held = SUM_PATTERNS[lang]
        for a, sign, b, result in small_sums():
            words = {"a": a, "b": b, "sign": sign, "word": SIGN_WORDS[sign][lang]}
            yield Item(
                f"sum {a}{sign}{b}",
                "sums",
                lang,
                f"{a} {sign} {b} = {result}",
                tuple(p.format(**words) for p in asked),
                tuple(p.format(**words) for p in held),
                True,
                WEIGHTS["sums"],
            )
    answers = shared_answers()
    for lang in LANGUAGES:
        asked, held = SUM_PATTERNS[lang]
        fills = [
            {"a": 11 + 37 * i % 989, "b": 12 + 53 * i % 877, "sign": sign, "word": SIGN_WORDS[sign][lang]}
            for i in range(60)
            for sign in SIGN_WORDS
        ]
        yield Item(
            "big-sum",
            "big",
            lang,
            answers[f"big {lang}"],
            tuple(dict.fromkeys(p.format(**f) for f in fills for p in asked)),
            tuple(dict.fromkeys(p.format(**f) for f in fills[::9] for p in held)),
            True,
            WEIGHTS["big"],
        )


def all_items() -> list[Item]:
    """Every item, in a fixed order. A wording that any item trains on is never held out."""
    items = [
        i for s in ("octavo", "serving", "smalltalk", "facts", "tables", "refusals") for i in written_items(s)
    ]
    items += [*unknown_items(), *sum_items()]
    trained = {q for item in items for q in item.questions}
    return [
        Item(
            i.name,
            i.source,
            i.lang,
            i.answer,
            i.questions,
            tuple(q for q in i.held_out if q not in trained),
            i.wrap,
            i.weight,
        )
        for i in items
    ]


def wrappers(lang: str, held_out: bool = False) -> list[str]:
    """The sentences around a question, for training or held out."""
    found: dict[str, list[str]] = {"-": [], "~": []}
    current = ""
    for line in (DATA / "wrappers.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = line[1:-1]
        elif line[:1] in found and current == lang:
            found[line[0]].append(line[2:])
    return found["~" if held_out else "-"]


def synonyms(lang: str) -> list[list[str]]:
    """Groups of phrases that may stand for each other in a question."""
    lines = (DATA / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    rows = [cells(line) for line in lines if not line.startswith("#")]
    return [row[1:] for row in rows if row[0] == lang]


def system_prompts() -> list[str]:
    """System prompts that training shows besides the template's own."""
    return [line for line in (DATA / "systems.txt").read_text(encoding="utf-8").splitlines() if line]


def dress(question: str, wrapper: str) -> str:
    """Puts a wrapper around a question: {q} as written, {l} first letter small, {b} also without its mark."""
    small = (
        question
        if question[:2] in ("I ", "KV") or question[:2].isupper()
        else question[:1].lower() + question[1:]
    )
    return wrapper.format(q=question, l=small, b=small.rstrip("?？.。"))


def main() -> None:
    """Writes the items as JSON lines, to look at them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("/tmp/pocket.jsonl"))
    out = parser.parse_args().out
    items = all_items()
    out.write_text("".join(json.dumps(vars(i), ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    print(
        f"{len(items)} items, {sum(len(i.questions) for i in items)} wordings to train, "
        f"{sum(len(i.held_out) for i in items)} held out -> {out}"
    )


if __name__ == "__main__":
    main()
