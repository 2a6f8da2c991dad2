"""Rows of several shards, with what is missing from them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData


class ShardResult(IteratorResult[Any]):
    """The merged rows of several shards.

    Attributes:
        missing_shards: The shards that did not answer, so that their rows are not among these;
            none unless the statement allowed it.
        rowcount: How many rows an UPDATE or DELETE has changed on all of them; -1 for a SELECT.
    """

    def __init__(
        self,
        metadata: SimpleResultMetaData,
        rows: Iterable[Sequence[Any]],
        missing: Iterable[str] = (),
        *,
        rowcount: int = -1,
    ) -> None:
        found = [row if type(row) is tuple else tuple(row) for row in rows]
        super().__init__(metadata, iter(found))
        self.missing_shards: tuple[str, ...] = tuple(sorted(missing))
        self.rowcount = rowcount
