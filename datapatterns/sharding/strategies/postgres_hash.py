"""The hash that PostgreSQL partitions by, computed in Python.

A port of ``hash_bytes_extended`` and ``hash_bytes_uint32_extended`` (PostgreSQL's
``src/common/hashfn.c``; the algorithm is Bob Jenkins's lookup3, 2006), and of the way
``PARTITION BY HASH`` uses them: with a seed, and combined with the hash of no columns before it.
Holds for servers on little-endian machines, UTF-8 and text under a deterministic collation.
"""

from functools import lru_cache

_SEED = 0x7A5B22367996DCFD
_COMBINED = 0x49A0F4DD15E5A8E3
_MASK = 0xFFFFFFFF
_BIGINT_LIMIT = 2**63


def partition_hash_of_int(number: int) -> int:
    """Return a number whose low 63 bits PostgreSQL would partition ``number`` by.

    Raises:
        ValueError: ``number`` is no ``bigint``.
    """
    if not -_BIGINT_LIMIT <= number < _BIGINT_LIMIT:
        raise ValueError(f"{number} does not fit into a bigint")
    # PostgreSQL folds the halves so that an integer and a bigint of equal value hash alike.
    high = (number >> 32) & _MASK
    low = (number ^ (high if number >= 0 else ~high)) & _MASK
    a, b, c = _start(4)
    return _finish((a + low) & _MASK, b, c) + _COMBINED


def partition_hash_of_bytes(data: bytes) -> int:
    """Return a number whose low 63 bits PostgreSQL would partition by.

    Text is hashed as its UTF-8 bytes, a uuid as its sixteen.
    """
    a, b, c = _start(len(data))
    whole = len(data) - len(data) % 12
    for at in range(0, whole, 12):
        a = (a + int.from_bytes(data[at : at + 4], "little")) & _MASK
        b = (b + int.from_bytes(data[at + 4 : at + 8], "little")) & _MASK
        c = (c + int.from_bytes(data[at + 8 : at + 12], "little")) & _MASK
        a, b, c = _mix(a, b, c)
    if rest := data[whole:]:
        a = (a + int.from_bytes(rest[:4], "little")) & _MASK
        b = (b + int.from_bytes(rest[4:8], "little")) & _MASK
        # The lowest byte of the last word stands for the length, which is in c already.
        c = (c + (int.from_bytes(rest[8:], "little") << 8)) & _MASK
    return _finish(a, b, c) + _COMBINED


@lru_cache(maxsize=256)
def _start(length: int) -> tuple[int, int, int]:
    word = (0x9E3779B9 + length + 3923095) & _MASK
    return _mix((word + (_SEED >> 32)) & _MASK, (word + (_SEED & _MASK)) & _MASK, word)


# The rotations are written out: a helper would double the time of every routed statement.
def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = ((a - c) & _MASK) ^ ((c << 4 | c >> 28) & _MASK)
    c = (c + b) & _MASK
    b = ((b - a) & _MASK) ^ ((a << 6 | a >> 26) & _MASK)
    a = (a + c) & _MASK
    c = ((c - b) & _MASK) ^ ((b << 8 | b >> 24) & _MASK)
    b = (b + a) & _MASK
    a = ((a - c) & _MASK) ^ ((c << 16 | c >> 16) & _MASK)
    c = (c + b) & _MASK
    b = ((b - a) & _MASK) ^ ((a << 19 | a >> 13) & _MASK)
    a = (a + c) & _MASK
    c = ((c - b) & _MASK) ^ ((b << 4 | b >> 28) & _MASK)
    b = (b + a) & _MASK
    return a, b, c


def _finish(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - (b << 14 | b >> 18)) & _MASK
    a = ((a ^ c) - (c << 11 | c >> 21)) & _MASK
    b = ((b ^ a) - (a << 25 | a >> 7)) & _MASK
    c = ((c ^ b) - (b << 16 | b >> 16)) & _MASK
    a = ((a ^ c) - (c << 4 | c >> 28)) & _MASK
    b = ((b ^ a) - (a << 14 | a >> 18)) & _MASK
    c = ((c ^ b) - (b << 24 | b >> 8)) & _MASK
    return (b << 32) | c
