"""From the name that a person typed to a folder: a path, or a download from Hugging Face or ModelScope.

The hubs' own libraries download, check, resume and cache; this file says what to fetch, validates names
before they become paths, and turns each failure into one sentence. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and
HF_HOME are honoured, and for ModelScope MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN and MODELSCOPE_CACHE.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.config.environment import read_environment
from octavo.errors import CheckpointError, ConfigError
from octavo.log import logger

log = logger(__name__)

TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Configuration, tokenizers and templates: small, and all that a caller without need of weights asks for."""
_SAFETENSORS = ("*.safetensors",)
_PICKLED = ("pytorch_model*.bin", "model*.pt", "qmodel.pt")
_IGNORED = ("*/*", "consolidated*", "optimizer*", "training_args*")
"""Folders hold other formats (onnx, original); consolidated files are a second copy of the weights."""
_MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
"""Of a module of sentence-transformers; a pooling module has the first alone."""
_MOST_MODULES = 20
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?")
GGUF_NAME = re.compile(r"([^:]+/[^:]+):([A-Za-z0-9_][A-Za-z0-9_.-]{0,199})")
SHARD = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf$")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    hf_token: str | None = None,
    allow_patterns: tuple[str, ...] | None = None,
    use_modelscope: bool | None = None,
    quiet: bool = False,
) -> Path:
    """The folder (or file) that `name` means: a local path, `~` included, else a hub id that is downloaded.

    `repo:file.gguf` is one GGUF file of a hub model (with its other shards), `repo:Q4_K_M` the one with that
    in its name.
    `allow_patterns`: which files to fetch instead of the default (configuration, tokenizer, and safetensors
    or, where there are none, `.bin`). `use_modelscope`: None reads OCTAVO_USE_MODELSCOPE. Raises ConfigError
    for a name that is neither, CheckpointError with the cause and the fix when the download fails.
    """
    local = _local(name)
    if local is not None:
        return local
    named = GGUF_NAME.fullmatch(name)
    name, file = named.groups() if named else (name, "")
    check_id(name, revision)
    if use_modelscope is None:
        use_modelscope = read_environment().use_modelscope
    hub = _fetch_modelscope if use_modelscope else _fetch_huggingface

    def fetch(patterns: tuple[str, ...], ignored: tuple[str, ...] = _IGNORED) -> Path:
        return hub(name, patterns, ignored, revision, download_dir, hf_token, quiet)

    with one_sentence(name, "ModelScope" if use_modelscope else "Hugging Face", revision):
        if file:
            return _fetch_gguf(file, fetch)
        folder = fetch(allow_patterns or TEXT_FILES + _SAFETENSORS)
        if allow_patterns is None and not any(folder.glob("*.safetensors")):
            folder = fetch(TEXT_FILES + _PICKLED)
        if modules := modules_in(folder):
            fetch(tuple(f"{module}/{part}" for module in modules for part in _MODULE_FILES), ())
        return folder


def modules_in(folder: Path) -> list[str]:
    """The folders that sentence-transformers' modules.json names beside the model's own."""
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    listed = modules[:_MOST_MODULES] if isinstance(modules, list) else []
    paths = [module.get("path") for module in listed if isinstance(module, dict)]
    return [path for path in paths if isinstance(path, str) and re.fullmatch(_PART, path)]


def _fetch_gguf(file: str, fetch: Callable[[tuple[str, ...]], Path]) -> Path:
    """One GGUF file of a repository by its name, or by what stands in it before `.gguf`."""
    if file.endswith(".gguf"):
        shard = SHARD.search(file)
        folder = fetch((f"{file[: shard.start()]}-*-of-{shard['count']}.gguf" if shard else file,))
        if not (folder / file).is_file():
            raise CheckpointError(f"There is no file {file} in the repository.")
        return folder / file
    folder = fetch(tuple(f"*{word}*.gguf" for word in (file, file.upper(), file.lower())))
    found = sorted(path for path in folder.glob("*.gguf") if file.lower() in path.name.lower())
    if not found:
        raise CheckpointError(f"There is no GGUF file with {file} in its name in the repository.")
    first = [path for path in found if not SHARD.search(path.name) or "-00001-of-" in path.name]
    if len(first) != 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(f"{file} may be {names}.", hint="Give the whole name: repo:file.gguf.")
    return first[0]


