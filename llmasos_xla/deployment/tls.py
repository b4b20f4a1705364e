"""Encryption: the certificate that a server shows, and a client that trusts this one and no other."""

import os
import pathlib
import re
import ssl
from typing import NamedTuple

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Tls(NamedTuple):
    """What an encrypted server shows, as PEM."""

    key: bytes
    certificates: bytes
    """The server's own first, then those that signed it."""

    @property
    def own(self) -> str:
        """The server's own certificate alone."""
        found = _CERTIFICATE.search(self.certificates)
        assert found is not None
        return found[0].decode() + "\n"


def read(certificate: str | os.PathLike, key: str | os.PathLike | None = None) -> Tls:
    """What two PEM files hold, or one file that holds both.

    Raises FileNotFoundError, PermissionError, or ValueError for files with which no server could be started.
    """
    certificates = _content("certificate", certificate)
    found = certificates if key is None else _content("certificate_key", key)
    name, key_name = (repr(os.fspath(path)) for path in (certificate, key or certificate))
    if not _CERTIFICATE.search(certificates):
        raise ValueError(f"deploy: certificate: {name} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    if b"PRIVATE KEY-----" not in found:
        more = "; if it is in a file of its own, pass that as certificate_key=" if key is None else ""
        raise ValueError(f"deploy: certificate_key: {key_name} holds no private key in PEM{more}")

    def asked_for_a_password() -> str:
        # OpenSSL would ask for it on the terminal, which a server does not have.
        raise ValueError(
            f"deploy: certificate_key: the key in {key_name} is encrypted; a server takes one that is not, in a file "
            "that only its own user can read (openssl pkey -in FILE -out FILE)"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, asked_for_a_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"the key in {key_name} is not that of the first certificate in {name}"
        else:
            reason = f"{name} cannot be used with the key in {key_name}: {error.reason or error}"
        raise ValueError(f"deploy: certificate: {reason}") from None
    return Tls(found, certificates)


def trusting(certificate: str) -> ssl.SSLContext:
    """A client that believes a server with this very certificate, whatever it is called and whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate itself is known: which name it bears says nothing more. Its dates still count.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def _content(what: str, path: str | os.PathLike) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"deploy: {what}: there is no file {os.fspath(path)!r}") from None
    except IsADirectoryError:
        raise ValueError(f"deploy: {what}: {os.fspath(path)!r} is a folder; a PEM file is wanted") from None
