"""Writers of broadcast and sharded rows die anywhere, and recovery gives no grace: copies agree."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from decimal import Decimal
from random import Random
from threading import Event

import pytest
from sqlalchemy import URL, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from datapatterns.errors import (
    AbortedTransactionError,
    OutcomeUnknownError,
    ShardTransactionRefusedError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import ShardCluster
from datapatterns.sharding.sessions import broadcast_writing, shard_work
from tests.fixtures.atomic import Died, decisions, needs_prepared_transactions, prepared
from tests.fixtures.broadcast_model import (
    Cart,
    Country,
    Rate,
    broadcast_shop,
    family_on_each,
    the_copy,
)
from tests.fixtures.effort import THOROUGH

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.chaos,
    # Who has died does not roll back; here his session does.
    pytest.mark.filterwarnings("ignore:transaction already deassociated"),
]

WRITERS = 3
TRANSACTIONS = 200 if THOROUGH else 12
DEADLY = (
    "atomic.branch-prepared",
    "atomic.decision-written",
    "atomic.decided",
    "atomic.branch-settled",
)
CODES = [f"c{number}" for number in range(6)]


@pytest.fixture
def cluster(shard_urls: list[URL], monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    monkeypatch.setattr(broadcast_writing, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(shard_work, "LOCK_SECONDS", 0.5)
    with broadcast_shop(shard_urls[:3]) as cluster:
        yield cluster


class Undone(Exception):  # noqa: N818 -- no error, but a change of mind
    pass


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


class Storm:
    """Writers that die now and then, and recovery that gives nobody a grace."""

    def __init__(self, cluster: ShardCluster) -> None:
        self.cluster = cluster
        self.families = family_on_each(cluster)
        self._over = Event()
        self._dice = Random(7)  # noqa: S311 -- no secret

    def rage(self) -> Counter[str]:
        """Return how the transactions have ended."""
        with ExitStack() as stack, ThreadPoolExecutor(WRITERS + 1) as pool:
            for name in DEADLY:
                stack.enter_context(armed(name, self._die_sometimes, visit=None))
            recovering = pool.submit(self._recover)
            try:
                return sum(pool.map(self._write, range(WRITERS)), Counter[str]())
            finally:
                self._over.set()
                recovering.result()

    def _die_sometimes(self) -> None:
        if self._dice.random() < 0.05:
            raise Died

    def _recover(self) -> None:
        while not self._over.is_set():
            self.cluster.recover(grace_seconds=0)

    def _write(self, number: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        dice = Random(number)  # noqa: S311 -- no secret
        for _ in range(TRANSACTIONS):
            try:
                self._transaction(dice)
            except (Died, Undone, StaleDataError, AbortedTransactionError) as end:
                seen[type(end).__name__] += 1
            except (ShardTransactionRefusedError, OutcomeUnknownError) as end:
                seen[type(end).__name__] += 1
            except DBAPIError as error:
                seen[type(error.orig).__name__] += 1
            else:
                seen["committed"] += 1
        return seen

    def _transaction(self, dice: Random) -> None:
        with self.cluster.session(atomic=True) as session, session.begin():
            writer = Writer(session, self.families, dice)
            for _ in range(dice.randint(1, 3)):
                writer.do_something()
            if dice.random() < 0.2:
                raise Undone


EXPECTED = {
    "committed", "Died", "Undone", "StaleDataError", "AbortedTransactionError",
    "ShardTransactionRefusedError", "OutcomeUnknownError", "LockNotAvailable", "DeadlockDetected",
    "UniqueViolation", "ForeignKeyViolation",
}  # fmt: skip


def test_copies_are_equal_whoever_dies(cluster: ShardCluster) -> None:
    storm = Storm(cluster)

    seen = storm.rage()
    for _ in range(2):
        cluster.recover(grace_seconds=0)

    assert seen.keys() <= EXPECTED, seen
    assert seen["committed"] > 0
    assert (prepared(cluster), decisions(cluster)) == ([], [])
    for table in (Country, Rate):
        assert cluster.verify_broadcast(table).equal, seen
    assert the_copy(cluster, "country")
