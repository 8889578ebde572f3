"""``octavo chat`` and ``octavo complete``: with a running server, or with an engine in this process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from octavo.cli.common import read_words, wants_help
from octavo.cli.talk_flags import DEFAULT_URL, TALK
from octavo.config.flag_rules import Settings
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.llm import LLM

_COMPLETION_TOKENS = 256
"""A raw text has no natural end, so `octavo complete` stops here unless told otherwise."""
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k")
_LEAVE = ("/bye", "/exit", "/quit")
_QUOTES = '"""'
_HELP = f"""/clear     forget what was said
/bye       leave (or Ctrl-D)
{_QUOTES}        begins and ends a text of several lines
Ctrl-C     stops an answer
"""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Thought(str):
    """A piece of what a model thinks before it answers."""


class Model(Protocol):
    """Whoever answers, in pieces; Thoughts are told from the answer. Closing an iterator early aborts it."""

    def chat(self, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[str]:
        """The pieces of the answer to a conversation."""

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Iterator[str]:
        """The pieces of the continuation of a text."""


class Local:
    """The engine in this process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def chat(self, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> Iterator[str]:
        """See Model."""
        yield from _texts(self._llm.chat(messages, self._params(sampling), stream=True))

    def complete(self, prompt: str, sampling: dict[str, Any]) -> Iterator[str]:
        """See Model."""
        yield from _texts(self._llm.generate(prompt, self._params(sampling), stream=True))

    def _params(self, sampling: dict[str, Any]) -> Any:
        """The model's defaults under what was asked for; without a limit the rest of the context."""
        from octavo.types.sampling import SamplingParams

        defaults = self._llm.get_default_sampling_params()
        fields = {name: getattr(defaults, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        fields["repetition_penalty"] = defaults.repetition_penalty
        return SamplingParams(**{**fields, "max_tokens": None, **sampling})


def _texts(outputs: Iterator[Any]) -> Iterator[str]:
    with contextlib.closing(outputs):  # type: ignore[type-var]
        for output in outputs:
            yield output.outputs[0].text


def main(command: str, words: Sequence[str]) -> int:
    """Run ``octavo chat`` (also called ``run``) or ``octavo complete``."""
    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    settings = read_words(words, TALK, positionals=2)
    chat = command != "complete"
    sampling = {name: settings.cli[name] for name in _SAMPLING if name in settings.cli}
    if command == "complete":
        sampling.setdefault("max_tokens", _COMPLETION_TOKENS)
    talk = Talk(chat, sampling, settings.cli.get("system_prompt"))
    model = _model(settings, chat)
    quick = settings.cli.get("quick", settings.cli.get("text"))
    if quick is not None:
        talk.answer(model, quick)
        return 0
    return talk.converse(model)


def _model(settings: Settings, chat: bool) -> Model:
    url, wanted = settings.cli.get("url"), settings.engine.get("model")
    if url is not None or wanted is None:
        from octavo.cli.remote import Remote, running_here

        key = settings.cli.get("api_key") or os.environ.get("OPENAI_API_KEY" if url else "VLLM_API_KEY")
        if url is None and (url := running_here(DEFAULT_URL)) is not None:
            sys.stderr.write(f"Using the server at {url} (name a model to run one here).\n")
        if url is not None:
            return Remote(url, api_key=key, model=settings.cli.get("model_name") or wanted)
    from octavo import log

    log.setup(os.environ.get("OCTAVO_LOGGING_LEVEL") or os.environ.get("VLLM_LOGGING_LEVEL") or "WARNING")
    from octavo.config.start import engine_config
    from octavo.llm import LLM

    settings.engine.setdefault("disable_log_stats", True)
    llm = LLM.from_config(engine_config(settings))
    if chat and llm.get_tokenizer().chat_template is None:
        raise ConfigError(
            f"{wanted} has no chat template (it may be a base model).",
            hint="Use octavo complete, or give one with --chat-template FILE.",
        )
    return Local(llm)


class Talk:
    """One conversation, or one raw prompt after another, printed as it comes."""

    def __init__(self, chat: bool, sampling: dict[str, Any], system_prompt: str | None) -> None:
        self._chat = chat
        self._sampling = sampling
        self._prefix = "" if chat or system_prompt is None else system_prompt
        self.messages: list[dict[str, Any]] = []
        if chat and system_prompt is not None:
            self.messages.append({"role": "system", "content": system_prompt})

    def answer(self, model: Model, text: str) -> str:
        """Print the answer to `text` as it comes and return it; Ctrl-C ends the answer and raises."""
        if self._chat:
            self.messages.append({"role": "user", "content": text})
            pieces = model.chat(self.messages, self._sampling)
        else:
            pieces = model.complete(self._prefix + text, self._sampling)
        said: list[str] = []
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]
                for piece in _without_thoughts(pieces):
                    said.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            if said:
                sys.stdout.write("\n")
                sys.stdout.flush()
            if self._chat:
                self.messages.append({"role": "assistant", "content": "".join(said)})
        return "".join(said)

    def converse(self, model: Model) -> int:
        """Read lines until the end of input. Ctrl-C ends an answer; at the prompt (or twice) it leaves."""
        prompt = "> " if sys.stdin.isatty() else ""
        if prompt:
            what = "Message" if self._chat else "Text"
            sys.stderr.write(
                f"{what}, then Enter. Ctrl-C stops an answer, /bye leaves, /? says what else there is.\n"
            )
        with _history(bool(prompt)):
            while True:
                try:
                    text = _read(prompt)
                except (EOFError, KeyboardInterrupt):
                    if prompt:
                        sys.stderr.write("\n")
                    return 0
                word = text.strip() if prompt else ""
                if word in _LEAVE:
                    return 0
                if word == "/clear":
                    self.messages = [m for m in self.messages if m["role"] == "system"]
                    continue
                if word in ("/?", "/help"):
                    sys.stderr.write(_HELP)
                    continue
                if not text.strip():
                    continue
                try:
                    self.answer(model, text)
                except KeyboardInterrupt:
                    continue
                except OctavoError as error:
                    if not prompt:
                        raise
                    sys.stderr.write(f"octavo: {error}\n")
                    self._forget_last()

    def _forget_last(self) -> None:
        """Take back a message that could not be answered, so that the next one can."""
        while self.messages and self.messages[-1]["role"] != "system":
            last = self.messages.pop()
            if last["role"] == "user":
                return


def _read(prompt: str) -> str:
    """The next text: a line or, at a terminal, several between triple quotes. Raises EOFError at the end."""
    text = input(prompt)
    if not prompt or not text.lstrip().startswith(_QUOTES):
        return text
    text = text.lstrip().removeprefix(_QUOTES)
    while not text.rstrip().endswith(_QUOTES):
        text += "\n" + input("")
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


def _without_thoughts(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of the answer; those of the thoughts before it go to stderr, dimmed at a terminal."""
    dim, plain = (_DIM, _PLAIN) if sys.stderr.isatty() else ("", "")
    thinking = False
    try:
        for piece in pieces:
            if isinstance(piece, Thought):
                sys.stderr.write(dim + piece + plain)
                sys.stderr.flush()
                thinking = True
            elif piece:
                if thinking:
                    sys.stderr.write("\n\n")
                    sys.stderr.flush()
                thinking = False
                yield piece
    finally:
        if thinking:
            sys.stderr.write("\n")


@contextlib.contextmanager
def _history(interactive: bool) -> Iterator[None]:
    """Line editing, with the lines of earlier sessions; the file is the user's own (mode 0600)."""
    if not interactive:
        yield
        return
    try:
        import readline
    except ImportError:  # a Python without readline still reads lines
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "octavo"
    path = folder / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
