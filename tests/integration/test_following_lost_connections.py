"""A follower gets over lost connections, and gives up when it could not read for too long."""

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.embedded import EmbeddedServers
from datapatterns.event_sourcing import START, Follower, Pace, Position
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import wait_until
from tests.fixtures.followers import ENOUGH_SECONDS, both, following, store, write
from tests.fixtures.lost_commits import LosingClock, Loss, Network


@both
def test_a_killed_session_is_replaced_and_the_checkpoint_asked_for_again(
    engine: Engine, colour: str
) -> None:
    asked = []

    def kept(conn: Connection) -> Position:
        asked.append(conn.scalar(text("SELECT pg_backend_pid()")))
        return at_work.pages[-1].checkpoint if asked[1:] else START

    # An engine of its own: disposing of the test's would replace the follower's session unseen.
    own = create_engine(engine.url)
    with following(colour, own, after=kept) as at_work:
        with engine.begin() as conn:
            write(conn)
        at_work.wait_for(1)
        plain = create_engine(engine.url, isolation_level="AUTOCOMMIT")
        with plain.connect() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        plain.dispose()
        engine.dispose()
        wait_until(lambda: len(asked) > 1 or at_work.ended.done(), deadline_seconds=ENOUGH_SECONDS)
        with engine.begin() as conn:
            write(conn)
        at_work.wait_for(2)
    own.dispose()

    assert [event.version for event in at_work.seen] == [1, 2]


@both
def test_a_connection_that_is_lost_for_too_long_ends_it(colour: str) -> None:
    with EmbeddedServers() as servers:
        server = servers.postgres("gone")
        engine = create_engine(server.url)
        with engine.begin() as conn:
            upgrade(conn)
        server.kill()

        with (
            pytest.raises(OperationalError),
            following(colour, engine, pace=Pace(lost_seconds_max=0.05)) as at_work,
        ):
            at_work.ended.exception(timeout=ENOUGH_SECONDS)
        engine.dispose()


@both
def test_whoever_can_ask_but_never_read_gives_up(engine: Engine, colour: str) -> None:
    with engine.begin() as conn:
        write(conn)
    impatient = create_engine(engine.url.update_query_dict({"options": "-c lock_timeout=1"}))
    with engine.begin() as conn:
        conn.exec_driver_sql("LOCK TABLE datapatterns.event")
        with (
            pytest.raises(OperationalError, match="lock timeout"),
            following(colour, impatient, pace=Pace(lost_seconds_max=0.05)) as at_work,
        ):
            at_work.ended.exception(timeout=ENOUGH_SECONDS)
    impatient.dispose()


@pytest.mark.chaos
def test_whoever_never_hears_of_the_end_of_a_page_gives_up(
    engine: Engine, network: Network, far: Engine, loss: Loss
) -> None:
    with engine.begin() as conn:
        write(conn)
    pace = Pace(seconds_max=1, lost_seconds_max=60)
    clock = LosingClock(loss, network)

    with pytest.raises(OperationalError):
        next(Follower(store, far, pace=pace, clock=clock).pages())

    assert 60 < clock.monotonic() < 65
