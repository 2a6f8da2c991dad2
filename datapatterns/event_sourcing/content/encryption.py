"""Encrypt what events say under keys of yours, which rotate without rewriting events."""

import hmac
from collections.abc import Mapping
from functools import cache
from secrets import token_bytes
from typing import Any, Final

from datapatterns.errors import EncryptionKeyError, MissingExtraError, PayloadError

KEY_BYTES: Final = 32
"""AES-256."""

_FORMAT: Final = b"\x01"
_NONCE_BYTES: Final = 12
_SALT_BYTES: Final = 16
_TAG_BYTES: Final = 16
_KEY_ID_BYTES_MAX: Final = 100


class KeyRing:
    """Keys by name: one to write with, the others to read what was written before.

    Args:
        keys: 32 random bytes each, under names that are stored with what they encrypt.
        writing: The name of the one to write with.

    Raises:
        EncryptionKeyError: A name or a key cannot be used, or the one to write with is missing.
    """

    def __init__(self, keys: Mapping[str, bytes], *, writing: str) -> None:
        for key_id, key in keys.items():
            if not 1 <= len(key_id.encode()) <= _KEY_ID_BYTES_MAX or not key_id.isprintable():
                raise EncryptionKeyError(key_id[:100], "has no usable name; use 1 to 100 letters")
            if len(key) != KEY_BYTES:
                raise EncryptionKeyError(
                    key_id, f"must be {KEY_BYTES} random bytes; make it with secrets.token_bytes"
                )
        self._keys = dict(keys)
        self.writing = writing
        self.key(writing)

    def __repr__(self) -> str:
        return f"KeyRing({sorted(self._keys)}, writing={self.writing!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("keys are not pickled; make the key ring where it is needed")

    def key(self, key_id: str) -> bytes:
        """Return the key of that name.

        Raises:
            EncryptionKeyError: It is not in the ring.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise EncryptionKeyError(key_id, "is not in the key ring; add it, to read with it")
        return key


class Cipher:
    """AES-256-GCM under one key, with random nonces: use a key for less than 2**32 texts."""

    __slots__ = ("_aes", "_forged")

    def __init__(self, key: bytes) -> None:
        aes_gcm, self._forged = load_aes_gcm()
        self._aes = aes_gcm(key)

    def encrypt(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return a nonce and what only the key can read, and only where ``bound_to`` is known."""
        nonce = token_bytes(_NONCE_BYTES)
        sealed: bytes = self._aes.encrypt(nonce, data, bound_to)
        return nonce + sealed

    def decrypt(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            ValueError: The key, the text or ``bound_to`` is another one.
        """
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            raise ValueError("too short")
        try:
            data: bytes = self._aes.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)
        except self._forged:
            raise ValueError("not authentic") from None
        return data


@cache
def load_aes_gcm() -> tuple[Any, type[Exception]]:
    """Return the cipher, and what it raises when a text is not authentic.

    Raises:
        MissingExtraError: The extra ``encryption`` is not installed.
    """
    try:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- an extra
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 -- an extra
    except ImportError:
        raise MissingExtraError("cryptography", extra="encryption") from None
    return AESGCM, InvalidTag


class Encryption:
    """AES-256-GCM under a key of a key ring, bound to the event that it belongs to.

    Every payload gets a key of its own, derived from that of the ring with 16 random bytes: a key
    of the ring can serve for any number of events.

    Raises:
        MissingExtraError: The extra ``encryption`` is not installed.
    """

    id: Final = 4
    name: Final = "Encryption"
    optional: Final = False

    def __init__(self, keys: KeyRing) -> None:
        load_aes_gcm()
        self._keys = keys

    def __repr__(self) -> str:
        return f"Encryption({self._keys!r})"

    def encode(self, data: bytes, *, bound_to: bytes) -> bytes:
        """Return the name of the key, a salt and what only the key can read."""
        key_id = self._keys.writing.encode()
        head = _FORMAT + bytes([len(key_id)]) + key_id + token_bytes(_SALT_BYTES)
        return head + self._cipher(head).encrypt(data, bound_to=head + bound_to)

    def decode(self, payload: bytes, *, bound_to: bytes, bytes_max: int) -> bytes:
        """Return what was encrypted."""
        if len(payload) > bytes_max + 1_000:
            raise PayloadError(self.name, f"it is larger than {bytes_max} bytes")
        length = 2 + sum(payload[1:2]) + _SALT_BYTES
        head = payload[:length]
        if payload[:1] != _FORMAT or len(head) < length:
            raise PayloadError(self.name, "it has no known beginning")
        try:
            return self._cipher(head).decrypt(payload[length:], bound_to=head + bound_to)
        except ValueError:
            raise PayloadError(
                self.name, "it was changed, or belongs to another event or key"
            ) from None

    def _cipher(self, head: bytes) -> Cipher:
        try:
            key_id = head[2:-_SALT_BYTES].decode()
        except UnicodeDecodeError:
            raise PayloadError(self.name, "its key has no name") from None
        derived = hmac.digest(self._keys.key(key_id), b"datapatterns payload" + head, "sha256")
        return Cipher(derived)
