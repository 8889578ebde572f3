"""The headers of a model on Hugging Face, without its weights: HTTP ranges of the files' beginnings.

They are put into a stand-in of the model: a folder with its text files and stand-ins of its weight files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from octavo.config.environment import read_environment
from octavo.errors import CheckpointError, ConfigError
from octavo.weights import headers
from octavo.weights.gguf import shards
from octavo.weights.hub import GGUF_NAME, TEXT_FILES, check_id, modules_in, one_sentence, resolve_model

_TIMEOUT_S = 30
_CONNECTIONS = 8


def stand_in(
    name: str,
    folder: Path,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    hf_token: str | None = None,
) -> Path:
    """A stand-in in the empty `folder` for a hub id, `repo:file.gguf` or `repo:Q4_K_M`; its path.

    Raises CheckpointError with the cause and the fix, ConfigError for a name that is no hub id.
    """
    named = GGUF_NAME.fullmatch(name)
    repo, wanted = named.groups() if named else (name, "")
    check_id(repo, revision)
    if read_environment().use_modelscope:
        raise ConfigError(
            "Headers are read remotely from Hugging Face only, and OCTAVO_USE_MODELSCOPE is set.",
            hint="Download the model, then inspect its folder.",
        )
    with one_sentence(repo, "Hugging Face", revision):
        hub = _Repository.open(repo, revision, hf_token)
        files = _gguf_files(repo, hub.sizes, wanted) if wanted else _weight_files(repo, hub.sizes)
        if not wanted:
            text = resolve_model(
                repo,
                revision=revision,
                download_dir=download_dir,
                hf_token=hf_token,
                allow_patterns=TEXT_FILES,
                quiet=True,
            )
            modules = modules_in(text)
            for path in text.iterdir():
                # Weights that were downloaded before stay out: their names are the stand-ins'.
                if path.name in modules or any(fnmatch(path.name, pattern) for pattern in TEXT_FILES):
                    (folder / path.name).symlink_to(path.resolve())
        with ThreadPoolExecutor(_CONNECTIONS, "octavo-headers") as pool:
            list(pool.map(lambda file: headers.stand_in(hub, file, folder / file), files))
    return folder / files[0] if wanted else folder


def _weight_files(repo: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    found = [name for name in found if not name.startswith("consolidated")]
    if found:
        return sorted(found)
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        raise CheckpointError(
            f"{repo} holds {len(ggufs)} GGUF files.", hint=f"Name one: {repo}:{ggufs[0]}, for example."
        )
    if any(fnmatch(name, "*.bin") or fnmatch(name, "*.pt") for name in names):
        raise CheckpointError(
            f"{repo} holds PyTorch archives, whose headers stand all over the file.",
            hint="Download it, then inspect its folder.",
        )
    raise CheckpointError(f"{repo} holds no weights: neither safetensors nor GGUF.")


def _gguf_files(repo: str, names: Iterable[str], wanted: str) -> list[str]:
    """A file by its name, or by what stands in it; with all its shards, the first first."""
    ggufs = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    found = [name for name in ggufs if name == wanted or not wanted.endswith(".gguf")]
    found = [name for name in found if wanted.lower() in name.lower()]
    first = list(dict.fromkeys(shards(Path(name))[0].name for name in found))
    if len(first) != 1:
        there = ", ".join((first or ggufs)[:5]) or "none"
        said = "may be several files" if first else "is no GGUF file of the repository"
        raise CheckpointError(f"{wanted} {said} ({repo} holds {there}).", hint="Give the whole name.")
    return [path.name for path in shards(Path(first[0]))]


@dataclass(frozen=True)
class _Repository:
    """One revision of a repository."""

    name: str
    revision: str
    endpoint: str | None
    headers: dict[str, str]
    sizes: dict[str, int]

    @classmethod
    def open(cls, name: str, revision: str | None, token: str | None) -> _Repository:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import build_hf_headers

        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        api = HfApi(endpoint=endpoint, token=token)
        commit = api.model_info(name, revision=revision, timeout=_TIMEOUT_S).sha or revision or "main"
        entries = api.list_repo_tree(name, revision=commit)
        sizes = {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
        return cls(name, commit, endpoint, dict(build_hf_headers(token=token)), sizes)

    def begin(self, file: str, nbytes: int) -> tuple[bytes, int]:
        if file not in self.sizes:
            raise CheckpointError(f"{self.name} lacks {file}.", hint="Is the repository complete?")
        size = self.sizes[file]
        return self.read(file, 0, min(nbytes, size)), size

    def read(self, file: str, begin: int, nbytes: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import get_session

        url = hf_hub_url(self.name, file, revision=self.revision, endpoint=self.endpoint)
        asked = {
            **self.headers,
            "Range": f"bytes={begin}-{begin + nbytes - 1}",
            "Accept-Encoding": "identity",
        }
        session: Any = get_session()
        # The library's session is one of httpx or, in older versions, of requests (whose stream is a flag).
        if callable(getattr(session, "stream", None)):
            answer = session.stream("GET", url, headers=asked, timeout=_TIMEOUT_S)
        else:
            answer = session.get(url, headers=asked, timeout=_TIMEOUT_S, stream=True)
        with answer as response:
            response.raise_for_status()
            if begin and response.status_code != 206:
                raise CheckpointError(f"The server of {self.name} gives whole files only, no ranges.")
            pieces = (
                response.iter_bytes() if hasattr(response, "iter_bytes") else response.iter_content(1 << 16)
            )
            content = bytearray()
            for piece in pieces:
                content += piece
                if len(content) >= nbytes:
                    break
        if len(content) < nbytes:
            raise CheckpointError(
                f"{file} of {self.name} gave {len(content)} bytes from {begin} on, expected {nbytes}."
            )
        return bytes(content[:nbytes])
