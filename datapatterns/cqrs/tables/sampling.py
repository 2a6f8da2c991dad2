"""Which keys of a read model are compared where not all are; without a database."""

import secrets
from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from datapatterns.cqrs.running.segments import key_digest

SEEDS: Final = 2**32
"""How many samples of one size there are."""

_HASHES: Final = 2**64


@dataclass(frozen=True, slots=True)
class Sample:
    """A share of all keys, chosen by their hash: the same ones in every process, for one seed.

    >>> milk = Sample(0.5, seed=1), Sample(0.5, seed=3)
    >>> [sample.takes("milk") for sample in milk]
    [True, False]
    """

    share: float
    seed: int

    def takes(self, key: Hashable) -> bool:
        """Return whether ``key`` is among them.

        Raises:
            SegmentKeyError: Keys of this kind do not look the same in every process.
        """
        # Not by the hash of segments alone: that has 16 bits, and no seed would change it.
        salted = sha256(self.seed.to_bytes(8, "big") + key_digest(key)).digest()
        return int.from_bytes(salted[:8], "big") < self.share * _HASHES


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is to be compared.

    Attributes:
        amount: A share of all keys if it is a float, about so many rows if it is an integer; None
            for all.
        seed: Which keys; None for any.

    Raises:
        ValueError: That is no share, or no number of rows, or no seed.
    """

    amount: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        amount = self.amount
        if amount is not None and not amount > 0:
            raise ValueError(f"a sample of {amount} shows nothing; ask for more than 0")
        if isinstance(amount, float) and not amount <= 1:
            raise ValueError(f"{amount} is no share; ask for at most 1.0, or for a number of rows")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise ValueError(f"a seed is a whole number from 0 to {SEEDS - 1}")

    def of(self, rows: int) -> Sample | None:
        """Return the sample to take where there are so many rows; None for all of them."""
        share = self.amount
        if share is None:
            return None
        if isinstance(share, int):
            share = min(1.0, share / max(rows, 1))
        return Sample(share, secrets.randbelow(SEEDS) if self.seed is None else self.seed)


EVERYTHING: Final = Wanted()
"""All rows are compared."""
