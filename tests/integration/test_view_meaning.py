"""Counting gives a clause the meaning that the server and the ORM give it, or leaves it alone."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Date,
    DateTime,
    Engine,
    Integer,
    Label,
    MetaData,
    String,
    Table,
    TypeDecorator,
    func,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import ViewDefinitionError
from datapatterns.materialized_view import MaterializedView, Strategy
from tests.fixtures.view_tables import create, differences, refresh, run, verify


class Base(DeclarativeBase):
    pass


class Employee(Base):
    __tablename__ = "employee"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    department: Mapped[int]

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}  # noqa: RUF012


class Manager(Employee):
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Lowered(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def column_expression(self, column: Any) -> Any:  # noqa: ANN401
        return func.lower(column)


def test_a_class_of_a_shared_table_has_its_own_rows_only(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    run(engine, "INSERT INTO employee VALUES (1, 'employee', 1), (2, 'manager', 1)")
    query = select(Manager.department, func.count().label("n")).group_by(Manager.department)
    view = MaterializedView("managers", query)
    create(engine, view)
    run(engine, "INSERT INTO employee VALUES (3, 'employee', 1), (4, 'manager', 1)")

    refresh(engine, view)

    assert differences(engine, view, query) == 0


def test_a_literal_has_the_type_of_the_column_it_is_compared_with(engine: Engine) -> None:
    person = Table("person", MetaData(), Column("id", Integer), Column("name", String))
    run(engine, "CREATE EXTENSION citext", "CREATE TABLE person (id int, name citext)")
    run(engine, "INSERT INTO person VALUES (1, 'Ann')")
    view = MaterializedView("anns", select(func.count().label("n")).where(person.c.name == "ann"))
    create(engine, view)
    run(engine, "INSERT INTO person VALUES (2, 'ANN')")

    assert verify(engine, view) == []


def test_a_time_without_a_zone_means_one_moment(engine: Engine) -> None:
    visit = Table("visit", MetaData(), Column("at", DateTime(timezone=True)))
    visit.create(engine)
    midnight = datetime(2026, 1, 1)  # noqa: DTZ001 -- without a zone is what it is about
    view = MaterializedView("visits", select(func.count().label("n")).where(visit.c.at >= midnight))
    create(engine, view)
    run(engine, "INSERT INTO visit VALUES ('2025-12-31 20:00+00')")

    shown: set[int] = set()
    for zone in ("Asia/Tokyo", "America/New_York"):
        with engine.begin() as conn:
            conn.execute(text(f"SET LOCAL timezone = '{zone}'"))
            view.rebuild(conn)
            shown.add(conn.execute(select(view.c.n)).scalar_one())

    assert len(shown) == 1
    with engine.connect() as conn:
        assert "time zone" in view.explain(conn).reason


def test_a_column_called_star_is_a_column(engine: Engine) -> None:
    odd = Table("odd", MetaData(), Column("*", Integer, key="star"))
    odd.create(engine)
    run(engine, "INSERT INTO odd VALUES (NULL), (1)")
    query = select(func.count(odd.c.star).label("n"))
    view = MaterializedView("stars", query)
    create(engine, view)

    assert differences(engine, view, query) == 0


def test_a_column_that_is_selected_as_something_else_is_not_counted() -> None:
    lowered = Table("lowered", MetaData(), Column("name", Lowered))
    query = select(lowered.c.name, func.count().label("n")).group_by(lowered.c.name)

    assert MaterializedView("lowered", query).explain().strategy is Strategy.REBUILD


@pytest.mark.parametrize("name", ["ctid", "xmin", "tableoid"])
def test_system_columns_are_refused(engine: Engine, name: str) -> None:
    Base.metadata.create_all(engine)
    system: Label[str] = literal_column(f"employee.{name}::text").label("shown")
    view = MaterializedView("shown", select(system).select_from(Employee))

    with engine.connect() as conn, pytest.raises(ViewDefinitionError, match="system column"):
        view.create(conn)


def test_a_comparison_of_rows_that_depends_on_the_time_zone_is_refused(engine: Engine) -> None:
    visit = Table(
        "visit",
        MetaData(),
        Column("id", Integer),
        Column("at", DateTime(timezone=True)),
        Column("day", Date),
    )
    visit.create(engine)
    later = tuple_(visit.c.at, visit.c.id) > tuple_(visit.c.day, visit.c.id)
    view = MaterializedView("later", select(visit.c.id).where(later))

    with engine.connect() as conn, pytest.raises(ViewDefinitionError, match="timestamptz_gt_date"):
        view.create(conn)
