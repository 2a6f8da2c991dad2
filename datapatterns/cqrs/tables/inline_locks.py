"""The advisory locks by which appends keep projections inline, and are told from each other."""

from hashlib import sha256


def mode_lock(schema: str, projection: str) -> int:
    """Return the lock on how a projection is kept: appends share it, who changes that does not."""
    return _lock(schema, "mode", projection)


def keys_lock(schema: str, projection: str) -> int:
    """Return the lock on all rows of a projection: one for each of them would be too many."""
    return _lock(schema, "keys", projection)


def key_lock(schema: str, projection: str, digest: bytes) -> int:
    """Return the lock on the rows of one key. Two keys may have one, and then wait in vain."""
    return _lock(schema, f"key:{digest.hex()}", projection)


def _lock(schema: str, what: str, projection: str) -> int:
    # PostgreSQL knows advisory locks by a number of 64 bits, one space for all that use them.
    digest = sha256(f"{schema}.projection.{projection}.{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
