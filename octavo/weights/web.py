"""A model behind a plain URL: the headers of its files, by HTTP ranges from whatever server holds them.

`https://host/x.gguf` (with its shards), `https://host/folder/x.safetensors` and `https://host/folder/`, with
config.json in it. Whoever types a URL may name this machine and its network. A server that redirects may not:
it leads from public addresses to public ones only, never from https to http, and nobody leads to link-local
addresses, where clouds keep their secrets. No token and no cookie is ever sent.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from octavo.errors import CheckpointError, ConfigError
from octavo.weights import headers
from octavo.weights.gguf import shards
from octavo.weights.hub import modules_in

_TIMEOUT_S = 30
_TOTAL_S = 300
"""For one answer."""
_CONNECTIONS = 8
_MOST_HOPS = 5
_MOST_TEXT = 64 << 20
_MOST_BYTES = 1 << 30
"""Of all answers together."""
_MOST_FILES = 1000
_PIECE = 1 << 16
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ :-]{0,199}")
_METADATA = ("100.100.100.200", "168.63.129.16", "fd00:ec2::254")
"""Where clouds keep secrets outside the link-local range."""
_CONFIGS = ("config.json", "adapter_config.json")
_TEXTS = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_PRESENT = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json")
"""Asked for, but not fetched."""
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"
_ON_HUB = re.compile(
    r"/(?P<name>[^/]+/[^/]+)(/(blob|resolve|tree)/(?P<revision>[^/]+)(/(?P<file>[^/]+))?)?/?"
)
_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def on_hub(url: str) -> tuple[str, str | None] | None:
    """(hub id, revision) of a page or a file of Hugging Face, which knows tokens and caches; else None."""
    if not is_url(url) or (parts := _split(url)).hostname not in _HUBS:
        return None
    found = _ON_HUB.fullmatch(unquote(parts.path))
    if found is None:
        return None
    file = found["file"] or ""
    name = f"{found['name']}:{file}" if file.endswith(".gguf") else found["name"]
    return name, found["revision"]


def stand_in(url: str, folder: Path) -> Path:
    """A stand-in in the empty `folder` for the model at `url`; its path.

    Raises ConfigError for a URL that cannot be asked for, CheckpointError for what does not come.
    """
    parts = _split(url)
    site, file = Site(parts), unquote(parts.path.rpartition("/")[2])
    if file.endswith((".bin", ".pt", ".pth")):
        raise CheckpointError(
            f"{file[:80]} is a PyTorch archive, whose headers stand all over the file.",
            hint="Download it with its folder, then inspect that.",
        )
    if file and not _FILE.fullmatch(file):
        raise ConfigError(f"{file[:80]!r} is no name for a file.", hint="Rename it on the server.")
    if file and not file.endswith(".safetensors") and site.is_gguf(file):
        files = [path.name for path in shards(Path(file))]
    else:
        if not file.endswith(".safetensors"):
            site, file = Site(parts._replace(path=parts.path.rstrip("/") + "/")), ""
        files = _folder(site, folder, file)
    if len(files) > _MOST_FILES:
        raise CheckpointError(f"{site} is said to have {len(files)} weight files; {_MOST_FILES} are read.")
    with ThreadPoolExecutor(_CONNECTIONS, "octavo-headers") as pool:
        list(pool.map(lambda name: headers.stand_in(site, name, folder / name), files))
    return folder if files[0].endswith(".safetensors") else folder / files[0]


def _folder(site: Site, folder: Path, file: str) -> list[str]:
    """Fetch the texts of a checkpoint into `folder`; the names of its weight files."""

    def fetch(name: str) -> bool:
        content = site.text(name)
        if content is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return content is not None

    if not any(fetch(name) for name in _CONFIGS):
        raise CheckpointError(
            f"There is no config.json at {site}.",
            hint="Give the URL of a GGUF file, or of a folder with config.json and *.safetensors.",
        )
    with ThreadPoolExecutor(_CONNECTIONS, "octavo-texts") as pool:
        present = pool.map(site.has, (*_PRESENT, *_WEIGHTS))
        *_, indexed = pool.map(fetch, (*_TEXTS, _INDEX))
    there = [name for name, is_there in zip((*_PRESENT, *_WEIGHTS), present, strict=True) if is_there]
    for name in there:
        if name in _PRESENT:
            (folder / name).touch()
    beside = [f"{module}/config.json" for module in modules_in(folder)]
    dense = [f"{name.rpartition('/')[0]}/model.safetensors" for name in beside if fetch(name)]
    for name in dense:
        if site.has(name):
            headers.stand_in(site, name, folder / name)
    named = _indexed(site, folder) if indexed else [name for name in _WEIGHTS if name in there]
    if file and file not in named:
        (folder / _INDEX).unlink(missing_ok=True)
        return [file]
    if not named:
        raise CheckpointError(
            f"There is neither model.safetensors nor {_INDEX} at {site}.",
            hint="Name the weight file itself; folders of PyTorch archives must be downloaded first.",
        )
    return named


def _indexed(site: Site, folder: Path) -> list[str]:
    """The weight files that an index names."""
    try:
        named = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{_INDEX} at {site} has no weight_map of tensor names to files.") from None
    if strange := [name for name in named if not (isinstance(name, str) and _FILE.fullmatch(name))]:
        raise CheckpointError(f"{_INDEX} at {site} names the file {strange[0]!r:.80}, which is no name.")
    return sorted(named)


class Site:
    """The folder of `url` on a server: files by their names. A query in the URL is sent for each of them."""

    def __init__(self, url: SplitResult) -> None:
        self._url = url
        self._left = _MOST_BYTES

    def __str__(self) -> str:
        return urlunsplit(self._url._replace(query=""))

    def is_gguf(self, file: str) -> bool:
        """Whether it begins with GGUF's four bytes; CheckpointError where its name alone says so."""
        with self._open(file, "bytes=0-3") as reply:
            if file.endswith(".gguf"):
                self._check(reply, file)
            found = reply.status in (200, 206) and reply.read(4) == b"GGUF"
        if file.endswith(".gguf") and not found:
            raise CheckpointError(f"{file} at {self} does not begin like a GGUF file.")
        return found

    def begin(self, file: str, nbytes: int) -> tuple[bytes, int]:
        with self._open(file, f"bytes=0-{nbytes - 1}") as reply:
            if reply.status == 416:
                raise CheckpointError(f"{file} at {self} is empty.")
            self._check(reply, file)
            size = _size(reply)
            if size is None:
                raise CheckpointError(f"The server of {self} does not say how long {file} is.")
            return self._content(reply, min(nbytes, size)), size

    def read(self, file: str, begin: int, nbytes: int) -> bytes:
        with self._open(file, f"bytes={begin}-{begin + nbytes - 1}") as reply:
            self._check(reply, file)
            if reply.status != 206:
                raise CheckpointError(f"The server of {self} gives whole files only, no ranges.")
            if not reply.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
                raise CheckpointError(f"The server of {self} gives another range of {file} than was asked.")
            return self._content(reply, nbytes)

    def has(self, file: str) -> bool:
        with self._open(file, "bytes=0-0") as reply:
            return reply.status in (200, 206, 416)

    def text(self, file: str) -> bytes | None:
        """A whole file; None when it is not there."""
        with self._open(file, None) as reply:
            if reply.status in (403, 404, 410):  # 403: what stores of objects say to strangers
                return None
            self._check(reply, file)
            content = self._content(reply, _MOST_TEXT + 1, exactly=False)
        if len(content) > _MOST_TEXT:
            raise CheckpointError(f"{file} at {self} is larger than {_MOST_TEXT >> 20} MiB.")
        return content

    def _content(self, reply: http.client.HTTPResponse, nbytes: int, *, exactly: bool = True) -> bytes:
        """`nbytes` bytes of an answer, no more; fewer unless `exactly`."""
        content, end = bytearray(), time.monotonic() + _TOTAL_S
        while len(content) < nbytes and (piece := reply.read(min(_PIECE, nbytes - len(content)))):
            content += piece
            self._left -= len(piece)
            if self._left < 0:
                raise CheckpointError(f"The headers at {self} have more than {_MOST_BYTES >> 20} MiB.")
            if time.monotonic() > end:
                raise CheckpointError(f"{self} is too slow: {len(content)} bytes in {_TOTAL_S} s.")
        if len(content) < nbytes and (exactly or reply.length):
            raise CheckpointError(f"{self} broke off after {len(content)} bytes.", hint="Try again.")
        return bytes(content)

    def _check(self, reply: http.client.HTTPResponse, file: str) -> None:
        if reply.status not in (200, 206):
            known = {401: "it wants a login", 403: "it does not let us read it", 404: "it is not there"}
            said = known.get(reply.status, f"HTTP {reply.status}")
            raise CheckpointError(f"{file} at {self} cannot be had: {said}.", hint="Check the URL.")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(f"The server of {self} packs {file} though it was asked not to.")

    @contextmanager
    def _open(self, file: str, span: str | None) -> Iterator[http.client.HTTPResponse]:
        """The answer to GET, behind redirects."""
        url = self._url._replace(path=self._url.path.rpartition("/")[0] + f"/{quote(file)}")
        headers = {"Accept-Encoding": "identity", "User-Agent": "octavo", "Connection": "close"}
        if span:
            headers["Range"] = span
        from_public = False
        for _ in range(_MOST_HOPS + 1):
            connection, public = _connect(url, public_only=from_public)
            from_public = from_public or public
            try:
                with closing(connection), closing(_asked(connection, url, headers)) as reply:
                    moved = reply.status in (301, 302, 303, 307, 308)
                    where = reply.headers.get("Location") if moved else None
                    if where is None:
                        yield reply
                        return
            except (OSError, http.client.HTTPException) as error:
                raise CheckpointError(f"{url.hostname} broke off: {_why(error)}.") from None
            url = _followed(url, where)
        raise CheckpointError(f"{self} redirects more than {_MOST_HOPS} times.")


