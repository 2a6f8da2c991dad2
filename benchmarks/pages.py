"""What the benchmarks of caches keep: a page of 200 bytes, and one of 10 kB."""

from dataclasses import dataclass

import msgspec

TTL_SECONDS = 3_600
NUMBER = 819312
SIZES = (200, 10_000)
"""In bytes, as they are stored."""


@dataclass(frozen=True, slots=True)
class Page:
    """About as much as a product page needs."""

    product_id: int
    title: str
    text: str
    cents: int


encode = msgspec.msgpack.encode
decode = msgspec.msgpack.Decoder(Page).decode


def page_of(size: int) -> Page:
    """Return a page of so many bytes."""
    empty = len(encode(Page(NUMBER, "Milk", "", 149)))
    return Page(NUMBER, "Milk", "m" * (size - empty), 149)  # and a byte or two of its length
