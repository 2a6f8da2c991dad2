"""Each basket is a stream of what happened at the till."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC

from datapatterns import ConflictError
from datapatterns.event_sourcing import (
    START,
    EventStore,
    HashChain,
    ImportedEvent,
    Position,
    StreamId,
    TypedLog,
    TypedPage,
)
from datapatterns_grocer.dataset import Line
from datapatterns_grocer.events import CATEGORY, Basket, ItemScanned, happenings
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import median_seconds, seconds
from datapatterns_grocer.truth import Check, compare

CHUNK_EVENTS = 20_000
PAGE_EVENTS = 5_000
SEGMENT_EVENTS = 20_000


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
    _seal(stage, store)
    _travel_in_time(stage, store, stage.live[0])
    _let_two_tills_collide(stage, store, stage.live[1])
    _show_a_snapshot(stage, store)


def ring_up(stage: Stage, lines: list[Line]) -> Position:
    """Shop a basket at the till, one transaction; return the token of the last event."""
    key = str(lines[0].basket_id)

    def shop(basket: Basket) -> None:
        basket.ring_up(lines)

    return stage.layer.events.handle(stage.layer.engine, Basket, key, shop).position


def verify(stage: Stage) -> Iterator[Check]:
    """Fold the log, and compare it with the files; look at the past, and at the seals."""
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
    yield _half_way(stage)
    with stage.layer.engine.begin() as conn:
        report = HashChain(stage.layer.events).verify(conn)
    yield compare("events: as they were sealed", derived=[(report.broken,)], truth=[(None,)])


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


def _seal(stage: Stage, store: EventStore) -> None:
    took = seconds(lambda: HashChain(store).seal_all(stage.layer.engine, limit=SEGMENT_EVENTS))
    sealed = _mark(stage, store)
    stage.screen.say(
        f"{sealed:,} events sealed in a chain of digests: {sealed / took:,.0f} events/s;"
        " who changes one is found out"
    )


def _half_way(stage: Stage) -> Check:
    """Ask what the household with the most baskets had paid when half of them were paid."""
    (household, then), *_ = stage.dataset.rows(
        "SELECT household_id, quantile_disc(paid_at, 0.5) FROM sold GROUP BY household_id"
        " ORDER BY count(DISTINCT basket_id) DESC, household_id LIMIT 1"
    )
    of_household = f"FROM sold WHERE household_id = {int(household)}"
    keys = stage.dataset.rows(f"SELECT DISTINCT basket_id {of_household} ORDER BY 1")
    with stage.layer.engine.begin() as conn:
        baskets = stage.layer.events.load_many(
            conn, Basket, [str(key) for (key,) in keys], at=then.replace(tzinfo=UTC)
        )
    return compare(
        f"events: what household {household} had paid half-way",
        derived=[(sum(basket.paid_cents or 0 for basket in baskets),)],
        truth=stage.dataset.rows(f"SELECT sum(cents) {of_household} AND paid_at <= '{then}'"),
    )


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
    log = TypedLog(stage.layer.events)
    count, page = 0, TypedPage([], START, START)
    while True:
        before = page.checkpoint
        with stage.layer.engine.begin() as conn:
            page = log.read(conn, page, limit=PAGE_EVENTS)
        count += len(page.events)
        scanned += [
            (typed.event.product_id, typed.event.quantity, typed.event.cents)
            for typed in page.events
            if isinstance(typed.event, ItemScanned)
        ]
        advance(page.checkpoint - before)
        if page.caught_up:
            return scanned, count
