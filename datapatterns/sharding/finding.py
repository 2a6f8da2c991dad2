"""Rows of a statement that are found before it is sent, by something else than its shard key."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy import ColumnElement

if TYPE_CHECKING:
    from datapatterns.sharding.companions import SessionOverShards

OnIndexDown = Literal["scatter", "raise"]
"""What a read does if the shard of an index does not answer: ask all shards if it may, or raise."""


@dataclass(frozen=True, slots=True)
class FoundRows:
    """What an index says about the rows of a statement.

    Attributes:
        rows: The primary keys of all rows that the statement can use, and maybe of others.
        version: Equal to that of another look unless something has changed in between.
    """

    rows: Sequence[tuple[Any, ...]]
    version: Hashable


class Finding(Protocol):
    """A way to find the rows of one statement."""

    @property
    def index(self) -> str:
        """What finds them."""

    @property
    def on_down(self) -> OnIndexDown:
        """What to do if it does not answer."""

    def find(self, session: "SessionOverShards", *, again: bool = False) -> FoundRows | None:
        """Return what is committed by now, or was written by ``session``; None if it can't tell.

        Args:
            session: Which sees them.
            again: Whether what was found before may have led to a row in vain: then what is
                decided, and not seen yet, is ended first.

        Raises:
            StaleShardMapError: What it looks at moves all the time.
            UnavailableError: It does not answer.
        """

    def among(self, rows: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
        """Return the condition that a row of the statement is one of these."""
