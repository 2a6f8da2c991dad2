"""The server dies at a COMMIT, before or after carrying it out; nothing is lost or done twice."""

from collections.abc import Iterator
from itertools import count

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

from datapatterns import OutcomeUnknownError
from datapatterns.embedded import PostgresServer
from datapatterns.errors import CommitUnansweredError
from datapatterns.event_sourcing import NewEvent
from datapatterns.migrations import Migrations
from datapatterns.outcomes import Outcome, wait_for_outcome
from datapatterns.testing.faults import FaultProxy
from datapatterns.transactions import transaction
from tests.fixtures.doomed_workers import CART, INDEX, STORE, VIEW, add_lines, projections
from tests.fixtures.index_tables import assert_agrees, tables
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)
from tests.fixtures.view_tables import Base as ViewBase

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

SCANNED = [ItemScanned("apple", 30), ItemScanned("pear", 50), ItemScanned("apple", 40)]


class Doomed:
    """A server behind a network; it can be made to die at a COMMIT.

    Attributes:
        engine: The way to it.
        happens: Whether it carries the COMMIT out before it dies.
    """

    def __init__(self, server: PostgresServer, *, happens: bool) -> None:
        self.happens = happens
        self._server = server
        self._network = FaultProxy(server.url)
        self.engine = create_engine(self._network.url, poolclass=NullPool)

    def die_at_commit(self, number: int) -> None:
        """Die at the COMMIT of this number from now on, counted from 1."""
        commits = count(1)

        @event.listens_for(self.engine, "commit")
        def committing(_conn: Connection) -> None:
            if next(commits) != number:
                return
            if self.happens:
                self._network.cut_next_reply_to("COMMIT")
            else:
                self._server.kill()

    def restart(self) -> None:
        self._server.kill()
        self._server.start()

    def close(self) -> None:
        self.engine.dispose()
        self._network.close()


@pytest.fixture(params=[True, False], ids=["after it", "before it"])
def doomed(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Doomed]:
    """A migrated server that dies after it has carried a COMMIT out, and one that dies before."""
    Migrations({"main": postgres_server.url}).upgrade()
    doomed = Doomed(postgres_server, happens=request.param)
    yield doomed
    doomed.close()


def test_the_restarted_server_knows_what_became_of_a_traced_transaction(doomed: Doomed) -> None:
    with doomed.engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (body text)"))
    doomed.die_at_commit(1)

    with pytest.raises(OutcomeUnknownError) as raised:
        write_note(doomed.engine)
    doomed.restart()
    outcome = wait_for_outcome(doomed.engine, raised.value, timeout_seconds=10)

    assert outcome is (Outcome.COMMITTED if doomed.happens else Outcome.ABORTED)
    with doomed.engine.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM note")) == doomed.happens


def write_note(engine: Engine) -> None:
    with transaction(engine, traced=True) as conn:
        conn.execute(text("INSERT INTO note VALUES ('hello')"))


def test_an_append_is_there_once_after_a_retry(doomed: Doomed) -> None:
    batch = [NewEvent("put", {"what": "milk"})]

    def attempt() -> bool:
        with transaction(doomed.engine) as conn:
            return STORE.append(conn, CART, batch, expected_version=0).repeated

    doomed.die_at_commit(1)
    with pytest.raises(OutcomeUnknownError):
        attempt()
    doomed.restart()

    assert attempt() == doomed.happens
    with doomed.engine.connect() as conn:
        assert [event.version for event in STORE.read_stream(conn, CART)] == [1]


@pytest.mark.parametrize("commit", [1, 2, 3], ids=["lease", "page", "giving back"])
def test_a_projection_goes_on_from_its_checkpoint(doomed: Doomed, commit: int) -> None:
    create_tables(doomed.engine)
    append_all(doomed.engine, STORE, SCANNED)

    doomed.die_at_commit(commit)
    with pytest.raises(CommitUnansweredError):
        projections().run(doomed.engine, SalesByProduct)
    doomed.restart()
    projections().catch_up(doomed.engine, SalesByProduct, timeout_seconds=30)

    assert sales(doomed.engine) == expected_sales([(scanned, "1") for scanned in SCANNED])
    assert not projections().verify(doomed.engine, SalesByProduct).differences


def test_a_backfill_and_a_refresh_go_on_from_what_was_committed(doomed: Doomed) -> None:
    tables.create_all(doomed.engine)
    ViewBase.metadata.create_all(doomed.engine)
    with doomed.engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO customer (tenant_id, id, email)"
                " SELECT 1, n, 'at' || n FROM generate_series(1, 10) AS n"
            )
        )
        INDEX.create(conn)
    for step in (VIEW.create, VIEW.populate, add_lines):
        with doomed.engine.begin() as conn:
            step(conn)

    doomed.die_at_commit(1)
    with pytest.raises(OutcomeUnknownError):
        backfill(doomed.engine, limit=4)
    doomed.restart()
    backfill(doomed.engine, limit=100)
    doomed.die_at_commit(1)
    with pytest.raises(OutcomeUnknownError):
        refresh(doomed.engine)
    doomed.restart()
    refresh(doomed.engine)

    with doomed.engine.begin() as conn:
        INDEX.activate(conn)
        assert assert_agrees(conn, INDEX) == 10
    with doomed.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        assert VIEW.verify(conn) == []
        assert conn.scalar(text("SELECT sum(cents) FROM datapatterns.weekly_sales")) == 70


def backfill(engine: Engine, *, limit: int) -> None:
    with transaction(engine) as conn:
        INDEX.backfill(conn, limit=limit)


def refresh(engine: Engine) -> None:
    with transaction(engine) as conn:
        VIEW.refresh(conn)
