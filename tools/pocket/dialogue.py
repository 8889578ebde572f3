"""Draws training conversations from the items: reworded questions, system prompts, several turns."""

from __future__ import annotations

import random
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
        self.characters = sorted(
            {c for block in blocks for row in block.rows for c in row[1] if ord(c) > 0x3000}
        )
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
        if lang == "zh":
            word = "".join(self.rng.choices(self.characters, k=self.rng.randint(2, 4)))
            return self.rng.choice(self.patterns[lang]).format("", word)
        word = "".join(self.rng.choices(SYLLABLES, k=self.rng.randint(2, 4)))
        word = self.rng.choice((word, word.capitalize(), "a " + word, "the " + word))
        return self.rng.choice(self.patterns[lang]).format(word)

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
        edits = self.edits_zh if item.lang == "zh" else self.edits_en
        return edits(question)

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
        return question.replace(phrase, self.rng.choice(group), 1)

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
        if len(words) > 4 and self.chance(0.08):
            small = [
                i
                for i, w in enumerate(words)
                if w.lower() in {"the", "a", "an", "do", "does", "is", "of", "to"}
            ]
            if small:
                del words[self.rng.choice(small)]
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
        if self.chance(0.06):
            particle = self.rng.choice("的了是吗呢会")
            text = text.replace(particle, "", 1) if len(text) > 5 else text
        if self.chance(0.08):
            text = text.rstrip("？。！?") + self.rng.choice(("呢？", "啊？", "呀？", "吗？", "！", "。"))
        return text or "？"

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability
