"""A bucket comes to a Citus coordinator.

Foreign keys are enforced on the nodes: the setting that quiets them here does not get there. Its
tables have no triggers, its rows no place that is theirs alone, and a DELETE that joins a list of
keys may be refused. So rows come and go in the order that foreign keys want, named by literals.

What Citus does is read in its documentation and source, of versions 11 to 13.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from psycopg import sql
from psycopg.errors import ForeignKeyViolation, UndefinedTable, UniqueViolation
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import ProgrammingError as SQLAlchemyProgrammingError

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.citus.coordinator import coordinator_findings
from datapatterns.sharding.citus.parents import Families, families
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.copying import TablePair, pipe, places_of, rows_of
from datapatterns.sharding.moving.draining import Batch, Changed, images
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.noted import forget_noted, listed, read_noted
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute
from datapatterns.transactions import reading

KEYS_AT_ONCE = 200
"""How many rows one DELETE names."""
IMAGES_AT_ONCE = 5_000
"""How many rows are read by one list of keys."""

# One connection to each node, so that every statement sees what those before it did.
_ONE_BY_ONE = sql.SQL("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
_DELETE = sql.SQL("DELETE FROM {table} AS {row} WHERE ({chosen}) AND {in_bucket}")
_ARRIVING = sql.SQL("CREATE TEMPORARY TABLE {arriving} ({columns}) ON COMMIT DROP")
_MERGE = sql.SQL("""
INSERT INTO {table} ({columns}) SELECT {columns} FROM {arriving}
ON CONFLICT ({key}) DO {action}
""")
_KEYS = sql.SQL("SELECT {key} FROM (SELECT DISTINCT {names} FROM {keys}) AS k WHERE {chosen}")
_GONE = sql.SQL("NOT EXISTS (SELECT FROM {table} AS {row} WHERE {same_key} AND {in_bucket})")
_EVERY = sql.SQL("true")


@dataclass(frozen=True, slots=True)
class CitusReceiving:
    """Takes a bucket in on a coordinator.

    Attributes:
        declared: The tables of the group.
        broadcast: The tables that every shard has whole.
    """

    declared: Mapping[Table, ShardKey]
    broadcast: Sequence[Table]
    # Rows that foreign keys took away on the nodes were never named by anybody.
    compares_changed: ClassVar[bool] = False
    guards: ClassVar[bool] = False

    def check(self, target: Side, tables: Sequence[MovedTable]) -> None:
        """Refuse a coordinator that is not set up, and foreign keys that no order satisfies.

        Raises:
            MoveRefusedError: It is so.
        """
        with reading(target.conn):
            families(target.conn, tables)
        try:
            with reading(target.conn):
                found = coordinator_findings(
                    target.conn, self.declared, self.broadcast, schema=target.schema, local=True
                )
        except SQLAlchemyProgrammingError as error:
            if not isinstance(error.orig, UndefinedTable):
                raise
            raise MoveRefusedError(
                f"shard {target.shard}", "it is no coordinator of Citus; declare it by its URL"
            ) from error
        for each in found:
            raise MoveRefusedError(
                f"table {each.table} on shard {target.shard}", f"{each.problem}; {each.advice}"
            )

    def make_ready(
        self, target: Side, tables: Sequence[MovedTable], shard_map: ShardMap, *, pace: Pace
    ) -> None:
        """Do nothing: there are no triggers. Should a table be emptied, the comparison finds it."""

    def copy(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Copy all rows as of one moment; those go first that an earlier try has left.

        Raises:
            MoveTakenOverError: Another worker has taken over.
        """
        rows = 0
        with _arriving(target) as conn, source.snapshot(places_of(tables)):
            ordered = _ordered(tables, families(conn, [there for _, there in tables]))
            for _, there in reversed(ordered):
                _delete_all(target, there)
            for here, there in ordered:
                rows += _pipe(source, target, rows_of(here), (here, there), pace=pace)
        return rows

    def drain(self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
        """Bring over what has changed, and forget that; return how many keys."""
        with source.transaction("owned", snapshot=places_of(tables)):
            return len(self.apply_dirty(source, target, tables, pace=pace))

    def apply_dirty(
        self, source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace
    ) -> Batch:
        """Bring over what has changed, in a transaction of the caller's on the source.

        All of it at once, as of one moment: of a part, a row could refer to one that is in the
        rest. A table that others refer to gets its rows changed in place, as its children would go
        with a row that is deleted; those that are gone go in the end, when nobody refers to them.

        Raises:
            MoveRefusedError: A value of a unique index goes from one row to another.
            MoveTakenOverError: Another worker has taken over.
        """
        noted = read_noted(source, tables, limit=None)
        if not noted.numbers:
            return Batch()
        with _refusing(target), _arriving(target) as conn:
            family = families(conn, [there for _, there in tables])
            changed = [
                Changed(here, there, listed(some))
                for here, there in _ordered(tables, family)
                for some in _some_at_once(iter(noted.keys.get(here.oid, ())), IMAGES_AT_ONCE)
            ]
            parents = [each for each in changed if each.there.oid in family.parents]
            leaves = [each for each in changed if each.there.oid not in family.parents]
            for each in leaves:
                _delete(source, target, each, _EVERY)
            for number, each in enumerate(parents):
                _merge(source, target, each, number, pace=pace)
            for each in leaves:
                pair = (each.here, each.there)
                _pipe(source, target, images(each.here, each.keys), pair, pace=pace)
            for each in reversed(parents):
                _delete(source, target, each, _gone(each))
        # The target has committed: now, and not before, they may be forgotten.
        forget_noted(source, noted)
        return Batch(len(noted.numbers), tuple(changed))

    def clean(
        self, target: Side, tables: Sequence[MovedTable], *, rows_at_once: int, pace: Pace
    ) -> None:
        """Remove what has come, a table at a time, children first.

        Not some rows at a time: what could number them is another thing on each node.

        Raises:
            MoveTakenOverError: Another worker has taken over, or the bucket is the target's.
        """
        del rows_at_once
        with reading(target.conn):
            ordered = families(target.conn, tables).parents_first
        by_oid = {table.oid: table for table in tables}
        for oid in reversed(ordered):
            with _arriving(target):
                _delete_all(target, by_oid[oid])
            pace.beat()
        with target.transaction("incoming"):
            target.become("cleaned", was="incoming", like=target.now())

    def forget_capture(self, target: Side, tables: Sequence[MovedTable], *, pace: Pace) -> None:
        """Do nothing: no bucket has ever left this shard."""


@contextmanager
def _arriving(target: Side) -> Iterator[Connection]:
    with target.transaction("incoming") as conn:
        execute(conn, _ONE_BY_ONE)
        yield conn


@contextmanager
def _refusing(target: Side) -> Iterator[None]:
    try:
        yield
    except (IntegrityError, UniqueViolation, ForeignKeyViolation) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        name = getattr(getattr(cause, "diag", None), "constraint_name", None)
        raise MoveRefusedError(
            f"constraint {name} on shard {target.shard}",
            "rows have changed while they moved so that no order of them satisfies it, such as when"
            " a value goes from one row to another; the bucket stays, move it when that is rarer",
        ) from error


def _ordered(tables: Sequence[TablePair], family: Families) -> list[TablePair]:
    by_oid = {there.oid: (here, there) for here, there in tables}
    return [by_oid[oid] for oid in family.parents_first]


def _pipe(
    source: Side, target: Side, query: sql.Composable, tables: TablePair, *, pace: Pace
) -> int:
    # As text, which Citus takes whatever the types are.
    return pipe(source, target, query, tables, pace=pace, binary=False)


def _merge(source: Side, target: Side, each: Changed, number: int, *, pace: Pace) -> None:
    """Insert rows, or change those that are there already, without deleting any."""
    here, there = each.here, each.there
    arriving = sql.Identifier(f"datapatterns_arriving_{number}")
    columns = (
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))
        for name, type_name in there.columns.items()
    )
    execute(target.conn, _ARRIVING.format(arriving=arriving, columns=sql.SQL(", ").join(columns)))
    query = images(here, each.keys)
    pipe(source, target, query, (here, there), pace=pace, binary=False, into=arriving)
    others = [name for name in there.columns if name not in there.primary_key]
    action: sql.Composable = sql.SQL("NOTHING")
    if others:
        action = sql.SQL("UPDATE SET {}").format(
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others
            )
        )
    execute(
        target.conn,
        _MERGE.format(
            table=there.place,
            columns=here.column_list,
            arriving=arriving,
            key=there.key_list,
            action=action,
        ),
    )


