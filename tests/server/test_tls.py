"""TLS files that cannot be used: one sentence before anything starts."""

from __future__ import annotations

import pytest
import trustme

from octavo.errors import ConfigError
from octavo.server.run import serve
from octavo.server.settings import ServerSettings
from octavo.server.tls import check_tls


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate, its key, another key and a file that is none of these."""
    folder = tmp_path_factory.mktemp("tls")
    made = trustme.CA().issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(folder / "cert")
    made.private_key_pem.write_to_path(folder / "key")
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(folder / "other")
    (folder / "text").write_text("no PEM")
    return {name: str(folder / name) for name in ("cert", "key", "other", "text", "absent")}


def test_a_pair_that_fits(files: dict[str, str]) -> None:
    check_tls(ServerSettings())
    check_tls(
        ServerSettings(ssl_certfile=files["cert"], ssl_keyfile=files["key"], ssl_ca_certs=files["cert"])
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ssl_certfile": "absent", "ssl_keyfile": "key"}, "--ssl-certfile .*absent: there is no such file"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "absent"}, "--ssl-keyfile .*absent: there is no such file"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "other"}, "TLS cannot use .*cert and .*other"),
        ({"ssl_certfile": "cert"}, "TLS cannot use .*cert"),
        ({"ssl_certfile": "text", "ssl_keyfile": "key"}, "TLS cannot use .*text"),
        ({"ssl_keyfile": "key"}, "--ssl-keyfile needs a certificate"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "key", "ssl_ca_certs": "text"}, "holds no PEM certificates"),
    ],
)
def test_what_cannot_be_used(files: dict[str, str], fields: dict[str, str], said: str) -> None:
    settings = ServerSettings(port=0, **{name: files[path] for name, path in fields.items()})
    with pytest.raises(ConfigError, match=said):
        serve(lambda metrics: pytest.fail("the model must not load"), settings)


def test_a_cipher_list_that_selects_nothing(files: dict[str, str]) -> None:
    pair = {"ssl_certfile": files["cert"], "ssl_keyfile": files["key"]}
    with pytest.raises(ConfigError, match="'NOPE' selects no cipher"):
        check_tls(ServerSettings(ssl_ciphers="NOPE", **pair))