def _split(url: str) -> SplitResult:
    """The parts of a URL; ConfigError for one that cannot be asked for."""
    try:
        parts = urlsplit(url)
        strange = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        strange = True
    if strange or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise ConfigError(f"{url[:200]!r} is no URL that can be asked for.", hint="Write https://host/file.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("A URL with a name and a password is not asked for.", hint="Download the file.")
    return parts._replace(fragment="")


def _followed(url: SplitResult, where: str) -> SplitResult:
    try:
        found = _split(urljoin(urlunsplit(url), where))
    except ValueError:  # ConfigError, too
        raise CheckpointError(f"{url.hostname} redirects to {where[:80]!r}, which is no URL.") from None
    if url.scheme == "https" and found.scheme != "https":
        raise CheckpointError(f"{url.hostname} redirects from https to http.")
    return found


def _connect(url: SplitResult, *, public_only: bool) -> tuple[http.client.HTTPConnection, bool]:
    """A connection, and whether its other end has a public address. CheckpointError for one that may not be.

    The address that is looked at is the one that is connected to.
    """
    host = url.hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(url.scheme)
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else url
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(via.hostname or "", via.port, timeout=_TIMEOUT_S)
    if proxy and url.scheme == "https":
        connection.set_tunnel(host, url.port or 443)
    try:
        connection.connect()
        peer = connection.sock.getpeername()[0]
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise CheckpointError(f"{via.hostname} cannot be reached: {_why(error)}.") from None
    public = _is_public(host if proxy else peer)
    if public is None or (public_only and not public):
        connection.close()
        raise CheckpointError(f"{host} has an address ({peer}) that headers are not read from.")
    return connection, public


def _asked(
    connection: http.client.HTTPConnection, url: SplitResult, sent: dict[str, str]
) -> http.client.HTTPResponse:
    """The answer to GET; a proxy of http is told the whole URL."""
    path = urlunsplit(("", "", url.path or "/", url.query, ""))
    by_proxy = url.scheme == "http" and connection.host != url.hostname
    connection.request("GET", urlunsplit(url) if by_proxy else path, headers={**sent, "Host": url.netloc})
    return connection.getresponse()


def _is_public(address: str) -> bool | None:
    """None: an address that nothing is ever read from. Names count as public: their proxy resolves them."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_link_local or found.is_multicast or str(found) in _METADATA:
        return None
    return found.is_global


def _size(reply: http.client.HTTPResponse) -> int | None:
    """The whole file's, from the answer to a range or to all of it."""
    if reply.status == 206:
        found = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", reply.headers.get("Content-Range", ""))
    else:
        found = re.fullmatch(r"(\d{1,18})", reply.headers.get("Content-Length", ""))
    return int(found[1]) if found else None


def _why(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:200]
