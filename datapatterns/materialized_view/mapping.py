"""Map a class to a view, to read it as any other; nothing of it can be written."""

from collections.abc import Iterable
from typing import Any, Final, NoReturn

from sqlalchemy import Column, MetaData, Table, event
from sqlalchemy.orm import Mapper

from datapatterns.errors import ViewReadOnlyError
from datapatterns.materialized_view.view import MaterializedView

_KEY: Final = "datapatterns.view"


def table_for(view: MaterializedView, *, primary_key: Iterable[str]) -> Table:
    """Return the view as a table that a class can be mapped to, by its ``__table__``.

    It belongs to a MetaData of its own, so that neither ``create_all`` nor Alembic takes it for a
    table. Flushing an object of the class raises `ViewReadOnlyError`.

    Args:
        view: What the class reads.
        primary_key: The columns that tell rows apart; rows in which all of them are NULL are
            none to the ORM.

    Raises:
        ValueError: The view has no such column.
    """
    keys = {*primary_key}
    if unknown := sorted(keys - {*view.c.keys()}) or (not keys and ["none"]):
        raise ValueError(f"{unknown[0]!r} is no column of {view.name}; name what tells rows apart")
    columns = [Column(each.name, each.type, primary_key=each.name in keys) for each in view.c]
    table = Table(view.name, MetaData(), *columns, schema=view.schema)
    table.info[_KEY] = view.name
    return table


@event.listens_for(Mapper, "mapper_configured")
def _forbid_writing(mapper: Mapper[Any], _class: type) -> None:
    name = getattr(mapper.local_table, "info", {}).get(_KEY)
    if name is None:
        return

    def refuse(*_flushed: object) -> NoReturn:
        raise ViewReadOnlyError(name)

    for moment in ("before_insert", "before_update", "before_delete"):
        event.listen(mapper, moment, refuse)
