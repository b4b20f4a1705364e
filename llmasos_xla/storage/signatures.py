"""Ed25519 signatures of bundles; the package `cryptography` computes them."""

import os
import pathlib
from typing import Any

from llmasos_xla.errors import missing_package


def new_key(path: str | os.PathLike) -> str:
    """Writes a new private key to `path`, for its owner's eyes alone, and returns the public key as PEM text.

    Raises FileExistsError rather than write over a key.
    """
    serialization, ed25519 = _parts()
    private = ed25519.Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(text)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public.decode()


def private_key(key: Any) -> Any:
    """A private key from PEM text or the path of a file of it; raises ValueError for anything else."""
    serialization, ed25519 = _parts()
    try:
        found = serialization.load_pem_private_key(_pem(key), None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"sign: a private ed25519 key in PEM is wanted: {error}") from None
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise ValueError(f"sign: a private ed25519 key is wanted, a key of another kind came ({type(found).__name__})")
    return found


def public_key(key: Any) -> Any:
    """A public key from PEM text or the path of a file of it; raises ValueError for anything else."""
    serialization, ed25519 = _parts()
    try:
        found = serialization.load_pem_public_key(_pem(key))
    except (ValueError, TypeError) as error:
        raise ValueError(f"verify: a public ed25519 key in PEM is wanted: {error}") from None
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise ValueError(f"verify: a public ed25519 key is wanted, a key of another kind came ({type(found).__name__})")
    return found


def check(key: Any, message: bytes, signature: bytes | None, who: str) -> None:
    """Does nothing without a key; raises PermissionError unless `key` signed the message."""
    if key is None:
        return
    from cryptography.exceptions import InvalidSignature

    public = public_key(key)
    if signature is None:
        raise PermissionError(f"bundle: {who!r} is not signed, and a signature is asked for")
    try:
        public.verify(signature, message)
    except InvalidSignature:
        raise PermissionError(f"bundle: {who!r} was not signed by this key, or was changed since") from None


def _pem(key: Any) -> bytes:
    if isinstance(key, bytes):
        return key
    text = os.fspath(key)
    return text.encode() if "-----BEGIN" in text else pathlib.Path(text).read_bytes()


def _parts() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise missing_package("signatures", "cryptography", "signing", "leave key= away") from None
    return serialization, ed25519
