"""Compare a read model with its replay: by checksums beside a full join, and who waits for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from typing import Final

from sqlalchemy import BigInteger, Connection, Engine, text
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.baskets import ItemRemoved, ItemScanned
from benchmarks.delays import DelayClaim, Traveller
from benchmarks.interleaving import Claim, Contestant
from benchmarks.sales import Base, fill_log, vacuum
from datapatterns import DataLayer
from datapatterns.cqrs import Projection, Projections, on
from datapatterns.cqrs.tables.comparing import Comparison
from datapatterns.cqrs.tables.differences import count_rows, find_differences
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.replaying import AnyReplay, advance_replay, replayed
from datapatterns.cqrs.tables.stored_rows import Suspects, one_snapshot, suspected
from datapatterns.event_sourcing import RecordedEvent
from datapatterns.transactions import fresh_reads, reading

EVENTS: Final = 200_000
PAGE_EVENTS: Final = 10_000
CASES: Final = ("equal", "one row differs", "held")

_HOLD: Final = text("SELECT 1 FROM datapatterns.projection_shard FOR UPDATE")


class Sale(Base):
    """One thing that was scanned or removed: a row for each event."""

    __tablename__ = "sale"

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int | None] = mapped_column(BigInteger)
    cents: Mapped[int | None] = mapped_column(BigInteger)
    basket: Mapped[str | None]


class Sales(Projection, into=Sale, version=1):
    """As many rows as events."""

    @on(ItemScanned, key=lambda _, meta: meta.position)
    def _(self, row: Sale, scanned: ItemScanned, meta: RecordedEvent) -> None:
        row.product_id, row.cents, row.basket = scanned.product_id, scanned.cents, meta.stream.key

    @on(ItemRemoved, key=lambda _, meta: meta.position)
    def _(self, row: Sale, removed: ItemRemoved, meta: RecordedEvent) -> None:
        row.product_id, row.cents, row.basket = removed.product_id, -removed.cents, meta.stream.key


@dataclass(frozen=True)
class Stage:
    """A read model, and a replay of it beside."""

    engine: Engine
    conn: Connection
    replay: AnyReplay
    suspects: Suspects
    differing: int

    def by_checksums(self) -> int:
        """Do as `Projections.verify` does, once the replay is there."""
        models = read_models_of(Sales)
        with one_snapshot(self.engine, models) as seen:
            seen.execute(text("SELECT 1"))
            found = Comparison(models, self.replay, self.suspects, 20, None).run(self.conn, seen)
        assert len(found.differences) == self.differing
        return found.rows

    def by_a_join(self) -> int:
        """Compare all rows at once, while nobody may move the read model on."""
        (model,) = read_models_of(Sales).values()
        (replay,) = self.replay.models.values()
        with reading(self.conn):
            self.conn.execute(_HOLD)
            found = find_differences(self.conn, model, replay, limit=20)
            assert len(found) == self.differing
            return count_rows(self.conn, replay)

    def longest_wait(self, compare: Callable[[], int]) -> list[float]:
        """Return how long a runner would have waited for its checkpoint at most, meanwhile."""
        waits, done = list[float](), Event()
        runner = Thread(target=self._run, args=(waits, done))
        runner.start()
        compare()
        done.set()
        runner.join()
        return [max(waits)]

    def _run(self, waits: list[float], done: Event) -> None:
        while not (done.is_set() and waits):
            began = time.perf_counter()
            with self.engine.begin() as conn:
                conn.execute(_HOLD)
            waits.append(time.perf_counter() - began)


@contextmanager
def claim(case: str) -> Iterator[Claim | DelayClaim]:
    """A row for each event; the replay is there before."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        Base.metadata.create_all(layer.engine)
        fill_log(layer, EVENTS)
        Projections(layer.events).catch_up(
            layer.engine, Sales, timeout_seconds=600, page_events=PAGE_EVENTS
        )
        vacuum(layer.engine)
        differing = 0 if case == "equal" else 1
        if differing:
            with layer.engine.begin() as conn:
                conn.execute(text("UPDATE sale SET cents = -1 WHERE position = 7"))
        conn = stack.enter_context(fresh_reads(layer.engine))
        replay = stack.enter_context(replayed(conn, layer.events, Sales, page_events=PAGE_EVENTS))
        replay.left_out = LeftOut(Sales)
        advance_replay(conn, replay)
        suspects = stack.enter_context(suspected(conn, read_models_of(Sales)))
        set_up = Stage(layer.engine, conn, replay, suspects, differing)
        if case == "held":
            yield _held(set_up)
            return
        yield Claim(
            f"compare {EVENTS:,} rows with a replay that is there ({case})",
            "rows",
            [
                Contestant("verify: checksums first", "ours", set_up.by_checksums),
                Contestant("a full join of all", "rival", set_up.by_a_join),
            ],
        )


def _held(stage: Stage) -> DelayClaim:
    return DelayClaim(
        f"how long a runner waits at most while {EVENTS:,} rows are compared",
        [
            Traveller(
                "verify: a snapshot", "ours", partial(stage.longest_wait, stage.by_checksums)
            ),
            Traveller(
                "a full join under a lock", "rival", partial(stage.longest_wait, stage.by_a_join)
            ),
        ],
    )
