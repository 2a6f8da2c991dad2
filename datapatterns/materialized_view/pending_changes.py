"""The pending changes of a view's tables, as relations of a statement."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    CompoundSelect,
    FromClause,
    SmallInteger,
    Table,
    TableClause,
    Text,
    cast,
    column,
    func,
    literal,
    select,
    table,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.change_log import Xid, Xid8
from datapatterns.materialized_view.blueprint import MARKER, pending_name
from datapatterns.materialized_view.maintenance import Maintenance
from datapatterns.materialized_view.within import Anew

IsPending: TypeAlias = Callable[[ColumnElement[Xid]], ColumnElement[bool]]


def pending_changes(
    maintenance: Maintenance, logs: Mapping[Table, str], schema: str, is_pending: IsPending
) -> dict[Table, CTE]:
    """Return what is pending for each table: ``change_sign`` and its columns that matter.

    They are in the order of ``logs``, in which the statement then comes for these.
    """
    numbers = {source: number for number, source in enumerate(maintenance.tables)}
    return {
        source: _pending(maintenance, source, numbers[source], log, schema, is_pending)
        for source, log in logs.items()
    }


def changes_of(pending: Mapping[Table, FromClause], anew: Anew | None) -> CompoundSelect[Any]:
    """Return each pending change: its sign, and whether it ``says_nothing`` of what to do.

    Args:
        pending: What is pending for each table.
        anew: What is computed anew anyway.
    """
    parts = []
    for source, changes in pending.items():
        truncated = changes.c.change_sign == 0
        if anew is not None and (told := anew.truncated.get(source)):
            partition = cast(changes.c.change_partition, Text)
            truncated &= partition.is_(None) | partition.not_in(sorted(told))
        parts.append(select(changes.c.change_sign, truncated.label("says_nothing")))
    return union_all(*parts)


def named_pending(maintenance: Maintenance) -> tuple[dict[Table, TableClause], TableClause]:
    """Return the same by the names that a blueprint has for them, and its marker."""
    pending = {
        source: table(
            pending_name(number),
            Column("change_sign", SmallInteger),
            *_own_columns(maintenance, source),
        )
        for number, source in enumerate(maintenance.tables)
    }
    return pending, table(MARKER, column("seen"))


def count_pending(
    schema: str, log_names: Iterable[str], is_pending: IsPending, *, limit: int | None = None
) -> ColumnElement[int]:
    """Return an expression that counts pending changes, at most ``limit`` in each log."""
    total: ColumnElement[int] = literal(0)
    for log_name in log_names:
        log = table(log_name, Column("change_xid", Xid8), schema=schema)
        rows = select(log.c.change_xid).where(is_pending(log.c.change_xid)).limit(limit)
        counted = select(func.count()).select_from(rows.subquery()).scalar_subquery()
        total = total + counted
    return total


def _pending(
    maintenance: Maintenance,
    source: Table,
    number: int,
    log_name: str,
    schema: str,
    is_pending: IsPending,
) -> CTE:
    xid = Column("change_xid", Xid8)
    columns = _own_columns(maintenance, source)
    own_facts = [Column("change_sign", SmallInteger), Column("change_partition", JSONB)]
    log = table(log_name, xid, *own_facts, *columns, schema=schema)
    shown = [log.c.change_sign, log.c.change_partition, *(log.c[own.key] for own in columns)]
    query = select(*shown).where(is_pending(log.c.change_xid))
    return query.cte(pending_name(number)).prefix_with("MATERIALIZED")


def _own_columns(maintenance: Maintenance, source: Table) -> list[Column[object]]:
    return [Column(own.name, own.type, key=own.key) for own in maintenance.columns_of(source)]
