"""The rival: ``eventsourcing`` with PostgreSQL, with the settings that it has by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from sqlalchemy import URL

from benchmarks.baskets import MEMO

SAVE_EVENTS: Final = 500
"""Thousands in one save hang in its pipeline."""


class RivalBasket(Aggregate):  # type: ignore[misc] # Any: mypy does not follow the rival
    """The same basket."""

    def __init__(self) -> None:
        self.items = 0
        self.cents = 0

    @event("Scanned")  # type: ignore[untyped-decorator]
    def scan(self, product_id: int, quantity: int, cents: int, memo: str) -> None:
        """Put a product in."""
        del product_id, memo
        self.items += quantity
        self.cents += cents

    @event("Removed")  # type: ignore[untyped-decorator]
    def remove(self, product_id: int, quantity: int, cents: int) -> None:
        """Take a product out."""
        del product_id
        self.items -= quantity
        self.cents -= cents


def settings_of(url: URL) -> dict[str, str]:
    """Return where ``eventsourcing`` finds the server."""
    return {
        "dbname": str(url.database),
        "host": str(url.query["host"]),
        "port": str(url.query["port"]),
        "user": str(url.username),
        "password": "",
    }


@contextmanager
def rival_recorder(url: URL, *, create: bool = False) -> Iterator[PostgresApplicationRecorder]:
    """Open the recorder of ``eventsourcing`` as it is by default: it locks its table."""
    with PostgresDatastore(**settings_of(url)) as datastore:
        recorder = PostgresApplicationRecorder(datastore)
        if create:
            recorder.create_table()
        yield recorder


@contextmanager
def rival_application(url: URL) -> Iterator[Application]:
    """Open an application that keeps snapshots."""
    settings = {f"POSTGRES_{name.upper()}": part for name, part in settings_of(url).items()}
    application: Application = Application(
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "IS_SNAPSHOTTING_ENABLED": "y",
            **settings,
        }
    )
    yield application
    application.close()


def fill_basket(application: Application, events: int, *, snapshot_at: int | None = None) -> UUID:
    """Save a basket with so many events; return its id."""
    basket = RivalBasket()
    for number in range(events - 1):  # its creation is the first
        if number + 1 == snapshot_at:
            application.save(basket)
            application.take_snapshot(basket.id)
        elif number % SAVE_EVENTS == 0:
            application.save(basket)
        if number % 10 == 9:
            basket.remove(number, 1, 148 + number)
        else:
            basket.scan(number + 1, 1, 149 + number, MEMO)
    application.save(basket)
    made: UUID = basket.id
    return made
