"""Compare a read model in a table with its replay; make the one what the other is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    and_,
    cast,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from datapatterns.cqrs.tables.read_model import ReadModel
from datapatterns.cqrs.tables.row_statements import undecorated
from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class Difference:
    """One row, field or member that is not what the log says.

    Attributes:
        key: The primary key's columns; in Redis kind, structure and field.
        stored: What the read model holds; None if nothing.
        expected: What a replay gives; None if nothing.
        table: The table's name; None in Redis.
    """

    key: tuple[Any, ...]
    stored: Mapping[str, Any] | None
    expected: Mapping[str, Any] | None
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison of a read model with a replay found.

    Attributes:
        position: As of which position both were compared; of several segments, the last one's.
        rows: How many rows, fields and members a replay gives.
        differences: The first of them, by key.
        parked: How many rows were left out, as events of theirs wait: see `Projections.parked`.
        skipped: How many events were left out on record: see `Projections.skipped`.
    """

    position: Position
    rows: int
    differences: list[Difference]
    parked: int = 0
    skipped: int = 0

    @property
    def matches(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def find_differences(
    conn: Connection, stored: ReadModel, expected: ReadModel, *, limit: int
) -> list[Difference]:
    """Return at most ``limit`` rows that the two do not share, by key, from both sides."""
    same_key = _same_key(stored, expected)
    width = len(stored.columns)
    rows = conn.execute(
        select(*stored.columns, *expected.columns)
        .select_from(stored.table.join(expected.table, same_key, full=True))
        .where(_comparable(stored.columns).is_distinct_from(_comparable(expected.columns)))
        .order_by(
            *map(func.coalesce, stored.key_columns, expected.key_columns),
        )
        .limit(limit)
    ).all()
    return [_difference(stored, row[:width], row[width:]) for row in rows]


def count_rows(conn: Connection, model: ReadModel) -> int:
    """Return how many rows there are."""
    return conn.execute(select(func.count()).select_from(model.table)).scalar_one()


def delete_rows(conn: Connection, model: ReadModel, source: ReadModel) -> None:
    """Delete the rows of ``model`` whose keys ``source`` does not have."""
    gone = ~select(1).where(_same_key(model, source)).select_from(source.table).exists()
    conn.execute(delete(model.table).where(gone))


def store_rows(conn: Connection, model: ReadModel, source: ReadModel) -> None:
    """Give ``model`` the rows of ``source``, writing only those that differ."""
    upsert = insert(model.table).from_select(
        [c.name for c in model.columns], select(*source.columns), include_defaults=False
    )
    rest = model.columns[model.key_length :]
    if not rest:
        conn.execute(upsert.on_conflict_do_nothing(index_elements=list(model.key_columns)))
        return
    fresh = [upsert.excluded[c.name] for c in rest]
    conn.execute(
        upsert.on_conflict_do_update(
            index_elements=list(model.key_columns),
            set_={c.name: upsert.excluded[c.name] for c in rest},
            where=_comparable(rest).is_distinct_from(_comparable(fresh)),
        )
    )


def _same_key(left: ReadModel, right: ReadModel) -> ColumnElement[bool]:
    pairs = zip(left.key_columns, right.key_columns, strict=True)
    return and_(*(a == b for a, b in pairs))


def _comparable(columns: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    # json, unlike jsonb, has no equality.
    plain = [cast(c, JSONB) if _is_json(c) else c for c in columns]
    return tuple_(*plain) if len(plain) > 1 else plain[0]


def _is_json(column: ColumnElement[Any]) -> bool:
    type_ = undecorated(column.type)
    return isinstance(type_, JSON) and not isinstance(type_, JSONB)


def _difference(model: ReadModel, stored: Sequence[Any], expected: Sequence[Any]) -> Difference:
    key = stored[: model.key_length]
    side = stored if key[0] is not None else expected
    return Difference(
        tuple(side[: model.key_length]),
        _mapping(model.columns, stored, model.key_length),
        _mapping(model.columns, expected, model.key_length),
        model.table.name,
    )


def _mapping(
    columns: Sequence[Column[Any]], row: Sequence[Any], key_length: int
) -> dict[str, Any] | None:
    if row[0] is None:
        return None
    values = zip(columns, row, strict=True)
    return {c.name: value for c, value in list(values)[key_length:]}
