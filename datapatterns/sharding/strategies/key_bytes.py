"""Keys as bytes that sort like the keys: how maps keep them, whatever their type."""

from uuid import UUID

from datapatterns.sharding.strategies.strategy import Key, KeyPart

_BIGINT_LIMIT = 2**63


def encoded(key: Key) -> bytes:
    """Return ``key`` as bytes; of two keys of one type the lower one has the lower bytes.

    Text sorts by code points, as under ``COLLATE "C"``.

    Raises:
        TypeError: It is two columns, which no map keeps by key.
        OverflowError: It is an integer that no ``bigint`` can hold.
    """
    match key:
        case int():
            return (key + _BIGINT_LIMIT).to_bytes(8, "big")
        case str():
            return key.encode()
        case UUID():
            return key.bytes
        case tuple():
            raise TypeError("keys of two columns are placed for good, so no map keeps them")


def decoded(key_bytes: bytes, key_type: type[KeyPart]) -> KeyPart:
    """Return the key that `encoded` gave these bytes.

    Raises:
        ValueError: They stand for no key of this type.
    """
    if key_type is str:
        return key_bytes.decode()
    if key_type is UUID:
        return UUID(bytes=key_bytes)
    if len(key_bytes) != 8:  # noqa: PLR2004 -- of a bigint
        raise ValueError(f"{len(key_bytes)} bytes are no bigint")
    return int.from_bytes(key_bytes, "big") - _BIGINT_LIMIT
