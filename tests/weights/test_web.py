"""Headers from plain URLs: files, shards, folders; redirects and answers that are not to be trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octavo.errors import CheckpointError, ConfigError, OctavoError
from octavo.weights import web
from octavo.weights.checkpoint import open_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from fake_site import FakeSite
from writers import encode

TENSORS = {"a.weight": np.zeros((64, 300), np.float32), "b.weight": np.zeros((5, 7), np.float32)}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = FakeSite()
    yield server
    server.close()


def shapes(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.described(name) for name in checkpoint.names()}


EXPECTED = {"a.weight": ("float32", (64, 300)), "b.weight": ("float32", (5, 7))}


def fetched(site: FakeSite, path: str, into: Path) -> Path:
    into.mkdir()
    return web.stand_in(site.url + path, into)


def refusal(url: str, into: Path) -> str:
    into.mkdir()
    with pytest.raises(OctavoError) as caught:
        web.stand_in(url, into)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_and_its_file(site: FakeSite, tmp_path: Path) -> None:
    whole = encode(TENSORS)
    site.pages = {"/m/config.json": b"{}", "/m/model.safetensors": whole, "/m/tokenizer.json": b"x" * 9999}
    for number, path in enumerate(("/m", "/m/", "/m/model.safetensors", "/m/?key=a%20b")):
        folder = fetched(site, path, tmp_path / str(number))
        assert shapes(folder) == EXPECTED
        assert (folder / "model.safetensors").stat().st_size == len(whole)
        assert (folder / "tokenizer.json").read_bytes() == b"", "it is there, and no more is asked"
    assert any(path == "/m/config.json?key=a%20b" for path, _ in site.asked)
    assert not any("Authorization" in headers or "Cookie" in headers for _, headers in site.asked)


def test_shards_and_one_of_several_files(site: FakeSite, tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    pieces = dict(zip(names, [{name: value} for name, value in TENSORS.items()], strict=True))
    index = {"weight_map": {tensor: name for name, own in pieces.items() for tensor in own}}
    site.pages = {"/config.json": b"{}", "/model.safetensors.index.json": json.dumps(index).encode()}
    site.pages |= {f"/{name}": encode(own) for name, own in pieces.items()}
    site.pages["/other.safetensors"] = encode({"c": np.zeros(3, np.float32)})
    assert shapes(fetched(site, f"/{names[1]}", tmp_path / "a")) == EXPECTED
    assert shapes(fetched(site, "/", tmp_path / "b")) == EXPECTED
    assert shapes(fetched(site, "/other.safetensors", tmp_path / "c")) == {"c": ("float32", (3,))}


def test_modules_beside_the_model(site: FakeSite, tmp_path: Path) -> None:
    modules = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "../x")]
    site.pages = {"/config.json": b"{}", "/model.safetensors": encode(TENSORS)}
    site.pages |= {"/modules.json": json.dumps(modules).encode(), "/1_Pooling/config.json": b"[1]"}
    site.pages |= {"/2_Dense/config.json": b"[2]", "/2_Dense/model.safetensors": encode(TENSORS)}
    folder = fetched(site, "", tmp_path / "a")
    assert (folder / "1_Pooling/config.json").read_bytes() == b"[1]"
    assert shapes(folder / "2_Dense") == EXPECTED


def test_only_headers_come(site: FakeSite, tmp_path: Path) -> None:
    raw = encode(TENSORS)
    header = 8 + int.from_bytes(raw[:8], "little")
    site.pages = {"/config.json": b"{}", "/model.safetensors": raw[:header] + bytes(16 << 20)}
    folder = fetched(site, "/model.safetensors", tmp_path / "a")
    assert (folder / "model.safetensors").stat().st_size == header + (16 << 20)
    assert site.sent_bytes < 1 << 20


def test_a_long_header_needs_ranges(site: FakeSite, tmp_path: Path) -> None:
    many = {f"model.layers.{i}.weight": np.zeros(1, np.float32) for i in range(5000)}
    site.pages = {"/config.json": b"{}", "/model.safetensors": encode(many)}
    assert len(shapes(fetched(site, "/", tmp_path / "a"))) == 5000
    site.ranges = False
    assert "whole files only" in refusal(site.url, tmp_path / "b")
    site.pages["/model.safetensors"] = encode(TENSORS)
    assert shapes(fetched(site, "/", tmp_path / "c")) == EXPECTED, "a short one comes at once"


def test_redirects(site: FakeSite, tmp_path: Path) -> None:
    site.pages = {"/config.json": b"{}", "/model.safetensors": "/far/away", "/far/away": encode(TENSORS)}
    assert shapes(fetched(site, "/", tmp_path / "a")) == EXPECTED
    site.pages["/far/away"] = "/far/away"
    assert "redirects more than" in refusal(site.url, tmp_path / "b")
    for number, where in enumerate(
        ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1/", "http://a:b@c/")
    ):
        site.pages["/model.safetensors"] = where
        assert "is no URL" in refusal(site.url, tmp_path / f"c{number}")


def test_where_a_redirect_may_lead(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose address is public or not is decided here, since every server of a test is this machine."""

    def publicly(*names: str) -> None:
        monkeypatch.setattr(web, "_connect", lambda url, public_only: connect(url, public_only, names))

    def connect(url: Any, public_only: bool, names: tuple[str, ...]) -> Any:
        public = url.hostname in names
        if public_only and not public:
            raise CheckpointError("refused")
        return own(url, public_only=False)[0], public

    own = web._connect
    port = site.url.rpartition(":")[2]
    site.pages = {"/here": f"http://localhost:{port}/there", "/there": b"text"}
    for names, found in (((), b"text"), (("127.0.0.1", "localhost"), b"text"), (("localhost",), b"text")):
        publicly(*names)
        assert web.Site(web._split(f"{site.url}/")).text("here") == found
    publicly("127.0.0.1")
    with pytest.raises(CheckpointError, match="refused"):
        web.Site(web._split(f"{site.url}/")).text("here")
    secure = web._split("https://host/x")
    assert web._followed(secure, "//other/y").geturl() == "https://other/y"
    with pytest.raises(CheckpointError, match="https to http"):
        web._followed(secure, "http://host/x")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("169.254.169.254", None),
        ("::ffff:169.254.169.254", None),
        ("fe80::1%eth0", None),
        ("fd00:ec2::254", None),
        ("100.100.100.200", None),
        ("224.0.0.1", None),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
    ],
)
def test_addresses(
    address: str, public: bool | None, site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that a connection has reached decides, whatever the name was."""

    class Connection:
        host = "example.org"
        sock = SimpleNamespace(getpeername=lambda: (address, 80))

        def __init__(self, *_: object, **__: object) -> None: ...

        def connect(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(web.http.client, "HTTPConnection", Connection)
    url = web._split("http://example.org/x")
    if public is None:
        with pytest.raises(CheckpointError, match="not read from"):
            web._connect(url, public_only=False)
    else:
        assert web._connect(url, public_only=False)[1] is public
    if not public:
        with pytest.raises(CheckpointError, match="not read from"):
            web._connect(url, public_only=True)


def test_what_is_not_there(site: FakeSite, tmp_path: Path) -> None:
    url = site.url
    assert "There is no config.json" in refusal(url, tmp_path / "a")
    site.pages = {"/config.json": b"{}"}
    assert "neither model.safetensors nor" in refusal(url, tmp_path / "b")
    assert "cannot be had: it is not there" in refusal(f"{url}/x.safetensors", tmp_path / "c")
    assert "cannot be had: it is not there" in refusal(f"{url}/x.gguf", tmp_path / "d")
    site.pages["/x.gguf"] = 401
    assert "wants a login" in refusal(f"{url}/x.gguf", tmp_path / "e")
    site.pages["/x.gguf"] = b"<html>"
    assert "does not begin like a GGUF file" in refusal(f"{url}/x.gguf", tmp_path / "f")
    assert "PyTorch archive" in refusal(f"{url}/pytorch_model.bin", tmp_path / "g")
    site.pages["/config.json"] = 500
    assert "HTTP 500" in refusal(url, tmp_path / "h")
    closed = FakeSite()
    closed.close()
    assert "cannot be reached" in refusal(closed.url, tmp_path / "i")


def test_answers_that_lie(site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages = {"/config.json": b"{}", "/model.safetensors": encode(TENSORS) + bytes(1 << 18)}
    cases = [
        ({"Content-Encoding": "gzip"}, "packs"),
        ({"Content-Length": "99999"}, "broke off"),
        ({"Content-Range": "bytes 0-9/*"}, "how long"),
        ({"Content-Range": f"bytes 0-99/{1 << 59}"}, "cannot hold"),
    ]
    for number, (headers, said) in enumerate(cases):
        site.headers = headers
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(refusal(site.url, tmp_path / str(number)))
    site.headers = {}
    site.pages["/model.safetensors"] = (1 << 60).to_bytes(8, "little") + bytes(100)
    with pytest.raises(CheckpointError, match="header"):
        open_checkpoint(fetched(site, "/", tmp_path / "huge"))
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    site.pages["/model.safetensors.index.json"] = json.dumps(index).encode()
    assert "which is no name" in refusal(site.url, tmp_path / "index")
    assert not (tmp_path / "evil.safetensors").exists()
    index = {"weight_map": {str(i): f"{i}.safetensors" for i in range(2000)}}
    site.pages["/model.safetensors.index.json"] = json.dumps(index).encode()
    assert "2000 weight files" in refusal(site.url, tmp_path / "many")
    assert "99999 weight files" in refusal_of_shards(site, tmp_path / "shards")
    monkeypatch.setattr(web, "_MOST_TEXT", 1)
    assert "larger than" in refusal(site.url, tmp_path / "text")
    monkeypatch.setattr(web, "_MOST_BYTES", 1)
    assert "have more than" in refusal(site.url, tmp_path / "bytes")


def refusal_of_shards(site: FakeSite, into: Path) -> str:
    site.pages["/x-00001-of-99999.gguf"] = b"GGUF"
    return refusal(f"{site.url}/x-00001-of-99999.gguf", into)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "https://a b/x",
        "http://host:99999/x",
        "http://host:0/x",
        "http://[::1/x",
        "http://h\u00f6st/x",
        "http://a\nb/x",
        "http://name:word@host/x",
        "http://127.0.0.1:1/" + "x" * 300 + ".gguf",
        "http://127.0.0.1:1/..%2f..%2fx.gguf",
    ],
)
def test_what_is_no_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        web.stand_in(url, tmp_path)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://huggingface.co/org/name", ("org/name", None)),
        ("https://huggingface.co/org/name/", ("org/name", None)),
        ("https://hf.co/org/name/tree/v2", ("org/name", "v2")),
        ("https://huggingface.co/org/name/blob/main/x-Q4_0.gguf", ("org/name:x-Q4_0.gguf", "main")),
        (
            "https://huggingface.co/org/name/resolve/main/model.safetensors?download=true",
            ("org/name", "main"),
        ),
        ("https://huggingface.co/org/name/blob/main/sub/x.gguf", None),
        ("https://example.org/org/name", None),
        ("org/name", None),
    ],
)
def test_pages_of_the_hub(url: str, found: tuple[str, str | None] | None) -> None:
    assert web.on_hub(url) == found


def test_a_proxy_is_asked(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.setenv("no_proxy", "")
    site.pages = {"/config.json": b"{}"}
    assert web.Site(web._split("http://models.example/")).text("config.json") == b"{}"
    (asked, headers) = site.asked[0]
    assert (asked, headers["Host"]) == ("http://models.example/config.json", "models.example")
    with pytest.raises(CheckpointError, match="not read from"):
        web.Site(web._split("http://169.254.169.254/")).text("config.json")
