"""The rival's read model: ``eventsourcing``'s projection, one event a transaction."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any, ClassVar, Final, TypeAlias

import psycopg
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL

from benchmarks.baskets import MEMO
from benchmarks.rival import SAVE_EVENTS

PATIENCE_SECONDS: Final = 300

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS rival_sales (
    product_id bigint PRIMARY KEY, quantity bigint NOT NULL, cents bigint NOT NULL)
"""
_ADD: Final = """
INSERT INTO rival_sales AS sales VALUES (%s, 1, %s) ON CONFLICT (product_id)
DO UPDATE SET quantity = sales.quantity + 1, cents = sales.cents + excluded.cents
"""


class RivalSale(Aggregate):  # type: ignore[misc] # Any: mypy does not follow the rival
    """A sale, which its creation says all about."""

    def __init__(self, product_id: int, cents: int, memo: str) -> None:
        self.product_id = product_id
        self.cents = cents
        self.memo = memo


class RivalShop(Application):  # type: ignore[misc]
    """Where the sales are."""

    name = "Shop"


class RivalView(PostgresTrackingRecorder):  # type: ignore[misc]
    """The table of the read model."""

    def __init__(self, datastore: Any, **options: Any) -> None:  # noqa: ANN401 -- the rival's
        super().__init__(datastore, **options)
        self.sql_create_statements.append(SQL(_CREATE))

    def add(self, product_id: int, cents: int, tracking: Tracking) -> None:
        """Count a sale, in one transaction with the position."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(_ADD, (product_id, cents), prepare=True)


Seen: TypeAlias = dict[int, float]
"""When the read model showed a notification, by its id."""


class RivalProjection(Projection[RivalView]):  # type: ignore[misc]
    """Counts sales, and says when one is counted."""

    name = "sales"
    until = 0
    reached = Event()
    seen: ClassVar[Seen] = {}

    @singledispatchmethod  # type: ignore[untyped-decorator]
    def process_event(self, _event: object, _tracking: Tracking) -> None:
        """Pass by."""

    @process_event.register(RivalSale.Created)  # type: ignore[untyped-decorator]
    def _(self, sale: Any, tracking: Tracking) -> None:  # noqa: ANN401
        self.view.add(sale.product_id, sale.cents, tracking)
        RivalProjection.seen[tracking.notification_id] = time.perf_counter()
        if tracking.notification_id == RivalProjection.until:
            RivalProjection.reached.set()


def shop_env(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what tells the rival where its server is."""
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        **{f"POSTGRES_{name.upper()}": part for name, part in settings.items()},
    }


def sale_at(number: int) -> RivalSale:
    """Return the sale of that number."""
    return RivalSale(number % 1_000, number % 97, MEMO)


class RivalFollower:
    """Runs the projection while sales are made."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._env = shop_env(settings)

    @contextmanager
    def following(self) -> Iterator[Seen]:
        """Give what has been seen so far; begins where it ended the last time."""
        RivalProjection.seen.clear()
        with ProjectionRunner(
            application_class=RivalShop,
            projection_class=RivalProjection,
            view_class=RivalView,
            env=self._env,
        ):
            yield RivalProjection.seen

    def wait_for(self, position: int) -> None:
        """Return when the read model shows ``position``."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while position not in RivalProjection.seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class RivalRunner:
    """Runs the projection from the first event to the last."""

    def __init__(self, settings: Mapping[str, str], events: int) -> None:
        self._settings = settings
        self._env = shop_env(settings)
        self._events = events

    @classmethod
    @contextmanager
    def filled(cls, settings: Mapping[str, str], *, events: int) -> Iterator["RivalRunner"]:
        """Give a runner and a log of so many sales."""
        runner = cls(settings, events)
        shop: Application[Any] = RivalShop(runner._env)
        numbers = range(events)
        for first in numbers[::SAVE_EVENTS]:
            some = numbers[first : first + SAVE_EVENTS]
            shop.save(*map(sale_at, some))
        shop.close()
        yield runner

    def reset(self) -> None:
        """Forget what was counted."""
        with psycopg.connect(make_conninfo(**self._settings), autocommit=True) as conn:
            conn.execute("DROP TABLE IF EXISTS rival_sales, sales_tracking")
            conn.execute("CHECKPOINT")

    def run(self) -> int:
        """Count all; return how many."""
        RivalProjection.until = self._events
        RivalProjection.reached.clear()
        with ProjectionRunner(
            application_class=RivalShop,
            projection_class=RivalProjection,
            view_class=RivalView,
            env=self._env,
        ):
            # Its own wait() polls at up to 0.8 s, too coarse to be timed.
            assert RivalProjection.reached.wait(PATIENCE_SECONDS)
        return self._events
