"""Draws training conversations from the items: reworded questions, system prompts, several turns."""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass

from tools.pocket.generate import DATA as DATA_FOLDER
from tools.pocket.generate import Item, all_items, dress, read_blocks, synonyms, system_prompts, wrappers

DEFAULT_SYSTEM = "You are Octavo Pocket, a small helpful assistant."
SYLLABLES = (
    "ba",
    "cor",
    "den",
    "el",
    "fi",
    "gra",
    "hu",
    "in",
    "jo",
    "kel",
    "lo",
    "mer",
    "na",
    "or",
    "pi",
    "qua",
    "ros",
    "sti",
    "tur",
    "ul",
    "ven",
    "wo",
    "xi",
    "yl",
    "za",
    "tion",
    "ism",
    "ment",
    "er",
    "ic",
)
SMALL_WORDS = frozenset(
    [
        "the",
        "a",
        "an",
        "is",
        "are",
        "do",
        "does",
        "of",
        "to",
        "in",
        "for",
        "please",
        "me",
        "can",
        "you",
        "i",
        "it",
        "with",
        "on",
    ]
)


@dataclass(frozen=True)
class Turn:
    """A question as typed and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation; without turns, `system` is a plain text to continue."""

    system: str | None
    turns: tuple[Turn, ...]


def plain(question: str) -> str:
    """A question without capitals and marks at its end, to compare wordings."""
    return question.lower().strip(" ?？.。!！")


