"""Take a guard out for a while: what protects a promise must be missed when it is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event, text

_DEFINITION = text("SELECT pg_get_functiondef(CAST(:name AS regproc))")


@contextmanager
def function_without(plain: Engine, name: str, guard: str, *, instead: str = "") -> Iterator[None]:
    """Replace ``guard`` in a function of the database.

    Args:
        plain: Leads to the database.
        name: The function, with its schema.
        guard: A part of its body that occurs once.
        instead: What to put in its place.
    """
    with plain.begin() as conn:
        original = conn.execute(_DEFINITION, {"name": name}).scalar_one()
        assert original.count(guard) == 1, f"{name} has {original.count(guard)} of {guard!r}"
        conn.exec_driver_sql(_escaped(original.replace(guard, instead)))
    try:
        yield
    finally:
        with plain.begin() as conn:
            conn.exec_driver_sql(_escaped(original))


@contextmanager
def statements_without(engine: Engine, guard: str, *, instead: str = "") -> Iterator[None]:
    """Replace ``guard`` in whatever statement of ``engine`` has it; one must have had it."""
    replaced = 0

    def rewrite(
        _conn: object, _cursor: object, statement: str, parameters: object, *_more: object
    ) -> tuple[str, object]:
        nonlocal replaced
        replaced += guard in statement
        return statement.replace(guard, instead), parameters

    event.listen(engine, "before_cursor_execute", rewrite, retval=True)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", rewrite)
    assert replaced, f"no statement has {guard!r}"


@contextmanager
def table_without(plain: Engine, table: str, constraint: str) -> Iterator[None]:
    """Drop a constraint; a CHECK may be broken when it comes back."""
    definition = text("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name")
    with plain.begin() as conn:
        original = conn.execute(definition, {"name": constraint}).scalar_one()
        conn.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    try:
        yield
    finally:
        lenient = " NOT VALID" if original.startswith("CHECK") else ""
        added = f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {original}{lenient}"
        with plain.begin() as conn:
            conn.exec_driver_sql(_escaped(added))


def _escaped(sql: str) -> str:
    return sql.replace("%", "%%")
