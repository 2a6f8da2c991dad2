"""Follow tables whose changes are captured, whoever writes them: install, describe, name.

Triggers see what no session does: SQL text, bulk statements, cascades, other programs. The relay
names what each changed row makes obsolete by what is written down here, so that any process can
run it, whichever models it knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    SmallInteger,
    Table,
    Text,
    cast,
    column,
    delete,
    exists,
    func,
    select,
)
from sqlalchemy import table as relation
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS, array, insert

from datapatterns.cache_aside.invalidating import keys_of
from datapatterns.cache_aside.keys import entry_of
from datapatterns.cache_aside.schema import cache_tables
from datapatterns.cache_aside.tags import (
    is_stored_as_it_is,
    is_tagged,
    names_values,
    of_unknown_rows,
    stored_row_tag,
    stored_value_tag,
    table_of,
    table_tag,
)
from datapatterns.change_log import ChangeLog, Snapshot, Xid8, change_log_tables, not_shown_by
from datapatterns.change_log.inspecting import SourceColumn, inspect_columns, inspect_source
from datapatterns.change_log.locking import take_turn
from datapatterns.change_log.pending import shown_by
from datapatterns.errors import CacheKeyError

_attributes = relation(
    "pg_attribute",
    column("attrelid"),
    column("attname"),
    column("attnum", SmallInteger),
    column("attisdropped", Boolean),
    column("attgenerated"),
    schema="pg_catalog",
)
_PADDED = ("character(", "bpchar", '"char"')

Tabled: TypeAlias = type | Table
"""A mapped class or a table."""

TableName: TypeAlias = tuple[str, str]
"""A table's schema and name."""

_NO_COLUMNS = cast(array([], type_=Text), ARRAY(Text))


@dataclass(frozen=True, slots=True)
class Followed:
    """A captured table, and what changes of its rows make obsolete.

    Attributes:
        log_name: Where its changes are logged.
        table_tag: What depends on the table carries it.
        key_columns: Its primary key; empty if its values have no certain names.
        tag_columns: Those whose values are tags.
        caches: Caches whose entries are named by the primary key.
        further_columns: Those that the table has and the log has not: changes of them are missed.
    """

    log_name: str
    table_tag: str
    key_columns: tuple[str, ...]
    tag_columns: tuple[str, ...]
    caches: tuple[str, ...]
    further_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that are read from its changes."""
        return [*dict.fromkeys((*self.key_columns, *self.tag_columns))]

    def pending(self, since: Snapshot, now: Snapshot, *, schema: str) -> Select[Any]:
        """Return the query for changes that ``now`` shows and ``since`` does not, by xid."""
        log = relation(
            self.log_name,
            Column("change_xid", Xid8),
            Column("change_sign", SmallInteger),
            *(Column(name) for name in self.columns),
            schema=schema,
        )
        xid = log.c.change_xid
        shown = [log.c[name].label(_named(self.columns, name)) for name in self.columns]
        return (
            select(xid, log.c.change_sign, *shown)
            .where(not_shown_by(since, xid), shown_by(now, xid))
            .order_by(xid)
        )

    def keys_of(self, row: Row[Any]) -> list[str]:
        """Return what a changed row makes obsolete, as the outbox calls it.

        Of a truncation, what depends on any row; `forgets_all` says whether that is enough.
        """
        if row.change_sign == 0:
            return keys_of((), of_unknown_rows(self.table_tag))
        key = tuple(getattr(row, _named(self.columns, name)) for name in self.key_columns)
        tags = [self.table_tag]
        if key:
            tags.append(stored_row_tag(self.table_tag, key))
        for name in self.tag_columns:
            value = getattr(row, _named(self.columns, name))
            tags.append(stored_value_tag(self.table_tag, name, value))
        return keys_of([entry_of(cache, key) for cache in self.caches], tags)

    def forgets_all(self, row: Row[Any]) -> bool:
        """Return whether a change makes entries obsolete that nobody can name."""
        return row.change_sign == 0 and bool(self.caches)


def _named(columns: Sequence[str], name: str) -> str:
    """Return what a column is called in a row; its own name may be one of Python's."""
    return f"column_{columns.index(name)}"


def consumer_of(target: str) -> str:
    """Return the name under which the relay of ``target`` consumes changes."""
    return f"cache_relay:{target}"


def follow(conn: Connection, model: Tabled, *, cache: str | None, schema: str, target: str) -> None:
    """Capture the changes of a table, and let the relay of ``target`` follow them.

    Args:
        conn: A connection in a transaction, such as a migration's. The caller commits.
        model: A mapped class or a table.
        cache: A cache whose entries are named by the table's primary key; None for tags alone.
        schema: Where the library's tables live.
        target: Whose relay.

    Raises:
        CacheKeyError: Values of the primary key, or of a column declared as `TAGGED`, have no
            certain names.
        CaptureRefusedError: Some changes of this table would be missed.
        MissingRightsError: The role does not own the table.
    """
    table = table_of(model)
    # All that the table has, mapped or not: a change of another column would not be logged.
    columns = inspect_columns(conn, inspect_source(conn, table).oid)
    key, tagged = _named_columns(table, columns, cache)
    log, consumer = ChangeLog(schema), consumer_of(target)
    log_name = log.capture(conn, table, [column.name for column in columns])
    log.register_consumer(conn, consumer, "cache_relay", log_names=[log_name])
    capture = cache_tables(schema).capture
    caches = [] if cache is None else [cache]
    found = {
        "key_columns": [column.name for column in key],
        "tag_columns": [column.name for column in tagged],
    }
    added = insert(capture).values(
        consumer=consumer, log_name=log_name, table_tag=table_tag(table), caches=caches, **found
    )
    known = func.array_remove(capture.c.caches, cache)
    conn.execute(
        added.on_conflict_do_update(
            index_elements=[*capture.primary_key],
            set_=found | {"caches": func.array_cat(known, added.excluded.caches)},
        )
    )


