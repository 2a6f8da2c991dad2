"""What it does to references that rows get another shard key."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, Column, Connection, Table, Text, cast, func, literal, select
from sqlalchemy import column as named_column

from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.declared import References
from datapatterns.sharding.references.definition import Values

Texts = Sequence[str | None]


def note_moved(  # noqa: PLR0913, PLR0917 -- rows before and after, as the server writes them
    into: Changes,
    conn: Connection,
    references: References,
    table: Table,
    names: Sequence[str],
    before: Sequence[Texts],
    after: Sequence[Texts],
) -> None:
    """Note what rows of a table refer to now, and which keys they had.

    A row that refers to what it did before is noted as well: it has gone here and come there, and
    whoever deletes its parent meanwhile would see it in neither place.
    """
    for reference in references.of_child(table):
        into.refer(reference, _typed(conn, reference.declared.child, names, after))
    for reference in references.of_parent(table):
        into.go(reference, _typed(conn, reference.declared.parent, names, before))


def _typed(
    conn: Connection, columns: Sequence[Column[Any]], names: Sequence[str], rows: Sequence[Texts]
) -> list[Values]:
    """Return the values of columns as the driver has them."""
    places = [names.index(column.name) for column in columns]
    arrays = [cast(literal([row[at] for row in rows], ARRAY(Text)), ARRAY(Text)) for at in places]
    texts = (
        func.unnest(*arrays)
        .table_valued(*(named_column(f"c{at}", Text) for at in places), name="moved")
        .render_derived()
    )
    typed = select(*(cast(text, c.type) for text, c in zip(texts.c, columns, strict=True)))
    return [tuple(row) for row in conn.execute(typed)]