def _local(name: str) -> Path | None:
    """The path, when there is one; text that no file system takes is none."""
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def check_id(name: str, revision: str | None) -> None:
    """Names become paths in a cache: nothing but the hubs' own alphabet gets there."""
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise ConfigError(
            f"{name[:200]!r} is neither a folder or file here nor a hub id.",
            hint=_instead(name),
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(f"{revision[:200]!r} is not a revision.", hint="Give a branch, a tag or a commit.")


def _instead(name: str) -> str:
    """What to type in place of a name that is none: an address without its host, no tag of Ollama's."""
    found = re.match(rf"https?://[^/]+/(?:models/)?({_PART}/{_PART})", name)
    if found:
        return f"Give the id alone: {found[1]}."
    if re.fullmatch(r"[\w.-]+:[\w.-]+", name):
        return (
            "Names of Ollama's library are not known here: give a hub id such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    return "Give the path of a model folder, or an id such as Qwen/Qwen2.5-0.5B-Instruct."


def offline() -> bool:
    words = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return any(word.lower() in ("1", "true", "yes", "on") for word in words)


def _fetch_huggingface(
    name: str,
    patterns: tuple[str, ...],
    ignored: tuple[str, ...],
    revision: str | None,
    download_dir: str | None,
    token: str | None,
    quiet: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = quiet and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if download_dir is None else Path(download_dir).expanduser(),
            token=token,
            endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            local_files_only=offline(),
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
        )
    finally:
        if hide:
            enable_progress_bars()
    return Path(folder)


def _fetch_modelscope(
    name: str,
    patterns: tuple[str, ...],
    ignored: tuple[str, ...],
    revision: str | None,
    download_dir: str | None,
    token: str | None,
    quiet: bool,
) -> Path:
    cached = find_modelscope_cache(name, download_dir)
    if offline() and cached:
        return cached
    try:
        from modelscope_hub import HubApi
    except ImportError:
        if cached:
            return cached
        raise CheckpointError(
            f"Downloading {name} from ModelScope needs the modelscope-hub package.",
            hint="Run `pip install octavo[modelscope]`, or unset OCTAVO_USE_MODELSCOPE.",
        ) from None
    options: dict[str, Any] = {} if token is None else {"token": token}
    if endpoint := os.environ.get("MODELSCOPE_ENDPOINT"):
        options["endpoint"] = endpoint
    folder = HubApi(**options).download_repo(
        name,
        "model",
        revision=revision,
        cache_dir=None if download_dir is None else Path(download_dir).expanduser(),
        allow_patterns=list(patterns),
        ignore_patterns=list(ignored),
        local_files_only=offline(),
        **({"progress_callbacks": []} if quiet else {}),
    )
    return Path(folder)


def find_modelscope_cache(name: str, download_dir: str | None = None) -> Path | None:
    """A model that ModelScope's older libraries downloaded: they write `.` in names as `___`."""
    base = Path(download_dir or os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    owner, _, model = name.rpartition("/")
    for root in ("models", "hub/models", "hub"):
        folder = base / root / owner / model.replace(".", "___")
        if (folder / "config.json").is_file():
            return folder
    return None


@contextmanager
def one_sentence(name: str, hub: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub libraries raise into a CheckpointError with the cause and the fix."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        message, hint = _explain(error, f"{name} (revision {revision})" if revision else name, hub)
        log.debug("download of %s failed", name, exc_info=error)
        raise CheckpointError(message, hint=hint) from error


def _explain(error: Exception, name: str, hub: str) -> tuple[str, str]:
    """(sentence, fix). The two libraries share no classes, so their names and status codes decide."""
    kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in _chain(error)):
        return (
            f"No space left on the disk to download {name}.",
            "Free some, or give --download-dir on another disk.",
        )
    if any(getattr(one, "errno", None) in (errno.EACCES, errno.EROFS) for one in _chain(error)):
        return f"{name} cannot be written to the cache: permission denied.", "Give --download-dir."
    status = next((code for code in map(_status, _chain(error)) if code), None)
    if kinds & {"GatedRepoError", "AuthenticationError", "PermissionDeniedError"} or status in (401, 403):
        return (
            f"{hub} does not let us read {name}: it is gated, private or not there (HTTP {status or 401}).",
            "Check the name, ask for access on its page, then pass --hf-token or set HF_TOKEN."
            if hub == "Hugging Face"
            else "Check the name, then set MODELSCOPE_API_TOKEN.",
        )
    if kinds & {"RevisionNotFoundError"}:
        return f"{name} was not found on {hub}.", "Check --revision."
    if kinds & {"RepositoryNotFoundError", "NotExistError"} or status == 404:
        owner = "Check the spelling." if "/" in name else "Hub ids have an owner: Qwen/Qwen2.5-0.5B-Instruct."
        return f"{name} was not found on {hub}, nor is there a folder of that name.", owner
    if offline():
        return (
            f"{name} is not in the cache, and HF_HUB_OFFLINE forbids a download.",
            "Unset HF_HUB_OFFLINE once to download it, or give a local folder.",
        )
    if status is not None:
        return f"{hub} answered HTTP {status} for {name}.", "Try again later, or set HF_ENDPOINT to a mirror."
    if kinds & {
        "LocalEntryNotFoundError",
        "ConnectionError",
        "NetworkError",
        "TransportError",
        "TimeoutError",
    }:
        return (
            f"There is no folder {name} here, {hub} cannot be reached, and its cache has no complete copy.",
            "Check the network and proxy, set HF_ENDPOINT to a mirror, or give a local folder.",
        )
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return f"Downloading {name} from {hub} failed: {said.rstrip('.')}.", "Try again; finished files are kept."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None) or getattr(
        error, "status_code", None
    )
    return code if isinstance(code, int) else None
