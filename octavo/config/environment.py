"""Environment variables: Octavo's names beside vLLM's, in one table, read once into one typed value.

Each row of `VARIABLES` says which field it fills, under which names (the first that is set wins; an empty
value is an unset one), how its text is read and what it means. Variables that are not in the table are left
alone, vLLM's other hundreds included: a script that sets them works.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError
from octavo.log import logger

log = logger(__name__)

GIB = 1 << 30
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MAX_CPU = 1 << 16
_MAX_THREADS = 1024


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment asks for; None where it says nothing and somebody else decides."""

    kv_cache_space_bytes: int | None = None
    threads_bind: str = "auto"
    threads: int | None = None
    decode_threads: int | None = None
    prefill_threads: int | None = None
    reserved_cpus: int = 0
    api_key: str | None = None
    use_modelscope: bool = False
    logging_level: str = "INFO"
    configure_logging: bool = True
    logging_config_path: str | None = None
    logging_prefix: str = ""
    logging_stream: str = ""
    log_stats_interval_s: float = 10.0
    cache_root: str | None = None
    cache_bytes: int = 32 << 30
    max_n_sequences: int = 16384
    max_completion_prompts: int = 1024
    max_stop_strings: int = 4
    max_bad_words: int = 128
    regex_timeout_s: float = 5.0
    template_timeout_s: float = 1.0
    keep_alive_s: int = 75
    ready_timeout_s: int = 0
    allow_long_max_model_len: bool = False
    allow_runtime_lora: bool = False
    dev_mode: bool = False
    max_stored_responses: int = 1000


@dataclass(frozen=True)
class Variable:
    """One row: the field of Environment, the names, the reader of its text, what it means."""

    field: str
    names: tuple[str, ...]
    read: Callable[[str], Any]
    meaning: str


def parse_size(text: str, unit: int = 1) -> int:
    """Bytes from "512MB", "2GiB", "40 g" or a bare number of `unit` bytes ("0.5").

    K, M, G and T are powers of 1024 with and without B or iB, as memory is sold and shown. Raises
    ConfigError for anything else: negative numbers, NaN, an unknown letter, more than 2**63 bytes.
    """
    found = re.fullmatch(
        r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})\s*(?:([kmgt])(?:i?b)?|(b)|)", text.strip().lower()
    )
    if not found:
        raise ConfigError(f"{text[:80]!r} is not a size.", hint="Write 512MB, 2GiB, or a plain number.")
    number, letter, plain = found.groups()
    factor = 1024 ** _POWERS[letter] if letter else 1 if plain else unit
    size = (float(number) if "." in number else int(number)) * factor
    if size >= 1 << 63:
        raise ConfigError(f"{text[:80]!r} is more than any machine holds.", hint="Write 512MB or 2GiB.")
    return int(size)


def show_bytes(size: int) -> str:
    """A size for people: "1.5 GiB", "512 MiB"."""
    for name, factor in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"


def _space(text: str) -> int | None:
    """vLLM's KV cache space: a bare number counts GiB, and 0 means "decide yourself"."""
    return parse_size(text, unit=GIB) or None


def _flag(text: str) -> bool:
    word = text.lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", "none"):
        return False
    raise ConfigError(f"{text[:80]!r} is neither true nor false.", hint="Write 1 or 0.")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{text[:80]!r} is not a whole number from {low} to {high}.")
        return int(text)

    return read


def _omp_threads(text: str) -> int:
    """OpenMP allows one number per nesting level, "4,2"; the outermost is meant."""
    return _whole(1, _MAX_THREADS)(text.split(",")[0].strip())


