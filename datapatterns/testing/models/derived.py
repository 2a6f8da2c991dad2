"""What is derived from rows, as a consistency machine checks it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from redis import Redis
from sqlalchemy import CompoundSelect, Connection, Engine, Select, Table, delete, except_all, select

from datapatterns.cache_aside.cached_function import CachedFunction
from datapatterns.change_log import ChangeLog
from datapatterns.errors import ConfigurationError
from datapatterns.index_table import IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.testing.models.projected import table_of

Chore: TypeAlias = Callable[[], object]
"""Something that keeps what is derived, such as a refresh; opens its own transaction."""
Query: TypeAlias = Select[*tuple[Any, ...]] | CompoundSelect[Any]

_DIFFERENCES_MAX = 10
_CHUNK_ROWS = 2


class Derived(Protocol):
    """What is derived from rows; five questions, and any answer to them can be tested."""

    def chores(self, engine: Engine) -> Mapping[str, Chore]:
        """Return what may happen at any time beside the writers, by name."""
        ...

    def settle(self, engine: Engine) -> None:
        """Do what must have been done before it has to be right."""
        ...

    def differences(self, engine: Engine) -> list[str]:
        """Return what is wrong with it, while nobody writes."""
        ...

    def reset(self, engine: Engine) -> None:
        """Make it the same for each example, after its rows have been deleted.

        Whatever the last example has left: if that is wrong it is no fault of the next one.
        """
        ...


@dataclass(frozen=True)
class DerivedView:
    """A `MaterializedView`: after a refresh, as multisets, what its query gives."""

    view: MaterializedView

    def chores(self, engine: Engine) -> Mapping[str, Chore]:
        """Refresh it, rebuild it, tidy its log."""

        def tidy() -> None:
            with engine.begin() as conn:
                ChangeLog(self.view.schema).collect_garbage(conn)

        return {
            "refresh": partial(self.settle, engine),
            "rebuild": partial(self._rebuild, engine),
            "tidy": tidy,
        }

    def settle(self, engine: Engine) -> None:
        """Refresh it."""
        with engine.begin() as conn:
            self.view.refresh(conn)

    def differences(self, engine: Engine) -> list[str]:
        """Compare both ways."""
        with engine.begin() as conn:
            return _different(conn, select(self.view.table), self.view._definition.query)  # noqa: SLF001 -- ours

    def reset(self, engine: Engine) -> None:
        """Refresh it; rebuild it if that has not made it right."""
        self.settle(engine)
        if self.differences(engine):
            self._rebuild(engine)

    def _rebuild(self, engine: Engine) -> None:
        with engine.begin() as conn:
            self.view.rebuild(conn)


@dataclass(frozen=True)
class DerivedIndex:
    """An `IndexTable`: every row is in it once and is found by it, and nothing else is in it."""

    index: IndexTable

    def chores(self, engine: Engine) -> Mapping[str, Chore]:
        """Build it anew, chunk by chunk; repair it, if it is unique; catch up, if it is behind."""
        # While a unique index is built, two rows may have one key: activating it is refused then.
        if self.index.definition.unique:
            return {"repair": partial(self._repair, engine)}
        if self.index.definition.mode == "async":
            return {
                "build": partial(self._build, engine),
                "catch_up": partial(self.settle, engine),
            }
        return {"build": partial(self._build, engine)}

    def settle(self, engine: Engine) -> None:
        """Take in what is pending, if it is kept behind its writers."""
        with engine.begin() as conn:
            self.index.catch_up(conn)

    def differences(self, engine: Engine) -> list[str]:
        """Verify it, and look up what is in it."""
        with engine.begin() as conn:
            report = self.index.verify(conn)
            found = [f"{d.kind}: row {d.primary_key} under {d.key}" for d in report.samples]
            entries = self.index.keys(conn, limit=1_000)
            rows = self.index.lookup_many(conn, [_unpacked(entry.key) for entry in entries])
        names = [c.key for c in self.index.definition.base.primary_key]
        reached = {
            key: {tuple(getattr(row, n) for n in names) for row in rows[key]} for key in rows
        }
        return found + [
            f"not found: row {entry.primary_key} under {entry.key}"
            for entry in entries
            if entry.primary_key not in reached[_unpacked(entry.key)]
        ]

    def reset(self, engine: Engine) -> None:
        """Build it anew, if it is not right."""
        try:
            self.settle(engine)
            wrong = self.differences(engine)
        except ConfigurationError:  # the last example has left it half built
            wrong = ["not ready"]
        if wrong:
            self._build(engine)

    def _repair(self, engine: Engine) -> None:
        with engine.begin() as conn:
            self.index.repair(conn)

    def _build(self, engine: Engine) -> None:
        with engine.begin() as conn:
            self.index.drop(conn)
            self.index.create(conn)
        done = False
        while not done:
            with engine.begin() as conn:
                done = self.index.backfill(conn, limit=_CHUNK_ROWS).done
        with engine.begin() as conn:
            self.index.activate(conn)


@dataclass(frozen=True)
class DerivedTable:
    """A table of the application's own that holds the result of a query.

    Attributes:
        table: The mapped class or table; its columns are those of ``query``, in their order.
        query: What it should hold.
        refresh: What brings it up to date; None if it is never behind.
    """

    table: Any
    query: Query
    refresh: Callable[[Connection], object] | None = None

    def chores(self, engine: Engine) -> Mapping[str, Chore]:
        """Refresh it, if that is done."""
        return {} if self.refresh is None else {"refresh": partial(self.settle, engine)}

    def settle(self, engine: Engine) -> None:
        """Refresh it, if that is done."""
        if self.refresh is not None:
            with engine.begin() as conn:
                self.refresh(conn)

    def differences(self, engine: Engine) -> list[str]:
        """Compare both ways."""
        with engine.begin() as conn:
            return _different(conn, select(table_of(self.table)), self.query)

    def reset(self, engine: Engine) -> None:
        """Empty it and fill it from its query."""
        table: Table = table_of(self.table)
        with engine.begin() as conn:
            conn.execute(delete(table))
            held = self.query.subquery()
            # What the server computes cannot be inserted.
            given = {
                column.name: value
                for column, value in zip(table.columns, held.columns, strict=True)
                if column.computed is None
            }
            conn.execute(table.insert().from_select(list(given), select(*given.values())))


@dataclass(frozen=True)
class DerivedCache:
    """A function that reads through a cache: a read never gives what is not in the database.

    Attributes:
        read: Reads through the cache; a `CachedFunction`, or one of your own.
        load: Reads without it.
        keys: What is read.
        client: Its Redis; any of its keys may be evicted, and all be flushed.
        deliver: Brings invalidations that were recorded to Redis, such as ``cache.relay``.
    """

    read: Callable[[Any], Any]
    load: Callable[[Connection, Any], Any]
    keys: Sequence[Hashable]
    client: Redis
    deliver: Callable[[], object] = field(default=lambda: None)

    @classmethod
    def of(
        cls,
        cached: CachedFunction[[Any], Any],
        keys: Sequence[Hashable],
        client: Redis,
        deliver: Callable[[], object],
    ) -> "DerivedCache":
        """Return what tests a cached function of one argument."""
        return cls(cached, cached.load, keys, client, deliver)

    def chores(self, engine: Engine) -> Mapping[str, Chore]:
        """Read, evict, flush, deliver."""
        del engine

        reads = {f"read_{place}": partial(self.read, key) for place, key in enumerate(self.keys)}
        return reads | {"evict": self._evict, "flush": self.client.flushdb, "deliver": self.deliver}

    def settle(self, engine: Engine) -> None:
        """Deliver."""
        del engine
        self.deliver()

    def differences(self, engine: Engine) -> list[str]:
        """Read each key both ways, then forget it: a check that fills would hide every miss."""
        wrong = []
        with engine.connect() as conn:
            for key in self.keys:
                got, expected = self.read(key), self.load(conn, key)
                if got != expected:
                    wrong.append(f"{key!r} is read as {got!r}, and is {expected!r}")
        self.client.flushdb()
        return wrong

    def reset(self, engine: Engine) -> None:
        """Forget everything."""
        del engine
        self.client.flushdb()

    def _evict(self) -> None:
        for key in sorted(self.client.keys("*"))[:1]:
            self.client.delete(key)


def derived(thing: Any) -> Derived:  # noqa: ANN401 -- one of ours, or whatever answers
    """Return how to test a `MaterializedView`, an `IndexTable`, or what is a `Derived` itself.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(thing, MaterializedView):
        return DerivedView(thing)
    if isinstance(thing, IndexTable):
        return DerivedIndex(thing)
    if all(hasattr(thing, name) for name in ("chores", "settle", "differences", "reset")):
        answering: Derived = thing
        return answering
    raise TypeError(f"{thing!r} is no MaterializedView, IndexTable, DerivedTable or DerivedCache")


def _different(conn: Connection, held: Query, query: Query) -> list[str]:
    # Both ways: one alone would not see rows that are missing, or rows too many.
    one, other = select(held.subquery()), select(query.subquery())
    surplus = conn.execute(except_all(one, other).limit(_DIFFERENCES_MAX)).all()
    missing = conn.execute(except_all(other, one).limit(_DIFFERENCES_MAX)).all()
    return [f"missing: {tuple(row)}" for row in missing] + [
        f"surplus: {tuple(row)}" for row in surplus
    ]


def _unpacked(key: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- a value, or a tuple of several
    return key[0] if len(key) == 1 else key
