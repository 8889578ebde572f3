"""The command ``octavo``: picks the subcommand, and turns expected errors into one sentence and an exit code.

Nothing heavy is imported before a subcommand needs it, so that help answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from octavo.cli.usage import UsageError, usage_errors
from octavo.errors import OctavoError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("octavo.cli.serve", "Serve a model over HTTP (OpenAI's API and more)."),
    "chat": ("octavo.cli.talk", "Talk to a model, served or in this process."),
    "complete": ("octavo.cli.talk", "The same with raw text instead of chat messages."),
    "run": ("octavo.cli.talk", "chat under the name that it has in Ollama: octavo run MODEL [QUESTION]."),
    "run-batch": ("octavo.cli.batch", "Answer the requests of a JSONL file (OpenAI's batch format)."),
    "bench": ("octavo.cli.bench", "Measure throughput, latency or a server."),
    "convert": ("octavo.cli.convert", "Write a checkpoint as a GGUF file, or as a Hugging Face folder."),
    "quantize": ("octavo.cli.convert", "Write a checkpoint with its matrices rounded to 4 or 8 bits."),
    "inspect": ("octavo.cli.inspect", "Say what a model is, what it needs and whether it runs here."),
    "top": ("octavo.cli.top", "Watch a running server: requests, tokens, cache, latencies."),
    "collect-env": ("octavo.cli.collect", "Print what a bug report needs."),
}
"""Subcommand to (module with ``main(command, words) -> int``, one line of help)."""

_CACHE = "Downloads lie in the hub's own cache, ~/.cache/huggingface/hub unless HF_HOME says otherwise."
_ELSEWHERE = {
    "pull": "serve, chat and run download a model that is not here yet.",
    "download": "serve, chat and run download a model that is not here yet.",
    "show": "octavo inspect MODEL says what a model is.",
    "ps": "octavo top shows what a server is at.",
    "stop": "Ctrl-C, or SIGTERM, ends a server.",
    "list": _CACHE,
    "ls": _CACHE,
    "rm": _CACHE,
    "launch": "There are no frontends apart from engines: octavo serve is both.",
    "preload": "A start from packed weights takes about a second; they are kept by themselves.",
    "snapshot": "A start from packed weights takes about a second; they are kept by themselves.",
    "download-kernels": "All kernels are in the package.",
}
"""Commands of Ollama, vLLM and others to what does that here."""


def run(words: Sequence[str]) -> int:
    """Run one command line and return the exit code: 0, 1 for failures, 2 for usage errors, 130 for Ctrl-C.

    An expected error is one sentence on stderr; ``--debug`` shows its traceback.
    """
    debug = "--debug" in words
    try:
        return _dispatch(list(words))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left; without a place to go, Python's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OctavoError, OSError, ImportError) as error:
        if debug:
            raise
        sys.stderr.write(f"octavo: {_sentence(error)}\n")
        return USAGE if isinstance(error, UsageError) else FAILED
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"octavo: internal error: {_sentence(error)} (--debug shows where)\n")
        return FAILED


def _dispatch(words: list[str]) -> int:
    command = words[0] if words else "help"
    if command in ("-V", "--version", "version"):
        from octavo import __version__

        print(f"octavo {__version__}")
        return OK
    if command in ("help", "-h") or command.partition("=")[0] == "--help":
        return _help(words)
    if command in COMMANDS:
        module = importlib.import_module(COMMANDS[command][0])
        code: int = module.main(command, words[1:])
        return code
    if command.startswith("-") or "/" in command or command.endswith(".gguf"):
        raise UsageError(
            f"{command!r} is no command.", hint=f"One comes first: octavo serve {' '.join(words)}"
        )
    from octavo.config.flags import nearest

    hint = _ELSEWHERE.get(command) or nearest(command, COMMANDS).replace("_", "-") or "See octavo --help."
    raise UsageError(f"Unknown command {command!r}.", hint=hint)


def _help(words: list[str]) -> int:
    from octavo.cli.help import command_help, overview

    asked = words[1] if words and words[0] == "help" and len(words) > 1 else ""
    topic = words[0].partition("=")[2] if words else ""
    if not asked and not topic:
        print(overview(COMMANDS))
        return OK
    command, topic = (asked, "") if asked in COMMANDS else ("serve", asked or topic)
    with usage_errors():
        print(command_help(command, topic, COMMANDS[command][1]))
    return OK


def _sentence(error: BaseException) -> str:
    """An error's message on one line, with its kind when it has none."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}."
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "octavo":
        text += f". Install it with: {sys.executable} -m pip install {error.name.partition('.')[0]}"
    return text or type(error).__name__
