"""A process that was forked while its parent waits for a read model can wait for it, too."""

import os
from threading import Thread

import pytest
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections
from datapatterns.event_sourcing import EventStore, Position
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.read_models import ItemScanned, SalesByProduct, append_all, create_tables

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)


def wait(engine: Engine, token: Position) -> None:
    PROJECTIONS.wait(engine, SalesByProduct, token, timeout_seconds=30)


# What Python says of it from 3.12 on is what is tested here.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_look_of_the_parent_is_not_waited_for_in_the_child(engine: Engine) -> None:
    create_tables(engine)
    token = append_all(engine, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.run(engine, SalesByProduct)

    looking = Thread(target=wait, args=(engine, token))
    with engine.connect() as conn:
        conn.execute(text("LOCK TABLE datapatterns.projection_shard IN ACCESS EXCLUSIVE MODE"))
        looking.start()
        until_blocked_by(engine, conn)
        child = os.fork()
        if child == 0:
            _wait_and_exit(engine, token)
        conn.rollback()
    looking.join(60)

    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _wait_and_exit(engine: Engine, token: Position) -> None:
    code = 1
    try:
        engine.dispose(close=False)  # as SQLAlchemy tells forked processes to
        wait(engine, token)
        code = 0
    finally:
        os._exit(code)
