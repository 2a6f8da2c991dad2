"""Find rows through an index over shards: of one key page by page, of many keys at once.

An entry may lead nowhere, so every row is read with its key, and counts only if that is the one of
the entry. If it is not, the key may have been handed over in between: the entries are read once
more, and followed if they are others by then.

Each shard that has entries is asked once, all at the same time, then each that has rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Integer, Select, bindparam, inspect, select, true, tuple_
from sqlalchemy.orm import Session

from datapatterns.errors import IndexBusyError
from datapatterns.index_table.entries import IndexEntry
from datapatterns.index_table.looking_up import LOOKUP_KEYS_MAX, check_limit
from datapatterns.index_table.over_shards.catching_up import end_decided
from datapatterns.index_table.over_shards.finding import (
    EntryFound,
    Key,
    ask_index,
    entry_found,
    is_among,
    listed_keys,
    rows_given,
)
from datapatterns.index_table.over_shards.readable import may_be_read, telling_state
from datapatterns.index_table.over_shards.sharded_index import CLAIM, ShardedIndex
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import over_shards
from datapatterns.sql.metadata import declared_once

_LOOKS_MAX: Final = 5
"""How often rows are looked for whose keys go from row to row."""

_NO_INDEX: Final = {"index": None}

Primary = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A look-up in a session.

    Attributes:
        session: One over the shards.
        index: Which index.
        entity: The mapped class whose objects are wanted; None for rows of the table.
    """

    session: Session
    index: ShardedIndex
    entity: type[Any] | None = None

    def __post_init__(self) -> None:
        base = self.index.definition.base
        if self.entity is not None and inspect(self.entity).local_table is not base:
            raise ValueError(f"{self.entity.__name__} is not mapped to {base.fullname}")

    def page(self, key: Key, *, limit: int, after: Sequence[Any] | None) -> list[Any]:
        """Return what has ``key``, by ascending primary key, at most ``limit``.

        What the session has written is found as it has written it, though others do not find it
        yet.

        Raises:
            BranchesUnsettledError: The key was handed over, and its shard can't show it yet.
            IndexBusyError: The key goes from row to row all the time.
            ShardIndexNotReadyError: It is not built yet, or not any more.
            ShardKeyError: The first column of the key is of another type.
            ShardUnavailableError: A shard does not answer.
        """
        self._begin([key])
        access, start = over_shards(self.session).shard_access, after
        found: dict[Primary, Any] = {}
        ended = False
        while not ended and len(found) < limit:
            wanted = limit - len(found)
            page = read_entries(access, self.index, [key], limit=wanted, after=after)
            found |= self._followed(self._mine(page), limit=wanted, after=after)
            # Entries that lead nowhere take up the place of others.
            ended = len(page) < wanted or self.index.definition.unique
            after = page[-1].row if page else after
        own = [
            primary
            for primary in rows_given(over_shards(self.session), self.index, [key])
            # What comes after the last page is for the next one.
            if (start is None or primary > tuple(start))
            and (ended or after is None or primary <= tuple(after))
        ]
        found |= {primary: thing for primary, (thing, its) in self._read(own).items() if its == key}
        # Python orders values of these types as the server does.
        return [found[primary] for primary in sorted(found)][:limit]

    def many(self, keys: Iterable[Key], *, limit_per_key: int) -> list[list[Any]]:
        """Return for each of ``keys`` what `page` would.

        Raises:
            BranchesUnsettledError: A key was handed over, and its shard can't show it yet.
            IndexBusyError: A key goes from row to row all the time.
            ShardKeyError: The first column of a key is of another type.
            ShardUnavailableError: A shard does not answer.
            ValueError: They are too many.
        """
        asked = list(keys)
        if len(asked) > LOOKUP_KEYS_MAX:
            raise ValueError(f"{len(asked)} keys; ask for at most {LOOKUP_KEYS_MAX} at once")
        self._begin(asked)
        if not asked:
            return []
        context = over_shards(self.session)
        page = self._mine(
            read_entries(context.shard_access, self.index, asked, limit=limit_per_key)
        )
        own = rows_given(context, self.index, asked)
        by_key: dict[Key, dict[Primary, Any]] = {key: {} for key in asked}
        for primary, (thing, key) in self._read_followed(page, own, limit=limit_per_key).items():
            if key in by_key:
                by_key[key][primary] = thing
        return [[its[at] for at in sorted(its)][:limit_per_key] for its in by_key.values()]

    def _begin(self, keys: Iterable[Key]) -> None:
        index = self.index
        for key in keys:
            if len(key) != len(index.key_columns):
                raise ValueError(f"a key of index {index.name!r} is {list(index.definition.key)}")
            if None in key:
                raise ValueError(f"a key of {index.name} has no NULLs: such rows aren't indexed")
        if self.session.autoflush:
            self.session.flush()

    def _mine(self, entries: Sequence[EntryFound]) -> list[EntryFound]:
        """Return those of the key that a session is pinned to, which sees no other rows."""
        context, base = over_shards(self.session), self.index.definition.base
        shard_key = context.shard_access.placements.shard_key(base)
        if context.only_key is None or shard_key is None:
            return list(entries)
        names = self.index.definition.primary_key
        return [
            each
            for each in entries
            if shard_key.value_in(dict(zip(names, each.row, strict=True))) == context.only_key
        ]

    def _followed(
        self, page: Sequence[EntryFound], *, limit: int, after: Sequence[Any] | None
    ) -> dict[Primary, Any]:
        keys = {each.key for each in page}
        found = self._read_followed(page, [], limit=limit, after=after)
        return {primary: thing for primary, (thing, key) in found.items() if key in keys}

    def _read_followed(
        self,
        page: Sequence[EntryFound],
        own: Sequence[Primary],
        *,
        limit: int,
        after: Sequence[Any] | None = None,
    ) -> dict[Primary, tuple[Any, Key]]:
        """Return what entries lead to, and rows of the session's own, with their keys."""
        access = over_shards(self.session).shard_access
        entries = list(page)
        for _ in range(_LOOKS_MAX):
            found = self._read([*(each.row for each in entries), *own])
            missed = {
                each.key for each in entries if found.get(each.row, (None, ()))[1] != each.key
            }
            if not missed:
                return found
            before = {each for each in entries if each.key in missed}
            end_decided(access, self.index, missed)
            again = self._mine(
                read_entries(access, self.index, [*missed], limit=limit, after=after)
            )
            if before.issuperset(again):
                return found
            entries = [*(each for each in entries if each.key not in missed), *again]
        raise IndexBusyError(self.index.name)

    def _read(self, rows: Sequence[Primary]) -> dict[Primary, tuple[Any, Key]]:
        if not rows:
            return {}
        definition = self.index.definition
        base = definition.base
        names = list(definition.key)
        computed = definition.projection(base)
        primary = [own.label(f"datapatterns_row_{at}") for at, own in enumerate(base.primary_key)]
        key = [computed[name].label(f"datapatterns_key_{at}") for at, name in enumerate(names)]
        what: list[Any] = [*base.columns] if self.entity is None else [self.entity]
        of_row = [own.name for own in base.primary_key]
        statement = select(*what, *primary, *key).where(
            is_among(base, of_row, list(dict.fromkeys(rows))), definition.is_indexed(base)
        )
        frozen = self.session.execute(statement, execution_options=_NO_INDEX).freeze()
        things = frozen().columns(*range(len(what))).all()
        after_what = len(what) + len(primary)
        described = frozen().columns(*range(len(what), after_what + len(key))).all()
        return {
            tuple(row[: len(primary)]): (
                thing if self.entity is None else thing[0],
                tuple(row[len(primary) :]),
            )
            for thing, row in zip(things, described, strict=True)
        }


