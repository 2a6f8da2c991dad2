"""A page beside parked rows looks once for each of its rows, however many events wait."""

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.leasing import claim
from datapatterns.cqrs.running.parking import find_parked
from datapatterns.cqrs.running.segments import key_digest
from datapatterns.cqrs.schema import projection_tables
from datapatterns.event_sourcing import EventStore
from tests.fixtures.poisoned import Base, projection_of

pytestmark = pytest.mark.postgres

STORE = EventStore()
PARKS = projection_of("park")
TABLES = projection_tables(STORE.schema)
EVENTS = 20_000
FILL = text(
    "INSERT INTO datapatterns.projection_parked"
    " (name, version, key_digest, position, event_type, silent)"
    " SELECT 'selling', 1, :hot, position, 'test.sold', false"
    " FROM generate_series(1, CAST(:events AS int)) position"
)
RETURNED = text(
    "SELECT pg_stat_get_xact_tuples_returned('datapatterns.projection_parked'::regclass)"
    " + sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index"
    " WHERE indrelid = 'datapatterns.projection_parked'::regclass"
)


def looked_at(conn: Connection) -> int:
    """Return how many events that wait this transaction has looked at."""
    return int(conn.execute(RETURNED).scalar_one())


@pytest.mark.parametrize("analyzed", [False, True])
def test_no_page_goes_through_all_that_waits_of_a_row(engine: Engine, *, analyzed: bool) -> None:
    Base.metadata.create_all(engine)
    Projections(STORE).catch_up(engine, PARKS)
    hot = key_digest("hot")
    with engine.begin() as conn:
        conn.execute(FILL, {"hot": hot, "events": EVENTS})
        if analyzed:
            conn.execute(text("ANALYZE datapatterns.projection_parked"))
    with engine.begin() as conn:
        (lease,) = claim(conn, TABLES, PARKS, owner="me", seconds=30)
        digests = {key_digest(str(number)) for number in range(500)}

        found = find_parked(conn, TABLES, lease, digests | {hot})

        assert found == {hot}
        assert looked_at(conn) <= len(digests)
        conn.execute(text("SELECT count(*) FROM datapatterns.projection_parked WHERE silent"))
        assert looked_at(conn) >= EVENTS  # the control: what is looked at is counted