def _reserved(text: str) -> int:
    return _whole(0, _MAX_CPU)(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{text[:80]!r} is not a number of seconds.")
    return value


def _seconds_or(default: float) -> Callable[[str], float]:
    """0 means the default, as vLLM has it."""
    return lambda text: _seconds(text) or default


def _names(word: str) -> tuple[str, str]:
    return f"OCTAVO_{word}", f"VLLM_{word}"


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "kv_cache_space_bytes",
        ("OCTAVO_CPU_KVCACHE_SPACE", "OCTAVO_KV_CACHE_SPACE", "VLLM_CPU_KVCACHE_SPACE"),
        _space,
        "Memory for the KV cache: GiB, or with a unit (512MB, 2GiB).",
    ),
    Variable(
        "threads_bind",
        _names("CPU_OMP_THREADS_BIND"),
        str,
        "Cores to compute on: auto, nobind, all, 0-15, 0,2,4, or one list per rank, 0-7|8-15.",
    ),
    Variable("threads", ("OCTAVO_NUM_THREADS", "OMP_NUM_THREADS"), _omp_threads, "Computing threads."),
    Variable(
        "decode_threads",
        ("OCTAVO_DECODE_THREADS",),
        _whole(1, _MAX_THREADS),
        "Of them, those of steps that only decode.",
    ),
    Variable(
        "prefill_threads",
        ("OCTAVO_PREFILL_THREADS",),
        _whole(1, _MAX_THREADS),
        "Of them, those of steps that read prompts.",
    ),
    Variable("reserved_cpus", _names("CPU_NUM_OF_RESERVED_CPU"), _reserved, "Cores left to others."),
    Variable("api_key", _names("API_KEY"), str, "The key that clients must send."),
    Variable("use_modelscope", _names("USE_MODELSCOPE"), _flag, "Download from ModelScope by id."),
    Variable("logging_level", _names("LOGGING_LEVEL"), str.upper, "DEBUG, INFO, WARNING or ERROR."),
    Variable("configure_logging", _names("CONFIGURE_LOGGING"), _flag, "0: leave logging to the program."),
    Variable(
        "logging_config_path",
        _names("LOGGING_CONFIG_PATH"),
        str,
        "JSON of logging.config.dictConfig instead.",
    ),
    Variable("logging_prefix", _names("LOGGING_PREFIX"), str, "Before each log line."),
    Variable("logging_stream", _names("LOGGING_STREAM"), str, "ext://sys.stdout, or ext://sys.stderr."),
    Variable(
        "log_stats_interval_s", _names("LOG_STATS_INTERVAL"), _seconds_or(10.0), "Seconds between log lines."
    ),
    Variable(
        "cache_root",
        ("OCTAVO_CACHE", *_names("CACHE_ROOT")),
        str,
        "Folder for packed weights and batches (~/.cache/octavo); off: none are kept.",
    ),
    Variable(
        "cache_bytes",
        ("OCTAVO_CACHE_SIZE",),
        parse_size,
        "Most that the packed weights of all models may take: 32GiB, least recently used out first.",
    ),
    Variable("max_n_sequences", _names("MAX_N_SEQUENCES"), _whole(1, 1 << 20), "Largest n of a request."),
    Variable(
        "max_completion_prompts",
        _names("MAX_COMPLETION_PROMPTS"),
        _whole(1, 1 << 20),
        "Most prompts in a request.",
    ),
    Variable("max_stop_strings", _names("MAX_STOP_STRINGS"), _whole(0, 1 << 20), "Most stop strings."),
    Variable("max_bad_words", _names("MAX_NUM_BAD_WORDS"), _whole(0, 1 << 20), "Most bad words."),
    Variable(
        "regex_timeout_s",
        _names("REGEX_COMPILATION_TIMEOUT_S"),
        _seconds_or(5.0),
        "Seconds for compiling a form (5).",
    ),
    Variable(
        "template_timeout_s",
        _names("CHAT_TEMPLATE_RENDER_TIMEOUT"),
        _seconds_or(1.0),
        "CPU seconds for rendering a chat (1).",
    ),
    Variable(
        "keep_alive_s",
        _names("HTTP_TIMEOUT_KEEP_ALIVE"),
        _whole(0, 86400),
        "Idle seconds of a connection (75).",
    ),
    Variable(
        "ready_timeout_s",
        _names("ENGINE_READY_TIMEOUT_S"),
        _whole(0, 86400),
        "Longest start, seconds (0: any).",
    ),
    Variable(
        "allow_long_max_model_len",
        _names("ALLOW_LONG_MAX_MODEL_LEN"),
        _flag,
        "Allow more than config.json says.",
    ),
    Variable(
        "allow_runtime_lora",
        _names("ALLOW_RUNTIME_LORA_UPDATING"),
        _flag,
        "Serve /v1/load_lora_adapter and /v1/unload_lora_adapter.",
    ),
    Variable(
        "max_stored_responses",
        ("OCTAVO_MAX_STORED_RESPONSES",),
        _whole(0, 1 << 20),
        "Answers of /v1/responses that are kept (1000); 0: none.",
    ),
    Variable(
        "dev_mode",
        _names("SERVER_DEV_MODE"),
        _flag,
        "Serve /sleep, /wake_up, /pause, /resume, /abort_requests and /reset_prefix_cache.",
    ),
)


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Every variable of the table. Raises ConfigError that names the variable and shows its value."""
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        said = lookup(variable.field, source)
        if said is None:
            continue
        name, text = said
        try:
            values[variable.field] = variable.read(text)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    return Environment(**values)


def cache_folder(environment: Environment) -> Path | None:
    """Where Octavo keeps what it can make again; None where it keeps nothing (OCTAVO_CACHE=off)."""
    if environment.cache_root == "off":
        return None
    if environment.cache_root:
        return Path(environment.cache_root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def lookup(field: str, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """(name, text) of the variable that decides `field`, or None when none of its names is set."""
    source = os.environ if environ is None else environ
    for name in next(variable for variable in VARIABLES if variable.field == field).names:
        text = source.get(name, "").strip()
        if text:
            return name, text
    return None


def clamp_kv_cache_space(asked_bytes: int, free_bytes: int, environ: Mapping[str, str] | None = None) -> int:
    """At most what is free, with a warning that shows the unit when that is less than what was asked for."""
    if asked_bytes <= free_bytes:
        return asked_bytes
    name, text = lookup("kv_cache_space_bytes", environ) or ("--kv-cache-memory", show_bytes(asked_bytes))
    unit = (
        ""
        if re.search(r"[a-z]", text, re.IGNORECASE)
        else f" (the unit is GiB; for megabytes write {text}MB)"
    )
    log.warning(
        "%s=%s asks for %s%s, but %s are free: using at most that.",
        name,
        text,
        show_bytes(asked_bytes),
        unit,
        show_bytes(free_bytes),
    )
    return free_bytes


@dataclass(frozen=True)
class ThreadBinding:
    """Where threads may run. `ranks` is empty for `auto` (bind if the machine is ours alone) and `nobind`."""

    mode: str
    """auto, nobind or cpus."""
    ranks: tuple[frozenset[int], ...] = ()
    """Logical CPUs of each rank, for mode `cpus`."""


def parse_binding(text: str, mask: Iterable[int]) -> ThreadBinding:
    """`auto`, `nobind`, `all`, or CPU lists `0-15`, `0,2,4`, `0-7|8-15` (one per rank) within `mask`.

    CPUs outside the mask are dropped with a warning; when a rank keeps none, binding falls back to `auto`.
    Raises ConfigError for text that is none of these.
    """
    word, allowed = text.strip().lower(), frozenset(mask)
    if word in ("auto", "nobind"):
        return ThreadBinding(word)
    if word == "all":
        return ThreadBinding("cpus", (allowed,))
    asked = [_cpu_list(part, text) for part in word.split("|")]
    outside = sorted(frozenset().union(*asked) - allowed)
    if outside:
        log.warning(
            "Thread binding %s: CPUs %s are not available to this process (it has %s) and are left out.",
            text[:80],
            show_cpus(outside),
            show_cpus(allowed),
        )
    ranks = tuple(cpus & allowed for cpus in asked)
    if not all(ranks):
        log.warning("Thread binding %s leaves a rank without CPUs: using auto.", text[:80])
        return ThreadBinding("auto")
    return ThreadBinding("cpus", ranks)


def _cpu_list(part: str, whole: str) -> frozenset[int]:
    cpus: set[int] = set()
    for item in part.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", item)
        first, last = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (1, 0)
        if first > last or last >= _MAX_CPU:
            raise ConfigError(
                f"{whole[:80]!r} is not a thread binding.",
                hint="Write auto, nobind, all, 0-15, 0,2,4 or 0-7|8-15.",
            )
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def show_cpus(cpus: Iterable[int]) -> str:
    """CPUs as a short list: "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"
