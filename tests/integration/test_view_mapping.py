"""A class that is mapped to a view reads it, and cannot write it."""

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Session

from datapatterns.errors import ViewReadOnlyError
from datapatterns.materialized_view import MaterializedView, table_for
from tests.fixtures.view_tables import create, create_tables, run, weekly_sales

pytestmark = pytest.mark.postgres
VIEW = MaterializedView("weekly_sales", weekly_sales())


class Base(DeclarativeBase):
    pass


class Weekly(Base):
    __table__ = table_for(VIEW, primary_key=["week", "department"])


def test_a_mapped_view_is_read_and_not_written(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, "INSERT INTO product VALUES (1, NULL)", "INSERT INTO line VALUES (1, 7, 1, 5, 1)")
    create(engine, VIEW)
    with Session(engine) as session:
        (found,) = session.scalars(select(Weekly)).all()
        assert [getattr(found, name) for name in ("week", "department", "cents")] == [7, None, 5]
        session.add(Weekly(week=1, department="x"))
        with pytest.raises(ViewReadOnlyError, match="weekly_sales"):
            session.flush()
        session.rollback()
        setattr(found, "cents", 6)  # noqa: B010 -- mypy knows of no columns
        with pytest.raises(ViewReadOnlyError):
            session.flush()
        session.rollback()
        session.delete(found)
        with pytest.raises(ViewReadOnlyError):
            session.flush()
        session.rollback()


def test_neither_create_all_nor_alembic_takes_it_for_a_table() -> None:
    assert not Base.metadata.tables


def test_what_tells_rows_apart_has_to_be_a_column() -> None:
    with pytest.raises(ValueError, match="'no'"):
        table_for(VIEW, primary_key=["no"])
    with pytest.raises(ValueError, match="tells rows apart"):
        table_for(VIEW, primary_key=[])
