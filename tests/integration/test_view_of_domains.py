"""Keys of domains that forbid NULL: a view asks the server about their types, not about a NULL."""

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, func, select

from datapatterns.materialized_view import MaterializedView, Strategy
from tests.fixtures.view_tables import create, differences, differences_now, refresh, run, verify

owner = Table("owner", MetaData(), Column("id", Integer, primary_key=True), Column("code", String))
pet = Table("pet", MetaData(), Column("id", Integer, primary_key=True), Column("owner_id", Integer))
JOINED = owner.join(pet, pet.c.owner_id == owner.c.id)
OPTIONAL = pet.join(owner, pet.c.owner_id == owner.c.id, isouter=True)
QUERIES = {
    Strategy.COUNTING: select(owner.c.code, func.count().label("pets"))
    .select_from(JOINED)
    .group_by(owner.c.code),
    Strategy.GROUPS: select(owner.c.code, func.max(pet.c.id).label("last"))
    .select_from(OPTIONAL)
    .group_by(owner.c.code),
}


@pytest.mark.parametrize("constraint", ["NOT NULL", "CHECK (VALUE IS NOT NULL)"])
@pytest.mark.parametrize("strategy", QUERIES)
def test_a_key_may_be_of_a_domain_that_forbids_null(
    engine: Engine, strategy: Strategy, constraint: str
) -> None:
    run(
        engine,
        f"CREATE DOMAIN code AS varchar(9) {constraint}",
        "CREATE TABLE owner (id int PRIMARY KEY, code code)",
        "CREATE TABLE pet (id int PRIMARY KEY, owner_id int)",
        "INSERT INTO owner VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO pet SELECT g, g % 4 FROM generate_series(1, 12) g",
    )
    query = QUERIES[strategy]
    view = MaterializedView("kept", query)
    create(engine, view)
    run(
        engine,
        "UPDATE owner SET code = 'c' WHERE id = 1",
        "DELETE FROM owner WHERE id = 2",
        "INSERT INTO owner VALUES (3, 'c')",
    )

    with engine.connect() as conn:
        assert view.explain(conn).strategy is strategy
        assert differences_now(conn, view, query) == 0
        assert view.verify(conn, sample=0.5) == []
    refresh(engine, view)
    assert differences(engine, view, query) == 0
    assert verify(engine, view) == []
