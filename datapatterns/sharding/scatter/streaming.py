"""Merge ordered rows of several shards while they come, holding one chunk of each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any

from sqlalchemy import CursorResult, Executable, Result
from sqlalchemy.engine.result import SimpleResultMetaData

from datapatterns.sharding.reaching.results import ShardResult
from datapatterns.sharding.scatter.answering import metadata_of
from datapatterns.sharding.scatter.ordering import Rows, merged_chunks
from datapatterns.sharding.scatter.scatter_plan import ScatterPlan


@dataclass(slots=True)
class Stream:
    """What one shard sends, chunk by chunk; the first one is there already."""

    first: Rows
    rest: Iterator[Rows]

    def chunks(self) -> Iterator[Rows]:
        """Give the chunks."""
        yield self.first
        yield from self.rest


class Streams:
    """The open cursors of one statement on several shards.

    Args:
        size: How many rows to fetch at once from each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: list[Result[Any]] = []

    def begin(self, result: Result[Any]) -> Stream:
        """Fetch the first chunk of a result that was executed with ``yield_per``."""
        self._results.append(result)
        chunks = _chunks(result, self._size)
        return Stream(next(chunks, []), chunks)

    def close(self) -> None:
        """Close all cursors; what has not been read is not sent."""
        for result in self._results:
            result.close()

    def merged(
        self,
        plan: ScatterPlan,
        statement: Executable,
        streams: Iterable[Stream],
        missing: Iterable[str],
    ) -> ShardResult:
        """Return the merged rows of all shards, which are fetched as they are read."""
        end = None if plan.limit is None else plan.offset + plan.limit
        chunks = merged_chunks([stream.chunks() for stream in streams], plan.order)
        rows = islice(chain.from_iterable(chunks), plan.offset, end)
        wanted = map(itemgetter(slice(plan.width)), rows)
        return _StreamedResult(metadata_of(statement), self._to_the_end(wanted), missing, self)

    def _to_the_end(self, rows: Iterator[Any]) -> Iterator[Any]:
        yield from rows
        self.close()


class _StreamedResult(ShardResult):
    """Rows that come from open cursors, which are closed with it, read or not."""

    def __init__(
        self,
        metadata: SimpleResultMetaData,
        rows: Iterator[Any],
        missing: Iterable[str],
        streams: Streams,
    ) -> None:
        super().__init__(metadata, (), missing)
        self.iterator = rows
        self._streams = streams

    def _soft_close(self, hard: bool = False, **kw: Any) -> None:  # noqa: ANN401, FBT001, FBT002 -- as SQLAlchemy calls it
        super()._soft_close(hard=hard, **kw)
        self._streams.close()


def _chunks(result: Result[Any], size: int) -> Iterator[Rows]:
    if isinstance(result, CursorResult) and not any(result._metadata._processors):  # noqa: SLF001 -- no public name tells whether values come as the driver gives them
        # The driver's tuples themselves: a row of SQLAlchemy's would be made once more later.
        # It has fetched one row already, to see that there is one.
        cursor = result.cursor
        if one := result.fetchmany(1):
            yield [*one, *cursor.fetchmany(size - 1)]
            while rows := cursor.fetchmany(size):
                yield rows
    else:
        yield from result.partitions(size)
