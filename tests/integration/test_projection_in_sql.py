"""Statements move a read model on, a range of the log at a time."""

from sqlalchemy import Engine

from datapatterns.cqrs import Projections
from datapatterns.event_sourcing import EventStore
from tests.fixtures.read_models import ItemScanned, append_all
from tests.fixtures.set_models import TotalByProduct, create_tables, totals

STORE = EventStore()


def test_a_range_is_applied_by_one_statement(engine: Engine) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 100), ItemScanned("tea", 250)] * 3)

    done = Projections().catch_up(engine, TotalByProduct, page_events=4)

    assert (done.events, done.caught_up) == (6, True)
    assert totals(engine) == {"milk": (3, 300), "tea": (3, 750)}
    assert Projections().verify(engine, TotalByProduct, page_events=2).matches
    assert Projections().rebuild(engine, TotalByProduct).events == 6
