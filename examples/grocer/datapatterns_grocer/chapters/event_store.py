"""Each basket is a stream of what happened at the till."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC

from datapatterns import ConflictError
from datapatterns.event_sourcing import START, EventStore, ImportedEvent, Position, StreamId
from datapatterns_grocer.dataset import Line
from datapatterns_grocer.events import CATEGORY, Basket, ItemScanned, happenings
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds, seconds
from datapatterns_grocer.truth import Check, compare

CHUNK_EVENTS = 20_000
PAGE_EVENTS = 5_000


def play(stage: Stage) -> None:
    """Import the receipts as events, then ring up one basket live."""
    stage.screen.heading(
        "Event sourcing",
        "Each basket is a stream of events: started, items scanned, coupons applied, paid.",
    )
    store = stage.layer.events
    took = seconds(lambda: _import(stage, store))
    imported = _mark(stage, store)
    stage.screen.say(
        f"{imported:,} events imported by COPY, behind the fence that every append takes:"
        f" {imported / took:,.0f} events/s"
    )
    ring_up(stage, stage.live[0])
    _travel_in_time(stage, store, stage.live[0])
    _let_two_tills_collide(stage, store, stage.live[1])
    _show_a_snapshot(stage, store)


def ring_up(stage: Stage, lines: list[Line]) -> Position:
    """Shop a basket at the till, one transaction; return the token of the last event."""
    first = lines[0]
    with stage.layer.engine.begin() as conn:
        basket = stage.layer.events.load(conn, Basket, str(first.basket_id))
        basket.start(first.household_id, first.store_id, first.week)
        for line in lines:
            basket.scan(line.product_id, line.quantity, line.cents)
            if line.coupon_cents:
                basket.apply_coupon(line.product_id, line.coupon_cents)
        basket.pay()
        return stage.layer.events.save(conn, basket)


def verify(stage: Stage) -> Iterator[Check]:
    """Fold the log, and compare it with the files."""
    total = _mark(stage, stage.layer.events)
    with stage.screen.progress("reading the whole log", total=total) as advance:
        scanned, count = _scanned(stage, advance)
    yield compare(
        "events: every item scanned, from the log",
        derived=scanned,
        truth=stage.dataset.rows("SELECT product_id, quantity, cents FROM sold"),
    )
    expected = stage.dataset.rows(
        "SELECT count(*) + 2 * count(DISTINCT basket_id) + count(*) FILTER (coupon_cents <> 0)"
        " FROM sold"
    )
    yield compare("events: how many there are", derived=[(count,)], truth=expected)


def _import(stage: Stage, store: EventStore) -> None:
    baskets = stage.dataset.count("baskets") - len(stage.live)
    tracked = stage.screen.track(stage.loaded_baskets(), "importing baskets", total=baskets)
    for number, chunk in enumerate(_chunks(tracked)):
        with stage.layer.engine.begin() as conn:
            store.import_events(conn, chunk, source="receipts", chunk=number)


def _chunks(baskets: Iterable[list[Line]]) -> Iterator[list[ImportedEvent]]:
    chunk: list[ImportedEvent] = []
    for lines in baskets:
        stream = StreamId(CATEGORY, str(lines[0].basket_id))
        at = lines[0].paid_at.replace(tzinfo=UTC)
        chunk += [ImportedEvent(stream, event, at) for event in happenings(lines)]
        if len(chunk) >= CHUNK_EVENTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _travel_in_time(stage: Stage, store: EventStore, lines: list[Line]) -> None:
    key = str(lines[0].basket_id)
    with stage.layer.engine.connect() as conn:
        now = store.load(conn, Basket, key)
        middle = now.version // 2
        earlier = store.load(conn, Basket, key, version=middle)
    stage.screen.table(
        [f"basket {key}", "items", "cents", "paid"],
        [
            [f"as of event {middle}", earlier.items, earlier.cents, earlier.paid_cents is not None],
            ["now", now.items, now.cents, now.paid_cents is not None],
        ],
    )


def _let_two_tills_collide(stage: Stage, store: EventStore, lines: list[Line]) -> None:
    first = lines[0]
    with stage.layer.engine.connect() as conn:
        too_late = store.load(conn, Basket, str(first.basket_id))
    too_late.start(first.household_id, first.store_id, first.week)
    ring_up(stage, lines)
    with stage.layer.engine.begin() as conn:
        try:
            store.save(conn, too_late)
        except ConflictError as error:
            stage.screen.say(f"a second till with the same basket: [yellow]{error}")


def _show_a_snapshot(stage: Stage, store: EventStore) -> None:
    ((key, _),) = stage.dataset.rows(
        "SELECT basket_id, count(*) FROM sold GROUP BY ALL ORDER BY 2 DESC, 1 LIMIT 1"
    )
    with stage.layer.engine.connect() as conn:
        replayed = median_seconds(lambda: store.load(conn, Basket, str(key)))
        basket = store.load(conn, Basket, str(key))
        conn.rollback()
        store.save_snapshot(conn, basket)
        conn.commit()
        from_snapshot = median_seconds(lambda: store.load(conn, Basket, str(key)))
    stage.screen.table(
        [f"longest stream, {basket.version} events", "to load"],
        [["replayed", milliseconds(replayed)], ["from its snapshot", milliseconds(from_snapshot)]],
    )


def _mark(stage: Stage, store: EventStore) -> Position:
    with stage.layer.engine.begin() as conn:
        return store.high_water_mark(conn)


def _scanned(
    stage: Stage, advance: Callable[[int], None]
) -> tuple[list[tuple[int, int, int]], int]:
    scanned: list[tuple[int, int, int]] = []
    count, position, caught_up = 0, START, False
    while not caught_up:
        with stage.layer.engine.begin() as conn:
            page = stage.layer.events.read_log(conn, position, limit=PAGE_EVENTS)
        count += len(page.events)
        events = [event for each in page.events for event in stage.layer.events.decode(each)]
        scanned += [
            (event.product_id, event.quantity, event.cents)
            for event in events
            if isinstance(event, ItemScanned)
        ]
        advance(page.checkpoint - position)
        position, caught_up = page.checkpoint, page.caught_up
    return scanned, count
