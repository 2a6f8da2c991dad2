"""Writers of broadcast and sharded rows die anywhere, and recovery gives no grace: copies agree."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from random import Random

import pytest
from sqlalchemy import URL, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from datapatterns.sharding import ShardCluster
from datapatterns.sharding.sessions import broadcast_writing, shard_work
from tests.fixtures.atomic import decisions, needs_prepared_transactions, prepared
from tests.fixtures.broadcast_model import (
    Cart,
    Country,
    Rate,
    broadcast_shop,
    family_on_each,
    the_copy,
)
from tests.fixtures.effort import THOROUGH
from tests.fixtures.storms import Storm, Undone

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.chaos,
    # Who has died does not roll back; here his session does.
    pytest.mark.filterwarnings("ignore:transaction already deassociated"),
]

WRITERS = 3
TRANSACTIONS = 200 if THOROUGH else 12
CODES = [f"c{number}" for number in range(6)]


@pytest.fixture
def cluster(shard_urls: list[URL], monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    monkeypatch.setattr(broadcast_writing, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(shard_work, "LOCK_SECONDS", 0.5)
    with broadcast_shop(shard_urls[:3]) as cluster:
        yield cluster


class Writer:
    """Does anything that may be done to broadcast tables and to rows that refer to them."""

    def __init__(self, session: Session, families: list[int], dice: Random) -> None:
        self.session = session
        self.families = families
        self.dice = dice

    def do_something(self) -> None:
        steps: list[Callable[[], object]] = [
            self.add, self.remove, self.raise_visits, self.change_object, self.rates, self.cart,
            self.savepoint,
        ]  # fmt: skip
        self.dice.choice(steps)()

    def add(self) -> None:
        self.session.add(Country(code=self.dice.choice(CODES), name="ü"))
        self.session.flush()

    def remove(self) -> None:
        self.session.execute(delete(Country).where(Country.code == self.dice.choice(CODES)))

    def raise_visits(self) -> None:
        some = Country.code > self.dice.choice(CODES)
        self.session.execute(update(Country).where(some).values(visits=Country.visits + 1))

    def change_object(self) -> None:
        for country in self.session.scalars(select(Country).limit(2)):
            country.name = f"{self.dice.random()}"
        self.session.flush()

    def rates(self) -> None:
        rows = [
            {"percent": Decimal(n), "country_code": None} for n in range(self.dice.randint(1, 3))
        ]
        self.session.execute(insert(Rate), rows)
        self.session.execute(update(Rate).values(percent=func.random() * 10))

    def cart(self) -> None:
        code = self.dice.choice(CODES)
        family = self.dice.choice(self.families)
        cart = Cart(family_id=family, id=self.dice.randint(0, 10**9), country_code=code)
        self.session.add(cart)
        self.session.flush()

    def savepoint(self) -> None:
        with suppress(Undone, DBAPIError, StaleDataError), self.session.begin_nested():
            self.do_something()
            if self.dice.random() < 0.5:
                raise Undone


EXPECTED = {
    "committed", "Died", "Undone", "StaleDataError", "AbortedTransactionError",
    "ShardTransactionRefusedError", "OutcomeUnknownError", "LockNotAvailable", "DeadlockDetected",
    "UniqueViolation", "ForeignKeyViolation",
}  # fmt: skip


def test_copies_are_equal_whoever_dies(cluster: ShardCluster) -> None:
    families = family_on_each(cluster)

    def write(dice: Random, _: int) -> None:
        with cluster.session(atomic=True) as session, session.begin():
            writer = Writer(session, families, dice)
            for _ in range(dice.randint(1, 3)):
                writer.do_something()
            if dice.random() < 0.2:
                raise Undone

    seen = Storm(cluster, write, writers=WRITERS, transactions=TRANSACTIONS, deaths=0.05).rage()

    assert seen.keys() <= EXPECTED, seen
    assert seen["committed"] > 0
    assert (prepared(cluster), decisions(cluster)) == ([], [])
    for table in (Country, Rate):
        assert cluster.verify_broadcast(table).equal, seen
    assert the_copy(cluster, "country")