def keys_over_shards(
    session: Session,
    index: ShardedIndex,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[IndexEntry]:
    """Return the entries with ``key`` by ascending primary key; some may lead nowhere."""
    check_limit(limit)
    access = over_shards(session).shard_access
    statement = _page(index, paged=after is not None)
    with telling_state(index):
        answers = ask_index(access, index, [tuple(key)], statement, _place(limit, after))
    of_entry = len(index.key_columns) + len(index.row_columns)
    included = index.definition.include
    return [
        IndexEntry(
            key=tuple(row[: len(index.key_columns)]),
            primary_key=tuple(row[len(index.key_columns) : of_entry]),
            included=dict(zip(included, row[of_entry:-1], strict=True)),
        )
        for rows in answers
        for row in rows
    ]


def read_entries(
    access: ShardAccess,
    index: ShardedIndex,
    keys: Sequence[Key],
    *,
    limit: int,
    after: Sequence[Any] | None = None,
) -> list[EntryFound]:
    """Return the first entries of each of ``keys``, behind a primary key."""
    statement = _page(index, paged=after is not None)
    with telling_state(index):
        answers = ask_index(access, index, keys, statement, _place(limit, after))
    return [entry_found(index, row) for rows in answers for row in rows]


def _place(limit: int, after: Sequence[Any] | None) -> dict[str, Any]:
    return {"row_limit": limit, **{f"after_{at}": value for at, value in enumerate(after or ())}}


def _page(index: ShardedIndex, *, paged: bool) -> Select[Any]:
    return _next_page(index) if paged else _first_page(index)


@declared_once
def _first_page(index: ShardedIndex) -> Select[Any]:
    return _pages(index)


@declared_once
def _next_page(index: ShardedIndex) -> Select[Any]:
    return _pages(index, paged=True)


def _pages(index: ShardedIndex, *, paged: bool = False) -> Select[Any]:
    wanted, table = listed_keys(index), index.table
    same = [own == wanted.c[f"k{at}"] for at, own in enumerate(index.key_columns)]
    entries = select(
        *(own.label(f"key_{at}") for at, own in enumerate(index.key_columns)),
        *(own.label(f"row_{at}") for at, own in enumerate(index.row_columns)),
        *(table.c[name].label(f"more_{at}") for at, name in enumerate(index.definition.include)),
        table.c[CLAIM],
    ).where(*same)
    if paged:
        places = [
            bindparam(f"after_{at}", type_=own.type) for at, own in enumerate(index.row_columns)
        ]
        entries = entries.where(tuple_(*index.row_columns) > tuple_(*places))
    found = (
        entries.order_by(*index.row_columns)
        .limit(bindparam("row_limit", type_=Integer))
        .lateral("found")
    )
    order = [found.c[f"row_{at}"] for at in range(len(index.row_columns))]
    return (
        select(*found.c)
        .select_from(wanted.join(found, true()))
        .where(may_be_read(index))
        .order_by(*order)
    )
