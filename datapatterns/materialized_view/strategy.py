"""How a view is kept, and how one asks for it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Strategy(StrEnum):
    """How stored rows follow the tables.

    COUNTING adds the signed effect of each changed row; its price grows with what has changed.
    GROUPS recomputes the groups that changed rows belong to; its price grows with their size.
    REBUILD runs the query and writes the rows that differ; its price is that of the query.
    """

    COUNTING = "counting"
    GROUPS = "groups"
    REBUILD = "rebuild"


@dataclass(frozen=True, slots=True)
class Auto:
    """Count where that is exact, recompute groups where they can be told, rebuild elsewhere."""


@dataclass(frozen=True, slots=True)
class Incremental:
    """Count or recompute groups; refuse a query that has to be rebuilt as a whole."""


@dataclass(frozen=True, slots=True)
class Full:
    """Rebuild, whatever the query."""


Maintain: TypeAlias = Auto | Incremental | Full

AUTO = Auto()
"""How a view is kept unless it is asked for otherwise."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which strategy keeps a view, and why.

    Attributes:
        strategy: How stored rows follow the tables.
        reason: The clause that decided it, for people.
    """

    strategy: Strategy
    reason: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.strategy}: {self.reason}"