class Sampler:
    """An endless, reproducible source of conversations."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.items = all_items()
        self.weights = [item.weight for item in self.items]
        self.wrappers = {lang: wrappers(lang) for lang in ("en", "zh")}
        self.systems = system_prompts()
        self.synonyms = {lang: synonyms(lang) for lang in ("en", "zh")}
        self.held_out = {plain(q) for item in self.items for q in item.held_out}
        blocks = read_blocks(DATA_FOLDER / "unknown.txt")
        text = " ".join(" ".join((*item.questions, item.answer)) for item in self.items)
        self.characters = sorted({c for c in text if "\u4e00" <= c <= "\u9fff"})
        words = (word.strip('?.,:;!"') for word in text.split())
        self.words = sorted({word for word in words if len(word) > 2 and word.isascii() and word.isalpha()})
        self.patterns = {lang: [p for b in blocks[:3] for p in b.asked[lang]] for lang in ("en", "zh")}

    def dialogue(self) -> Dialogue:
        """One conversation of one to eight turns, or now and then a plain text."""
        if self.rng.random() < 0.04:
            return Dialogue(self.draw().answer, ())
        count = self.rng.choices((1, 2, 3, self.rng.randint(4, 8)), (60, 23, 10, 7))[0]
        return Dialogue(self.system(), tuple(self.turn() for _ in range(count)))

    def system(self) -> str | None:
        """The template's own system prompt mostly, another one or none at times."""
        chance = self.rng.random()
        if chance < 0.62:
            return DEFAULT_SYSTEM
        return None if chance < 0.72 else self.rng.choice(self.systems)

    def draw(self) -> Item:
        """One item by weight."""
        return self.rng.choices(self.items, self.weights)[0]

    def turn(self) -> Turn:
        """One question, reworded, and its answer."""
        item = self.draw()
        question = self.rng.choice(item.questions)
        if item.source == "unknown" and self.rng.random() < 0.3:
            question = self.invented(item.lang)
        return Turn(self.reword(question, item), item.answer)

    def invented(self, lang: str) -> str:
        """A question about a word that does not exist, so that strange words lead to the refusal."""
        pattern = self.rng.choice(self.patterns[lang])
        if lang == "zh":
            return pattern.format("", "".join(self.rng.choices(self.characters, k=self.rng.randint(2, 4))))
        word = "".join(self.rng.choices(SYLLABLES, k=self.rng.randint(2, 4)))
        if self.chance(0.5):
            first, second = self.rng.choices(self.words, k=2)
            word = first[: self.rng.randint(2, 5)] + second[-self.rng.randint(2, 5) :]
        return pattern.format(self.rng.choice((word, word.capitalize(), "a " + word, "the " + word)))

    def reword(self, question: str, item: Item) -> str:
        """A question in other words; one that is held out for the evaluation is never made."""
        other = self.varied(question, item)
        return question if plain(other) in self.held_out else other

    def varied(self, question: str, item: Item) -> str:
        """Exchanges phrases, dresses the question in a wrapper and types it the way people do."""
        if self.chance(0.35):
            question = self.exchange(question, item.lang)
        if item.wrap and self.rng.random() < 0.5:
            question = dress(question, self.rng.choice(self.wrappers[item.lang]))
        if item.source in ("sums", "big"):
            return question
        if item.wrap and self.chance(0.12):
            question = self.noise(question, item.lang)
        edits = self.edits_zh if item.lang == "zh" else self.edits_en
        return edits(question)

    def noise(self, question: str, lang: str) -> str:
        """Adds a few words that do not matter: people say more than they ask."""
        if lang == "zh":
            extra = "".join(self.rng.choices(self.characters, k=self.rng.randint(2, 5)))
            return self.rng.choice((f"{extra}，{question}", f"{question}{extra}。"))
        extra = " ".join(self.rng.choices(self.words, k=self.rng.randint(1, 4)))
        return self.rng.choice((f"{extra.capitalize()}, {question}", f"{question} {extra.capitalize()}."))

    def exchange(self, question: str, lang: str) -> str:
        """Puts another phrase of the same meaning in the place of one that occurs."""
        found = []
        for group in self.synonyms[lang]:
            matches = [phrase for phrase in group if phrase in question]
            if matches:
                found.append((group, max(matches, key=len)))
        if not found:
            return question
        group, phrase = self.rng.choice(found)
        edge = r"\b" if lang == "en" else ""
        other = self.rng.choice(group)
        return re.sub(edge + re.escape(phrase) + edge, lambda _: other, question, count=1)

    def edits_en(self, text: str) -> str:
        """Lost capitals and marks, a word left out, a slip of the keyboard."""
        if self.chance(0.15):
            text = text.lower()
        elif self.chance(0.03):
            text = text.upper()
        if self.chance(0.2):
            text = text.rstrip("?.! ")
        elif self.chance(0.05):
            text = text.rstrip("?.! ") + self.rng.choice((" ?", "??", "!", ".", "..."))
        words = text.split(" ")
        if len(words) > 3 and self.chance(0.06):
            words = [word for word in words if word.lower() not in SMALL_WORDS] or words
        elif len(words) > 4 and self.chance(0.08):
            small = [at for at, word in enumerate(words) if word.lower() in SMALL_WORDS]
            if small:
                del words[self.rng.choice(small)]
        if len(words) > 3 and self.chance(0.05):
            at = self.rng.randrange(len(words) - 1)
            words[at : at + 2] = words[at + 1], words[at]
        if self.chance(0.06):
            at = self.rng.randrange(len(words))
            words[at] = self.slip(words[at])
        return " ".join(words)

    def slip(self, word: str) -> str:
        """Swaps, doubles or drops one letter of a longer word."""
        if len(word) < 5 or not word.isalpha():
            return word
        at = self.rng.randrange(1, len(word) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        other = self.rng.choice(string.ascii_lowercase)
        return self.rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + other + word[at + 1 :]))

    def edits_zh(self, text: str) -> str:
        """Lost marks, a particle left out or added, half-width marks."""
        if self.chance(0.25):
            text = text.rstrip("？。！?")
        elif self.chance(0.1):
            text = text.replace("？", "?").replace("，", ",")
        if len(text) > 5 and self.chance(0.06):
            text = text.replace(self.rng.choice("的了是吗呢会"), "", 1)
        if len(text) > 6 and self.chance(0.08):
            at = self.rng.randrange(len(text) - 1)
            swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
            text = self.rng.choice((swapped, text[:at] + text[at + 1 :]))
        if self.chance(0.08):
            text = text.rstrip("？。！?") + self.rng.choice(("呢？", "啊？", "呀？", "吗？", "！", "。"))
        return text or "？"

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability
