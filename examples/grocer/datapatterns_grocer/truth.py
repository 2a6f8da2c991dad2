"""Every derived figure beside what DuckDB computes from the files, to the cent."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

EXAMPLES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one comparison.

    Attributes:
        rows: How many rows were compared.
        missing: Rows that the files have and the derived data lacks.
        unexpected: Rows that the derived data has and the files lack.
    """

    what: str
    rows: int
    missing: int
    unexpected: int
    examples: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether both sides hold the same rows, each as often."""
        return not self.missing and not self.unexpected


def compare(
    what: str, *, derived: Iterable[Sequence[Any]], truth: Iterable[Sequence[Any]]
) -> Check:
    """Compare two bags of rows, both ways; the order does not matter, how often does."""
    have, want = Counter(map(tuple, derived)), Counter(map(tuple, truth))
    missing, unexpected = want - have, have - want
    shown = [f"missing {row}" for row in list(missing)[:EXAMPLES_SHOWN]]
    shown += [f"unexpected {row}" for row in list(unexpected)[:EXAMPLES_SHOWN]]
    return Check(what, want.total(), missing.total(), unexpected.total(), tuple(shown))
