"""Go through all rows and all entries, and tell where they do not agree.

What seems to differ is looked at again under its key's lock: what is in flight is no damage. Work
goes on meanwhile, and buckets of either side may move.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

from sqlalchemy import (
    Connection,
    Text,
    and_,
    bindparam,
    cast,
    func,
    select,
    tuple_,
)

from datapatterns.errors import IndexBusyError, StaleShardMapError
from datapatterns.index_table.over_shards.catching_up import end_decided_texts
from datapatterns.index_table.over_shards.digests import is_in
from datapatterns.index_table.over_shards.entries import Claimed, Entries
from datapatterns.index_table.over_shards.net_changes import Entry, Included, Texts
from datapatterns.index_table.over_shards.notes import (
    entries_of_rows,
    listed,
    lock_keys,
    lock_of,
    wanted_rows,
)
from datapatterns.index_table.over_shards.owners import buckets_of_rows, busy
from datapatterns.index_table.over_shards.pages import beyond
from datapatterns.index_table.over_shards.refreshing import rows_now
from datapatterns.index_table.over_shards.sharded_index import (
    CLAIM,
    CLAIMED_AT,
    ShardedIndex,
    as_text,
    from_text,
)
from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sql.metadata import declared_once
from datapatterns.transactions import fresh_reads, reading

PAGE_ROWS: Final = 2_000
"""How many rows or entries are read at once."""

LOCKED_MAX: Final = 50
"""How many keys are locked at once; whoever locks many of an index locks all of it."""

_LOOKS_MAX: Final = 20
"""How often rows are looked at that move meanwhile."""

T = TypeVar("T")

Kind: TypeAlias = Literal["missing", "different", "orphaned"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where table and index do not agree.

    Attributes:
        kind: What is wrong.
        entry: Row and key.
        included: The row's included columns, unless it is orphaned.
        seen: The entry as it stands, unless it is missing.
    """

    kind: Kind
    entry: Entry
    included: Included
    seen: Claimed | None


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry with what it carries."""

    claimed: Claimed
    included: Included


_Judge: TypeAlias = Callable[[Mapping[Entry, Included], Sequence[Entry]], list[Difference]]
"""Tells what is wrong, from what rows have under the locks of their keys."""


@dataclass(slots=True)
class Walk:
    """Goes through one index and its table once.

    Attributes:
        entries: The index.
        lock_seconds: How long to wait for whoever holds a key.
        parts: Only what is in these parts; all unless given.
        rows: How many rows were read.
        undecided: How many could not be told, as somebody has held their keys all the while.
    """

    entries: Entries
    lock_seconds: float
    parts: frozenset[int] | None = None
    rows: int = 0
    undecided: int = 0

    def over_rows(self) -> Iterator[list[Difference]]:
        """Yield, page by page, rows without entry, and such whose entry carries other values."""
        for page in self._pages(self._rows_after):
            self.rows += len(page)
            found = self._standing(entry.key for entry in page)
            suspects = [
                entry
                for entry, included in page.items()
                if entry not in found or found[entry].included != included
            ]
            yield self._confirmed(suspects, self._wrong_rows)

    def over_entries(
        self, *, older_than: Callable[[], float] | None = None
    ) -> Iterator[list[Difference]]:
        """Yield, page by page, entries that lead to no row, or to one with another key.

        Args:
            older_than: Says how many seconds ago they must have been claimed, when a page is read.
        """
        pages = self._pages(partial(self._entries_after, older_than=older_than))
        for page in pages:
            present = self._present({entry.row for entry in page})
            suspects = [entry for entry in page if entry not in present]
            yield self._confirmed(suspects, self._orphans)

    def still_wrong(self, suspects: Sequence[Entry]) -> list[Difference]:
        """Return what is wrong with the entries of these rows."""
        return self._confirmed(suspects, self._wrong_rows)

    def _pages(
        self, read: Callable[[Connection, Sequence[str] | None], tuple[Any, Any]]
    ) -> Iterator[Any]:
        access = self.entries.access
        for shard, engine in access.companions.side_engines.items():
            after: Sequence[str] | None = None
            is_last = False
            while not is_last:
                with access.asking(shard), fresh_reads(engine) as conn, reading(conn):
                    page, after = read(conn, after)
                is_last = after is None
                if page:
                    yield page

    def _rows_after(
        self, conn: Connection, after: Sequence[str] | None
    ) -> tuple[dict[Entry, Included], Sequence[str] | None]:
        index = self.entries.index
        statement = _rows(index)
        if self.parts is not None:
            base = index.definition.base
            images = dict(zip(index.names, index.as_texts(base, index.names), strict=True))
            statement = statement.where(is_in(images, index, self.parts))
        if after is not None:
            statement = statement.where(beyond(index))
        found = conn.execute(statement.limit(PAGE_ROWS), _after(after)).all()
        width = len(index.definition.columns)
        page = {
            index.entry(row[: len(index.names)]): tuple(row[len(index.names) : width])
            for row in found
        }
        return page, found[-1][width:] if len(found) == PAGE_ROWS else None

    def _entries_after(
        self,
        conn: Connection,
        after: Sequence[str] | None,
        older_than: Callable[[], float] | None,
    ) -> tuple[list[Entry], Sequence[str] | None]:
        index, own = self.entries.index, self.entries.index.table
        statement = _entries(index)
        if self.parts is not None:
            images = {name: as_text(own.c[name]) for name in index.names}
            statement = statement.where(is_in(images, index, self.parts))
        if older_than is not None:
            age = func.make_interval(0, 0, 0, 0, 0, 0, older_than())
            statement = statement.where(own.c[CLAIMED_AT] < func.now() - age)
        if after is not None:
            last = [
                from_text(cast(bindparam(f"after_{at}", type_=Text), Text), each)
                for at, each in enumerate(index.identity)
            ]
            statement = statement.where(tuple_(*index.identity) > tuple_(*last))
        found = conn.execute(statement.limit(PAGE_ROWS), _after(after)).all()
        width = len(index.names)
        last_one = found[-1][width:] if len(found) == PAGE_ROWS else None
        return [index.entry(row[:width]) for row in found], last_one

    def _standing(self, keys: Iterable[Texts]) -> dict[Entry, Standing]:
        wanted = [*keys]
        return retried(lambda: standing_with(self.entries, wanted))

    def _present(self, rows: set[Texts]) -> dict[Entry, Included]:
        return retried(lambda: rows_now(self.entries.access, self.entries.index, rows))

    def _confirmed(
        self,
        suspects: Sequence[Entry],
        judge: _Judge,
    ) -> list[Difference]:
        found: list[Difference] = []
        for begin in range(0, len(suspects), LOCKED_MAX):
            found += self._judged(suspects[begin : begin + LOCKED_MAX], judge)
        return found

    def _judged(self, batch: Sequence[Entry], judge: _Judge) -> list[Difference]:
        try:
            return retried(lambda: self._judged_once(batch, judge))
        except IndexBusyError:
            if len(batch) > 1:  # one of them is held; the others can be told
                return [each for entry in batch for each in self._judged([entry], judge)]
            self.undecided += 1
            return []

    def _judged_once(self, batch: Sequence[Entry], judge: _Judge) -> list[Difference]:
        access, index = self.entries.access, self.entries.index
        found: list[Difference] = []
        shard_map, by_shard = buckets_of_rows(access, index, {entry.row for entry in batch})
        for shard, (buckets, rows) in by_shard.items():
            mine = [entry for entry in batch if entry.row in {*rows}]
            owned = owns_buckets(shard_map, buckets, schema=access.schema)
            # Not a side engine: while this waits, entries are read on those.
            with (
                access.asking(shard),
                fresh_reads(access.engines[shard]) as conn,
                reading(conn),
            ):
                locks = {lock_of(index, entry) for entry in mine}
                with busy(index.name):
                    lock_keys(conn, locks, schema=access.schema, seconds=self.lock_seconds)
                present = entries_of_rows(conn, index, rows, owned=owned)
                if wrong := judge(present, mine):
                    # Of a key that was handed over the entry may only be prepared.
                    end_decided_texts(access, index, {each.entry.key for each in wrong})
                    wrong = judge(present, mine)
                found += wrong
        return found

    def _wrong_rows(
        self, present: Mapping[Entry, Included], batch: Sequence[Entry]
    ) -> list[Difference]:
        still = [entry for entry in batch if entry in present]
        there = standing_with(self.entries, [entry.key for entry in still])
        found = []
        for entry in still:
            if entry not in there:
                found.append(Difference("missing", entry, present[entry], None))
            elif there[entry].included != present[entry]:
                found.append(Difference("different", entry, present[entry], there[entry].claimed))
        return found

    def _orphans(
        self, present: Mapping[Entry, Included], batch: Sequence[Entry]
    ) -> list[Difference]:
        gone = [entry for entry in batch if entry not in present]
        there = standing_with(self.entries, [entry.key for entry in gone])
        return [
            Difference("orphaned", entry, (), there[entry].claimed)
            for entry in gone
            if entry in there
        ]


def standing_with(entries: Entries, keys: Iterable[Texts]) -> dict[Entry, Standing]:
    """Return the entries of ``keys`` as they stand, with what they carry.

    Raises:
        ShardUnavailableError: A shard does not answer.
        StaleShardMapError: Entries have moved.
    """
    index = entries.index
    found: dict[Entry, Standing] = {}
    for shard, mine in entries.by_shard(keys).items():
        with entries.reading(shard, mine) as conn:
            rows = conn.execute(_standing(index), listed(mine, len(index.key_columns)))
            for *texts, claim in rows:
                entry = index.entry(texts)
                found[entry] = Standing(Claimed(entry, claim), tuple(texts[len(index.names) :]))
    return found


def retried(look: Callable[[], T]) -> T:
    """Return what ``look`` finds, also if buckets are handed over meanwhile."""
    for _ in range(_LOOKS_MAX - 1):
        try:
            return look()
        except StaleShardMapError:
            continue  # the map has been read again
    return look()


def _after(after: Sequence[str] | None) -> dict[str, str]:
    return {} if after is None else {f"after_{at}": text for at, text in enumerate(after)}


@declared_once
def _rows(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    base = index.definition.base
    primary = list(base.primary_key.columns)
    return (
        select(*index.as_texts(base, index.definition.columns), *map(as_text, primary))
        .where(index.definition.is_indexed(base))
        .order_by(*primary)
    )


@declared_once
def _entries(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    identity = index.identity
    return select(*map(as_text, index.entry_columns), *map(as_text, identity)).order_by(*identity)


@declared_once
def _standing(index: ShardedIndex) -> Any:  # noqa: ANN401 -- a Select of as many columns
    wanted = wanted_rows(len(index.key_columns))
    same = [own == from_text(wanted.c[f"c{at}"], own) for at, own in enumerate(index.key_columns)]
    columns = [index.table.c[name] for name in index.definition.columns]
    return select(*map(as_text, columns), index.table.c[CLAIM]).select_from(
        wanted.join(index.table, and_(*same))
    )
