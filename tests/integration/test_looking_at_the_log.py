"""Pages are read in transactions that end by COMMIT, of which nothing can be lost."""

from contextlib import closing

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.errors import OutcomeUnknownError
from datapatterns.event_sourcing import ANY, EventStore, Follower, NewEvent, StreamId
from datapatterns.transactions import looking, reading, watch_commits
from tests.fixtures.lost_commits import Loss, Network

pytestmark = pytest.mark.postgres

store = EventStore()
_PREPARED = text("SELECT count(*) FROM pg_prepared_statements")
OFTEN = 8
"""More often than psycopg sends a statement before it prepares it."""


def write(conn: Connection, count: int) -> None:
    events = [NewEvent("thing.happened", {"n": n}) for n in range(count)]
    store.append(conn, StreamId("s", "a"), events, expected_version=ANY)


def test_whoever_looks_again_finds_its_statements_prepared(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, OFTEN)

    with closing(Follower(store, engine, limit=1).pages()) as pages:
        for _ in range(OFTEN):
            assert next(pages).events

    with engine.connect() as conn:  # the only one of the pool
        assert conn.scalar(_PREPARED)


def test_a_transaction_that_is_rolled_back_forgets_them(conn: Connection) -> None:
    """The control."""
    conn.rollback()
    for _ in range(OFTEN):
        with reading(conn):
            store.read_log(conn, limit=1)

    assert not conn.scalar(_PREPARED)


@pytest.mark.chaos
@pytest.mark.parametrize("watched", [True, False])
def test_a_lost_answer_to_a_commit_of_nothing_is_a_lost_connection(
    network: Network, far: Engine, loss: Loss, *, watched: bool
) -> None:
    if watched:
        watch_commits(far)
    trap = loss.strike(network)

    with pytest.raises(OperationalError) as raised, far.connect() as conn, looking(conn):
        store.read_log(conn)

    assert trap.has_fired
    assert raised.value.connection_invalidated


@pytest.mark.chaos
def test_a_watched_engine_still_tells_of_the_commits_that_come_after_a_look(
    network: Network, far: Engine
) -> None:
    watch_commits(far)
    with far.connect() as conn:
        with looking(conn):
            store.read_log(conn)
        Loss(happens=True).strike(network)

        with pytest.raises(OutcomeUnknownError), conn.begin():
            write(conn, 1)


@pytest.mark.chaos
def test_a_follower_of_a_watched_engine_goes_on_when_such_an_answer_is_lost(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    watch_commits(far)
    with engine.begin() as conn:
        write(conn, 3)
    seen = []

    with closing(Follower(store, far, limit=1).pages()) as pages:
        for _ in range(3):
            trap = loss.strike(network)
            seen += [event.version for event in next(pages).events]
            assert trap.has_fired

    assert seen == [1, 2, 3]