def _named_columns(
    table: Table, columns: Iterable[SourceColumn], cache: str | None
) -> tuple[list[Column[Any]], list[Column[Any]]]:
    """Return the columns of the primary key, if it names rows, and those whose values are tags.

    Not only the model is asked, for it may call something else text.

    Raises:
        CacheKeyError: What readers call a row, the relay would call otherwise.
    """
    certain = {
        column.name
        for column in columns
        if column.equality_is_identity and not column.logged_type_sql.startswith(_PADDED)
    }

    def has_names(column: Column[Any]) -> bool:
        return names_values(column) and column.name in certain

    key = [*table.primary_key] if all(map(names_values, table.primary_key)) else []
    if not all(map(has_names, key)):
        raise CacheKeyError(
            table.name,
            "equal values of its primary key may differ in the table, though not in the model; give"
            " the columns the type or collation there that they have",
        )
    if cache is not None and not key:
        raise CacheKeyError(table.name, "equal values of its primary key may differ; use tags")
    if cache is not None and not all(map(is_stored_as_it_is, key)):
        raise CacheKeyError(
            table.name,
            "the table has other values in its primary key than Python; capture(by_key=False), and"
            " use tags",
        )
    tagged = [*filter(is_tagged, table.columns)]
    if uncertain := [str(each) for each in tagged if not has_names(each)]:
        raise CacheKeyError(
            ", ".join(uncertain),
            "equal values may differ, or the table does not store any; do not declare it as"
            " TAGGED, and use the tag of the table",
        )
    return key, tagged


def unfollow(conn: Connection, model: Tabled, *, schema: str, target: str) -> None:
    """Let the relay of ``target`` follow a table no more; do nothing if it does not."""
    take_turn(conn, schema=schema)
    tag, consumer = table_tag(table_of(model)), consumer_of(target)
    capture, log = cache_tables(schema).capture, change_log_tables(schema)
    own = capture.c.consumer == consumer
    gone = conn.scalars(
        delete(capture).where(own, capture.c.table_tag == tag).returning(capture.c.log_name)
    ).all()
    left = set(conn.scalars(select(capture.c.log_name).where(own)))
    subscriptions = log.subscriptions
    conn.execute(
        delete(subscriptions).where(
            subscriptions.c.consumer == consumer, subscriptions.c.log_name.in_(set(gone) - left)
        )
    )
    if not left:
        ChangeLog(schema).forget_consumer(conn, consumer)


def read_followed(conn: Connection, *, schema: str, target: str) -> Sequence[Followed]:
    """Return which tables the relay of ``target`` follows."""
    return [followed for _, followed in read_followed_by_name(conn, schema=schema, target=target)]


def read_followed_by_name(
    conn: Connection, *, schema: str, target: str
) -> Sequence[tuple[TableName, Followed]]:
    """Return which tables the relay of ``target`` follows, each with its schema and name."""
    further = _further_columns(change_log_tables(schema).captured, schema=schema)
    return _read_followed(conn, further, schema=schema, target=target)


def read_told(
    conn: Connection, *, schema: str, target: str
) -> Sequence[tuple[TableName, Followed]]:
    """Return the same without the columns that are missed, which take longest to find."""
    return _read_followed(conn, _NO_COLUMNS, schema=schema, target=target)


def _read_followed(
    conn: Connection, further: ColumnElement[Any], *, schema: str, target: str
) -> Sequence[tuple[TableName, Followed]]:
    capture, captured = cache_tables(schema).capture, change_log_tables(schema).captured
    found = (
        select(
            captured.c.table_schema,
            captured.c.table_name,
            capture.c.log_name,
            capture.c.table_tag,
            capture.c.key_columns,
            capture.c.tag_columns,
            capture.c.caches,
            further,
        )
        .join(captured, captured.c.log_name == capture.c.log_name)
        .where(capture.c.consumer == consumer_of(target))
        .order_by(capture.c.log_name, capture.c.table_tag)
    )
    return [
        ((table_schema, name), Followed(log_name, tag, *map(tuple, lists)))
        for table_schema, name, log_name, tag, *lists in conn.execute(found)
    ]


def _further_columns(captured: Table, *, schema: str) -> ColumnElement[Any]:
    """Return an expression for the columns of a captured table that its log has not."""
    own, logged = (_attributes.alias(name) for name in ("own", "logged"))
    quoted = (func.quote_ident(captured.c[name]) for name in ("table_schema", "table_name"))
    relation_name = func.concat_ws(".", *quoted)
    log_name = func.concat_ws(".", func.quote_ident(schema), func.quote_ident(captured.c.log_name))
    is_logged = exists().where(
        logged.c.attrelid == func.to_regclass(log_name, type_=REGCLASS),
        logged.c.attname == own.c.attname,
        ~logged.c.attisdropped,
    )
    return func.array(
        select(cast(own.c.attname, Text))
        .where(
            own.c.attrelid == func.to_regclass(relation_name, type_=REGCLASS),
            own.c.attnum > 0,
            ~own.c.attisdropped,
            own.c.attgenerated != "v",  # it changes with what it is computed from
            ~is_logged,
        )
        .scalar_subquery(),
        type_=ARRAY(Text),
    )
