"""Index tables in an application's own Alembic environment."""

import re
from collections.abc import Callable

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, func, inspect

from datapatterns.alembic import DropIndexTableOp, register_indexes, register_views
from datapatterns.errors import IndexMigrationError
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.alembic_environments import Environment
from tests.fixtures.view_tables import run

pytestmark = pytest.mark.postgres

Declare = Callable[[Table], IndexTable]


def shop(*indexes: Declare, without: str = "") -> MetaData:
    """Return a shop's table of people with index tables."""
    metadata = MetaData()
    person = Table(
        "person",
        metadata,
        Column("id", Integer, primary_key=True),
        *(Column(name, Text) for name in ("email", "name", "city") if name != without),
    )
    register_indexes(metadata, [declare(person) for declare in indexes])
    return metadata


def by_email(person: Table) -> IndexTable:
    return IndexTable(
        "person_by_email",
        on=[func.lower(person.c.email)],
        unique=True,
        include=[person.c.name],
        where=person.c.name != "{nobody}",
    )


def by_exact_email(person: Table) -> IndexTable:
    return IndexTable("person_by_email", on=[person.c.email])


def by_city(person: Table) -> IndexTable:
    return IndexTable("person_by_city", on=[person.c.city])


def by_sign(person: Table) -> IndexTable:
    return IndexTable(
        "person_by_sign",
        on=[person.c.name + "%s {sign} :x \\ 'é'"],
        where=person.c.city.not_like("%(gone)s%"),
    )


def declared(environment: Environment, name: str = "person_by_email") -> IndexTable:
    assert isinstance(environment.metadata, MetaData)
    indexes: Indexes = environment.metadata.info["datapatterns.indexes"]["datapatterns"]
    return indexes.find(name)


def operations(code: str) -> list[str]:
    """Return what the upgrade of a revision does, in order."""
    return re.findall(r"^    op\.(\w+)\(", code.split("def downgrade", maxsplit=1)[0], re.MULTILINE)


def found(engine: Engine, index: IndexTable, key: str) -> list[int]:
    Indexes([index]).build(engine)
    with engine.connect() as conn:
        return [row.id for row in index.lookup(conn, key)]


def test_an_index_comes_and_goes_with_its_table(environment: Environment) -> None:
    environment.metadata = shop(by_email)
    code = environment.revise()

    for _ in range(2):
        environment.upgrade()
        assert environment.differences() == []
        environment.downgrade("base")
    environment.upgrade()
    run(environment.engine, "INSERT INTO person VALUES (1, 'Bob@example.org', 'Bob')")

    assert operations(code) == ["create_table", "create_index_table"]
    assert "'lower({email})'" in code
    assert found(environment.engine, declared(environment), "bob@example.org") == [1]


def test_signs_that_mean_something_elsewhere_stay_as_they_are(environment: Environment) -> None:
    environment.metadata = shop(by_sign)
    environment.revise()

    environment.upgrade()
    run(
        environment.engine,
        "INSERT INTO person (id, name, city) VALUES (1, '5', 'here'), (2, '5', '%(gone)s!')",
    )
    index = declared(environment, "person_by_sign")
    again = environment.differences()

    assert again == []
    assert found(environment.engine, index, "5%s {sign} :x \\ 'é'") == [1]


def test_an_index_that_is_no_longer_declared_goes_and_comes_back(environment: Environment) -> None:
    environment.metadata = shop(by_email)
    environment.revise()
    environment.upgrade()
    kept = declared(environment)
    environment.metadata = shop()

    code = environment.revise()
    environment.upgrade()
    gone = environment.differences()
    environment.downgrade("r1")
    run(environment.engine, "INSERT INTO person VALUES (1, 'Bob@example.org', 'Bob')")

    assert operations(code) == ["drop_index_table"]
    assert gone == []
    assert found(environment.engine, kept, "bob@example.org") == [1]


def test_an_index_that_is_declared_otherwise_is_built_anew(environment: Environment) -> None:
    environment.metadata = shop(by_email)
    environment.revise()
    environment.upgrade()
    environment.metadata = shop(by_exact_email)

    code = environment.revise()
    environment.upgrade()
    run(environment.engine, "INSERT INTO person VALUES (1, 'Bob@example.org', 'Bob')")

    assert operations(code) == ["drop_index_table", "create_index_table"]
    assert environment.differences() == []
    assert found(environment.engine, declared(environment), "Bob@example.org") == [1]


def test_an_index_makes_way_for_a_column_that_goes(environment: Environment) -> None:
    environment.metadata = shop(by_email, by_city)
    environment.revise()
    environment.upgrade()
    environment.metadata = shop(by_email, without="city")

    code = environment.revise()
    environment.upgrade()
    after = environment.differences()
    environment.downgrade("r1")

    assert operations(code) == ["drop_index_table", "drop_column"]
    assert after == []
    assert inspect(environment.engine).has_table("person_by_city", schema="datapatterns")


def test_an_index_whose_triggers_are_gone_is_built_anew(environment: Environment) -> None:
    environment.metadata = shop(by_city)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "DROP FUNCTION datapatterns.maintain_person_by_city() CASCADE")

    differences = environment.differences()

    assert [one[0] for one in differences] == ["remove_index_table", "add_index_table"]


def test_nothing_becomes_of_indexes_where_none_is_registered(environment: Environment) -> None:
    environment.metadata = shop(by_city)
    environment.revise()
    environment.upgrade()
    metadata = MetaData()
    Table(
        "person",
        metadata,
        *(
            Column(c.name, c.type, primary_key=c.primary_key)
            for c in environment.metadata.tables["person"].columns
        ),
    )
    environment.metadata = metadata

    assert environment.differences() == []


def test_views_and_indexes_of_one_schema_know_of_each_other(environment: Environment) -> None:
    metadata = shop(by_city)
    person = metadata.tables["person"]
    people = MaterializedView("people", person.select().with_only_columns(person.c.id))
    register_views(metadata, [people])
    environment.metadata = metadata
    environment.options = {"include_schemas": True}

    environment.revise()
    environment.upgrade()

    assert environment.differences() == []


def test_hooks_may_leave_an_index_out(environment: Environment) -> None:
    environment.metadata = shop(by_city)
    environment.options = {"include_object": lambda _o, _n, kind, *_: kind != "index_table"}

    assert operations(environment.revise()) == ["create_table"]


def test_it_cannot_be_written_as_sql(environment: Environment) -> None:
    environment.metadata = shop(by_city)
    environment.revise()

    with pytest.raises(IndexMigrationError, match="without --sql"):
        environment.sql()


def test_the_way_back_needs_what_the_index_was() -> None:
    with pytest.raises(IndexMigrationError, match="give drop_index_table"):
        DropIndexTableOp("person_by_city", "datapatterns").reverse()


def test_an_index_of_before_is_dropped_without_a_way_back(environment: Environment) -> None:
    environment.metadata = shop(by_city)
    environment.revise()
    environment.upgrade()
    run(environment.engine, "UPDATE datapatterns.index_table SET blueprint = NULL")
    environment.metadata = shop()

    with pytest.raises(IndexMigrationError, match="nobody has said what it was"):
        environment.revise()
