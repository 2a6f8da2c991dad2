"""Wrap the keys of persons under a master key, which the database never sees."""

from typing import Protocol
from uuid import UUID

from datapatterns.event_sourcing.content.encryption import KEY_BYTES, Encryption, KeyRing


class KeyWrapper(Protocol):
    """Encrypts data keys, usually by asking a key management service.

    It is called inside operations, so on the event loop of an async caller: answer fast, or await
    with ``sqlalchemy.util.await_only``.
    """

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        """Return what can be stored; ``bound_to`` says whose it is (an encryption context)."""
        ...

    def unwrap(self, wrapped: bytes, *, bound_to: bytes) -> bytes:
        """Return the data key.

        Raises:
            Exception: It cannot be had; the operation ends with this.
        """
        ...


class LocalKeyWrapper:
    """Wraps keys under a master key that the process holds; for when there is no such service.

    Args:
        master_keys: The one to wrap with, and older ones. After adding one, see
            `Subjects.rewrap`.

    Raises:
        MissingExtraError: The extra ``encryption`` is not installed.
    """

    def __init__(self, master_keys: KeyRing) -> None:
        self._encryption = Encryption(master_keys)

    def __repr__(self) -> str:
        return f"LocalKeyWrapper({self._encryption!r})"

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        """Return the data key under the master key."""
        return self._encryption.encode(data_key, bound_to=bound_to)

    def unwrap(self, wrapped: bytes, *, bound_to: bytes) -> bytes:
        """Return the data key.

        Raises:
            EncryptionKeyError: The master key that it was wrapped with is not at hand.
            PayloadError: It was changed, or is somebody else's.
        """
        return self._encryption.decode(wrapped, bound_to=bound_to, bytes_max=KEY_BYTES)


Subject = str | int | UUID
"""Names a person, as the field of an event does."""
