"""Appends that keep a read model, and switches of how it is kept, in every order."""

from collections.abc import Sequence
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.cqrs import InlineProjections, Projections
from datapatterns.cqrs.tables import inline, inline_holding
from datapatterns.cqrs.tables.inline_holding import Kept, lock_keys
from datapatterns.event_sourcing import ANY, EventStore, RecordedEvent, StreamId
from datapatterns.event_sourcing.appending.appending import StreamBatch
from datapatterns.event_sourcing.appending.keeping_inline import AppendedByStream
from datapatterns.testing import ManualClock
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.read_models import ItemScanned, SalesByProduct, create_tables
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import function_without

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
KEEPING = EventStore(inline=InlineProjections((SalesByProduct,)))
UNAWARE = EventStore()
SHOWN = text("SELECT quantity, last_basket FROM product_sales WHERE product = :product")
HAPPENED = text(
    "SELECT s.key FROM datapatterns.event AS e JOIN datapatterns.stream AS s ON s.id = e.stream_id"
    " WHERE e.data ->> 'product' = :product ORDER BY e.position"
)


class Till:
    """Two scan the same new product, at tills of their own."""

    def __init__(self, gated: Engine, plain: Engine, store: EventStore = KEEPING) -> None:
        self.projections = Projections(KEEPING, clock=ManualClock())
        self._gated, self._plain, self._store = gated, plain, store
        self.product = ""

    def begin(self) -> None:
        self.product = uuid4().hex[:20]
        self.projections.make_inline(self._plain, SalesByProduct)

    def scan(self, name: str) -> None:
        with self._gated.begin() as conn:
            stream = StreamId("till", f"{name}-{self.product}")
            scanned = [ItemScanned(self.product, 1)]
            self._store.append(conn, stream, scanned, expected_version=ANY)

    def two_scans(self) -> Tasks:
        self.begin()
        return {"one": partial(self.scan, "one"), "two": partial(self.scan, "two")}

    def one_scan(self) -> Tasks:
        self.begin()
        return {"one": partial(self.scan, "one")}

    def scan_and_switch(self, *, to_inline: bool) -> Tasks:
        self.begin()
        switch = self.projections.make_async
        if to_inline:
            self.projections.make_async(self._plain, SalesByProduct)
            switch = self.projections.make_inline
        return {
            "scan": partial(self.scan, "one"),
            "switch": partial(switch, self._gated, SalesByProduct),
        }

    def row_is_the_fold_of_the_log(self, _outcome: Outcome) -> None:
        self.projections.make_async(self._plain, SalesByProduct)
        self.projections.catch_up(self._plain, SalesByProduct)
        asked = {"product": self.product}
        with self._plain.begin() as conn:
            happened = conn.execute(HAPPENED, asked).scalars().all()
            shown = conn.execute(SHOWN, asked).one_or_none()
        expected = (len(happened), happened[-1]) if happened else None
        assert shown == expected, f"the log gives {expected}, the row is {shown}"


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> None:
    create_tables(plain)


def test_two_appends_to_a_new_key_are_folded_in_the_order_of_the_log(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    till = Till(gated, plain)

    explored = explorer.explore(
        till.two_scans,
        invariant=till.row_is_the_fold_of_the_log,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(30),
    )

    assert explored.schedules > 5


def test_an_append_may_die_anywhere(explorer: Explorer, gated: Engine, plain: Engine) -> None:
    till = Till(gated, plain)

    explorer.explore(
        till.two_scans,
        invariant=till.row_is_the_fold_of_the_log,
        crash_at=lambda _: True,
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
        max_preemptions=0,
        max_schedules=at_most(40),
    )


def test_without_the_lock_on_the_key_one_of_two_is_lost(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till(gated, plain)
    monkeypatch.setattr(inline, "_key_digests", lambda *_: set())

    with pytest.raises(InterleavingError, match="the log gives"):
        explorer.explore(
            till.two_scans, invariant=till.row_is_the_fold_of_the_log, max_preemptions=PREEMPTIONS
        )


def test_with_the_lock_after_the_append_rows_are_folded_in_another_order_than_the_log(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till(gated, plain)
    lock, read_back = lock_keys, inline._read_back  # noqa: SLF001 -- the steps to exchange

    def put_off(
        conn: Connection, schema: str, names: list[str], kept: Kept, locks: dict[str, list[int]]
    ) -> None:
        conn.info["late"] = partial(lock, conn, schema, names, kept, locks)
        lock(conn, schema, names, kept, {"shared": [], "exclusive": []})

    def lock_and_read_back(
        store: EventStore,
        conn: Connection,
        batches: Sequence[StreamBatch],
        appended: AppendedByStream,
    ) -> list[RecordedEvent]:
        conn.info.pop("late")()
        return read_back(store, conn, batches, appended)

    monkeypatch.setattr(inline, "lock_keys", put_off)
    monkeypatch.setattr(inline, "_read_back", lock_and_read_back)

    with pytest.raises(InterleavingError, match="the log gives"):
        explorer.explore(
            till.two_scans, invariant=till.row_is_the_fold_of_the_log, max_preemptions=PREEMPTIONS
        )


@pytest.mark.parametrize("to_inline", [True, False], ids=["to inline", "to async"])
def test_a_switch_beside_an_append_loses_and_doubles_nothing(
    explorer: Explorer, gated: Engine, plain: Engine, *, to_inline: bool
) -> None:
    till = Till(gated, plain)

    explored = explorer.explore(
        partial(till.scan_and_switch, to_inline=to_inline),
        invariant=till.row_is_the_fold_of_the_log,
        max_preemptions=1,
        max_schedules=at_most(30),
    )

    assert explored.schedules > 5


def test_without_the_lock_on_the_mode_a_switch_beside_an_append_doubles_it(
    explorer: Explorer, gated: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = Till(gated, plain)
    monkeypatch.setattr(inline_holding, "mode_lock", lambda _schema, _name: 1)

    with pytest.raises(InterleavingError, match="the log gives"):
        explorer.explore(
            partial(till.scan_and_switch, to_inline=False),
            invariant=till.row_is_the_fold_of_the_log,
            max_preemptions=1,
        )


def test_without_the_guard_who_does_not_keep_it_appends_unseen(
    explorer: Explorer, gated: Engine, plain: Engine
) -> None:
    till = Till(gated, plain, UNAWARE)

    explorer.explore(
        till.one_scan,
        invariant=till.row_is_the_fold_of_the_log,
        allowed_errors=(OperationalError,),
    )
    guard = "IF forgotten IS NOT NULL THEN"
    with (
        function_without(
            plain, "datapatterns.guard_inline_projections", guard, instead="IF false THEN"
        ),
        pytest.raises(InterleavingError, match="the log gives"),
    ):
        explorer.explore(till.one_scan, invariant=till.row_is_the_fold_of_the_log)
