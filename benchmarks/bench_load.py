"""Load an aggregate from its events, or from a snapshot, beside the same rows by hand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

import msgspec
from eventsourcing.application import Application
from sqlalchemy import URL, Engine

from benchmarks.baskets import DECODERS, Basket, basket_event, driver
from benchmarks.interleaving import Claim, Contestant
from benchmarks.rival import fill_basket, rival_application
from datapatterns import DataLayer
from datapatterns.event_sourcing import NEW_STREAM

CASES = tuple((events, snapshot) for events in (100, 1_000, 10_000) for snapshot in (False, True))
"""How many events the stream has, and whether there is a snapshot."""

EVENTS = 10_000
"""Without a snapshot, so many are read in a round; but at least one stream."""

LOADS = 200
"""With a snapshot, in a round."""

TAIL = 10
"""Events that follow the snapshot."""

_ROWS = """
SELECT e.version, t.name, e.data::text
  FROM datapatterns.stream s
  JOIN datapatterns.event e ON e.stream_id = s.id
  JOIN datapatterns.event_type t ON t.id = e.type_id
 WHERE s.tenant = '' AND s.category = 'basket' AND s.key = %s AND e.version > %s
 ORDER BY e.version
"""
_SNAPSHOT = """
SELECT n.version, n.state::text FROM datapatterns.snapshot n
  JOIN datapatterns.stream s ON s.id = n.stream_id
 WHERE s.tenant = '' AND s.category = 'basket' AND s.key = %s
 ORDER BY n.version DESC LIMIT 1
"""


class State(msgspec.Struct):
    """What a snapshot of the basket holds."""

    items: int
    cents: int


@contextmanager
def claim(case: tuple[int, bool]) -> Iterator[Claim]:
    """All decode each event into its class; the limit folds nothing."""
    events, snapshot = case
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        _fill(layer, events, snapshot=snapshot)
        rival = stack.enter_context(rival_application(layer.engine.url))
        basket_id = fill_basket(rival, events, snapshot_at=events - TAIL if snapshot else None)
        _vacuum(layer.engine)
        loads = LOADS if snapshot else max(1, EVENTS // events)
        title = f"load a stream of {events:,} events"
        yield Claim(
            f"{title}, its snapshot {TAIL} events old" if snapshot else title,
            "loads",
            [
                Contestant("store.load", "ours", _ours(stack, layer, loads)),
                Contestant(
                    "SELECT, decoded by msgspec",
                    "limit",
                    _limit(stack, layer.engine.url, loads, snapshot=snapshot),
                ),
                Contestant(
                    "eventsourcing, repository.get", "rival", _rival(rival, basket_id, loads)
                ),
            ],
        )


def _fill(layer: DataLayer, events: int, *, snapshot: bool) -> None:
    older = events - TAIL
    new = [basket_event(number) for number in range(events)]
    with layer.engine.begin() as conn:
        stream = Basket("1").stream
        layer.events.append(conn, stream, new[:older], expected_version=NEW_STREAM)
        if snapshot:
            assert layer.events.save_snapshot(conn, layer.events.load(conn, Basket, "1"))
        layer.events.append(conn, stream, new[older:], expected_version=older)


def _vacuum(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE")


def _ours(stack: ExitStack, layer: DataLayer, loads: int) -> Callable[[], int]:
    conn = stack.enter_context(layer.engine.connect())

    def run() -> int:
        for _ in range(loads):
            layer.events.load(conn, Basket, "1")
        conn.commit()  # after a ROLLBACK the driver would prepare its statements anew
        return loads

    return run


def _limit(stack: ExitStack, url: URL, loads: int, *, snapshot: bool) -> Callable[[], int]:
    conn = stack.enter_context(driver(url, autocommit=True))
    of_state = msgspec.json.Decoder(State)

    def run() -> int:
        for _ in range(loads):
            version = 0
            if snapshot:
                found = conn.execute(_SNAPSHOT, ("1",), prepare=True).fetchone()
                assert found is not None
                version, state = found
                of_state.decode(state)
            rows = conn.execute(_ROWS, ("1", version), prepare=True).fetchall()
            for _, name, data in rows:
                DECODERS[name].decode(data)
        return loads

    return run


def _rival(application: Application, basket_id: UUID, loads: int) -> Callable[[], int]:
    def run() -> int:
        for _ in range(loads):
            application.repository.get(basket_id)
        return loads

    return run
