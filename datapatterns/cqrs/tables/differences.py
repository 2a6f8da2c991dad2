"""Compare a read model in a table with its replay; make the one what the other is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from datapatterns.cqrs.tables.checksums import is_in_buckets
from datapatterns.cqrs.tables.comparable import comparable
from datapatterns.cqrs.tables.read_model import ReadModel
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
        rows: How many rows, fields and members a replay gives, of those that were compared.
        differences: The first of them, by key.
        parked: How many rows were left out, as events of theirs wait: see `Projections.parked`.
        skipped: How many events were left out on record: see `Projections.skipped`.
        share: Which share of all keys was compared; 1.0 for all of them.
        seed: Which keys these were: the same ones are compared under the same seed. None for all.
        checksum: Of what a replay gives of them: equal for equal rows in equal types. Empty if
            a column has a type that cannot be hashed.
        seconds: How long it took.
    """

    position: Position
    rows: int
    differences: list[Difference]
    parked: int = 0
    skipped: int = 0
    share: float = 1.0
    seed: int | None = None
    checksum: str = ""
    seconds: float = 0.0

    @property
    def matches(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def find_differences(
    conn: Connection,
    stored: ReadModel,
    expected: ReadModel,
    *,
    limit: int,
    buckets: Collection[int] | None = None,
    table: str | None = None,
) -> list[Difference]:
    """Return at most ``limit`` rows that the two do not share, by key, from both sides.

    Args:
        conn: A connection in a transaction.
        stored: What is there.
        expected: What should be.
        limit: At most.
        buckets: Which of the expected rows are meant, if not all.
        table: What to call the table, if not by its name.
    """
    rows_expected = select(*expected.columns)
    if buckets is not None:
        rows_expected = rows_expected.where(is_in_buckets(expected, buckets))
    wanted = rows_expected.subquery("expected")
    columns = [wanted.c[c.name] for c in expected.columns]
    key = columns[: expected.key_length]
    same_key = and_(*(a == b for a, b in zip(stored.key_columns, key, strict=True)))
    width = len(stored.columns)
    rows = conn.execute(
        select(*stored.columns, *columns)
        .select_from(stored.table.join(wanted, same_key, full=True))
        .where(_together(stored.columns).is_distinct_from(_together(columns)))
        .order_by(*map(func.coalesce, stored.key_columns, key))
        .limit(limit)
    ).all()
    name = table or stored.table.name
    return [_difference(stored, name, row[:width], row[width:]) for row in rows]


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
            where=_together(rest).is_distinct_from(_together(fresh)),
        )
    )


def _same_key(left: ReadModel, right: ReadModel) -> ColumnElement[bool]:
    pairs = zip(left.key_columns, right.key_columns, strict=True)
    return and_(*(a == b for a, b in pairs))


def _together(columns: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    plain = comparable(columns)
    return tuple_(*plain) if len(plain) > 1 else plain[0]


def _difference(
    model: ReadModel, table: str, stored: Sequence[Any], expected: Sequence[Any]
) -> Difference:
    key = stored[: model.key_length]
    side = stored if key[0] is not None else expected
    return Difference(
        tuple(side[: model.key_length]),
        _mapping(model.columns, stored, model.key_length),
        _mapping(model.columns, expected, model.key_length),
        table,
    )


def _mapping(
    columns: Sequence[Column[Any]], row: Sequence[Any], key_length: int
) -> dict[str, Any] | None:
    if row[0] is None:
        return None
    values = zip(columns, row, strict=True)
    return {c.name: value for c, value in list(values)[key_length:]}
