"""TLS files are tried before anything starts: what is wrong with them is one sentence, not a traceback."""

from __future__ import annotations

import os
import ssl

from octavo.errors import ConfigError
from octavo.server.settings import ServerSettings


def check_tls(settings: ServerSettings) -> None:
    """Raise ConfigError for a certificate, key, authority or cipher list that cannot be used."""
    for flag, path in (
        ("--ssl-certfile", settings.ssl_certfile),
        ("--ssl-keyfile", settings.ssl_keyfile),
        ("--ssl-ca-certs", settings.ssl_ca_certs),
    ):
        if path and not os.access(path, os.R_OK):
            raise ConfigError(f"{flag} {path}: there is no such file, or it cannot be read.", param=flag)
    if not settings.ssl_certfile:
        if settings.ssl_keyfile:
            raise ConfigError("--ssl-keyfile needs a certificate.", hint="Give it with --ssl-certfile FILE.")
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password is always given: without one, the library would ask for it on the terminal.
        password = settings.ssl_keyfile_password or "\0"
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password)
    except (ssl.SSLError, OSError, ValueError):
        both = " and ".join(path for path in (settings.ssl_certfile, settings.ssl_keyfile) if path)
        raise ConfigError(
            f"TLS cannot use {both}: no PEM certificate with its own private key, or a wrong password.",
            hint="Give --ssl-certfile, --ssl-keyfile and, for an encrypted key, --ssl-keyfile-password.",
        ) from None
    _check_rest(context, settings)


def _check_rest(context: ssl.SSLContext, settings: ServerSettings) -> None:
    try:
        if settings.ssl_ca_certs:
            context.load_verify_locations(settings.ssl_ca_certs)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"--ssl-ca-certs {settings.ssl_ca_certs} holds no PEM certificates.") from None
    try:
        if settings.ssl_ciphers:
            context.set_ciphers(settings.ssl_ciphers)
    except ssl.SSLError:
        raise ConfigError(f"--ssl-ciphers {settings.ssl_ciphers!r} selects no cipher.") from None