def _delete(source: Side, target: Side, each: Changed, chosen: sql.Composable) -> None:
    """Delete rows that the source names, by their keys as literals."""
    here, there = each.here, each.there
    written = sql.SQL(", ").join(
        sql.SQL("k.{}::text").format(sql.Identifier(name)) for name in here.primary_key
    )
    keys = execute(
        source.conn,
        _KEYS.format(
            key=written,
            names=here.key_list,
            keys=here.keys_from(each.keys, alias="listed"),
            chosen=chosen,
        ),
    ).all()
    for some in _some_at_once(iter(keys), KEYS_AT_ONCE):
        rows = (
            sql.SQL("({})").format(
                sql.SQL(" AND ").join(
                    sql.SQL("{} = {}::{}").format(
                        sql.Identifier(ROW, name),
                        sql.Literal(value),
                        sql.SQL(there.columns[name]),
                    )
                    for name, value in zip(here.primary_key, key, strict=True)
                )
            )
            for key in some
        )
        _delete_where(target, there, sql.SQL(" OR ").join(rows))


def _gone(each: Changed) -> sql.Composable:
    return _GONE.format(
        table=each.here.place,
        row=sql.Identifier(ROW),
        same_key=each.here.same_key("k"),
        in_bucket=each.here.in_bucket,
    )


def _delete_all(target: Side, there: MovedTable) -> None:
    _delete_where(target, there, _EVERY)


def _delete_where(target: Side, there: MovedTable, chosen: sql.Composable) -> None:
    statement = _DELETE.format(
        table=there.place, row=sql.Identifier(ROW), chosen=chosen, in_bucket=there.in_bucket
    )
    execute(target.conn, statement).close()


def _some_at_once(items: Iterator[Any], number: int) -> Iterator[list[Any]]:
    while some := list(islice(items, number)):
        yield some
