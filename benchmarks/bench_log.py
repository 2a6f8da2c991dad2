"""Read the whole log into typed events, beside keyset pages by hand and ``eventsourcing``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from eventsourcing.application import Application
from sqlalchemy import URL

from benchmarks.baskets import DECODERS, basket_event, driver
from benchmarks.interleaving import Claim, Contestant
from benchmarks.rival import fill_basket, rival_application
from datapatterns import DataLayer
from datapatterns.event_sourcing import ANY, StreamId, TypedLog

EVENTS = 20_000
STREAMS = 200
PAGE_EVENTS = 500

_PAGE = """
SELECT e.position, s.category, s.key, s.tenant, e.version, t.name, e.data::text
  FROM datapatterns.event e
  JOIN datapatterns.stream s ON s.id = e.stream_id
  JOIN datapatterns.event_type t ON t.id = e.type_id
 WHERE e.position > %s ORDER BY e.position LIMIT %s
"""


@contextmanager
def claim() -> Iterator[Claim]:
    """Pages of 500 from one connection; all decode each event into its class."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        _fill(layer)
        url = layer.engine.url
        rival = stack.enter_context(rival_application(url))
        yield Claim(
            f"read a log of {EVENTS:,} events",
            "events",
            [
                Contestant("TypedLog.read", "ours", _ours(stack, layer)),
                Contestant("SELECT, decoded by msgspec", "limit", _limit(stack, url)),
                Contestant("eventsourcing, decoded by its mapper", "rival", _rival(rival)),
            ],
        )


def _fill(layer: DataLayer) -> None:
    for first in range(0, EVENTS, EVENTS // STREAMS):
        new = [basket_event(number) for number in range(first, first + EVENTS // STREAMS)]
        with layer.engine.begin() as conn:
            layer.events.append(conn, StreamId("basket", str(first)), new, expected_version=ANY)
    with layer.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE")


def _ours(stack: ExitStack, layer: DataLayer) -> Callable[[], int]:
    conn, log = stack.enter_context(layer.engine.connect()), TypedLog(layer.events)

    def run() -> int:
        page, count = log.read(conn, limit=PAGE_EVENTS), 0
        while page.events:
            conn.commit()  # after a ROLLBACK the driver would prepare its statements anew
            count += len(page.events)
            page = log.read(conn, page, limit=PAGE_EVENTS)
        conn.commit()
        return count

    return run


def _limit(stack: ExitStack, url: URL) -> Callable[[], int]:
    conn = stack.enter_context(driver(url, autocommit=True))

    def run() -> int:
        after = count = 0
        while rows := conn.execute(_PAGE, (after, PAGE_EVENTS), prepare=True).fetchall():
            for row in rows:
                DECODERS[row[5]].decode(row[6])
            count += len(rows)
            after = rows[-1][0]
        return count

    return run


def _rival(application: Application) -> Callable[[], int]:
    for _ in range(STREAMS):
        fill_basket(application, EVENTS // STREAMS)

    def run() -> int:
        start, count = 0, 0
        while page := application.recorder.select_notifications(
            start, PAGE_EVENTS, inclusive_of_start=False
        ):
            for notification in page:
                application.mapper.to_domain_event(notification)
            count += len(page)
            start = page[-1].id
        return count

    return run
