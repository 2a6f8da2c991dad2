"""Indexes are built while rows are written, writers and builders die, and buckets move."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import pytest
from sqlalchemy import URL, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import DataPatternsError, ShardIndexNotReadyError
from datapatterns.failpoints import armed
from datapatterns.index_table import BuildPace
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import Died
from tests.fixtures.effort import THOROUGH
from tests.fixtures.old_people import settle, unindexed
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import (
    CITY,
    EMAIL,
    Customer,
    both,
    by_city,
    by_email,
    entries,
    rows,
    tenants,
)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

OLD = 1_000 if THOROUGH else 200
TRANSACTIONS = 200 if THOROUGH else 25
WRITERS = 3
WRITER_DIES = ("index.keys-locked", "index.some-claimed", "index.keys-claimed")
BUILDER_DIES = (
    "index.page-read",
    "index.page-claimed",
    "index.page-noted",
    "index.backfilled",
    "index.verifying",
    "index.digested",
    "index.walked",
    "index.ready",
)


@dataclass
class Trouble:
    """What happens to whoever works at the index, and what came of it."""

    dice: Random = field(default_factory=lambda: Random(5))  # noqa: S311 -- no secret
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    seen: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def die_sometimes(self) -> None:
        with self.lock:
            dies = not self.over.is_set() and self.dice.random() < 0.1
        if dies:
            raise Died

    def note(self, what: str) -> None:
        with self.lock:
            self.seen.add(what)


@pytest.fixture
def shops(databases: Databases) -> Iterator[list[ShardCluster]]:
    """Over the same shards: READ COMMITTED, and REPEATABLE READ."""
    urls: list[URL] = [databases.new() for _ in range(2)]
    with unindexed(urls), ExitStack() as stack:
        yield [
            stack.enter_context(
                ShardCluster(
                    control=urls[0],
                    shards=named(urls),
                    groups=[tenants],
                    indexes=both,
                    engine_options={"isolation_level": level, "pool_size": 10},
                )
            )
            for level in ("READ COMMITTED", "REPEATABLE READ")
        ]
    for url in urls:
        databases.drop(url)


def write(shops: list[ShardCluster], trouble: Trouble, number: int) -> None:
    """Change rows that were there before, and fight for a few keys with others."""
    dice = Random(number)  # noqa: S311 -- no secret
    wanted = [f"{letter}@contested" for letter in "abcdef"]
    for at in range(TRANSACTIONS):
        mine = dice.randrange(OLD // WRITERS) * WRITERS + number
        try:
            with dice.choice(shops).session() as session, session.begin():
                row = session.get(Customer, (mine % 40, mine))
                if row is None:
                    email = dice.choice(wanted)
                    session.add(Customer(tenant_id=mine % 40, id=mine, email=email, city="new"))
                elif dice.random() < 0.2:
                    session.delete(row)
                else:
                    row.email = dice.choice([*wanted, f"{number}-{at}@own", row.email])
                    row.name, row.city = f"{number}-{at}", f"city {dice.randrange(7)}"
        except Died:
            trouble.note("writer died")
        except (DataPatternsError, DBAPIError) as error:
            trouble.note(type(error).__name__)
        else:
            trouble.note("committed")


def build(shop: ShardCluster, trouble: Trouble) -> None:
    """Build until it is done, whoever dies."""
    pace = BuildPace(chunk_rows=17, lease_seconds=0.2)
    while True:
        try:
            both.build(shop, pace=pace)
        except Died:
            trouble.note("builder died")
        except DataPatternsError as error:
            trouble.note(f"builder: {type(error).__name__}")
        else:
            return


def move(shop: ShardCluster, trouble: Trouble) -> None:
    """Move buckets of rows and of entries to and fro."""
    dice = Random(3)  # noqa: S311 -- no secret
    groups = [tenants, both.indexes[EMAIL].group, both.indexes[CITY].group]
    while not trouble.over.is_set():
        group = dice.choice(groups)
        owners = shop.router.map_of(group).owners
        bucket = dice.randrange(len(owners))
        shop.move(group, bucket, to="s1" if owners[bucket] == "s0" else "s0", clean_after_seconds=0)
        trouble.note("moved")


def look(shop: ShardCluster, trouble: Trouble) -> None:
    """Whoever looks is told that it is not ready, or finds what there is."""
    while not trouble.over.is_set():
        for number in range(0, OLD, 40):
            email = f"{number}@example.org"
            try:
                with shop.session() as session:
                    found = by_email.lookup(session, email)
                    kept = session.get(Customer, (number % 40, number))
            except ShardIndexNotReadyError:
                trouble.note("refused")
                continue
            except (DataPatternsError, DBAPIError) as error:
                trouble.note(type(error).__name__)
                continue
            trouble.note("looked")
            # Nobody gives these keys to anybody else; once gone, they stay away.
            if not found and kept is not None and kept.email == email:
                trouble.wrong.append(email)


def test_it_is_whole_in_the_end_and_never_read_before(shops: list[ShardCluster]) -> None:
    shop, trouble = shops[0], Trouble()
    settle(shop, OLD)
    both.create(shop)
    writers = [
        threading.Thread(target=write, args=(shops, trouble, number)) for number in range(WRITERS)
    ]
    builders = [threading.Thread(target=build, args=(each, trouble)) for each in shops]
    others = [threading.Thread(target=each, args=(shop, trouble)) for each in (move, look)]

    with ExitStack() as stack:
        for name in (*WRITER_DIES, *BUILDER_DIES):
            stack.enter_context(armed(name, trouble.die_sometimes, visit=None))
        for thread in (*writers, *builders, *others):
            thread.start()
        for thread in (*writers, *builders):
            thread.join()
        trouble.over.set()
        for thread in others:
            thread.join()

    assert trouble.wrong == []
    assert {"committed", "writer died", "builder died", "moved", "refused"} <= trouble.seen
    assert {one.state for one in both.status(shop)} == {"ready"}
    assert all(found.clean for found in both.repair(shop).values())
    both.sweep(shop, older_than_seconds=0)
    swept = both.sweep(shop, older_than_seconds=0)
    assert {name: (one.orphaned, one.undecided) for name, one in swept.items()} == {
        EMAIL: (0, 0),
        CITY: (0, 0),
    }
    assert all(found.clean for found in both.verify(shop).values())
    assert entries(shop) == rows(shop)
    agree_with_scans(shop)


def agree_with_scans(shop: ShardCluster) -> None:
    """Each key leads to exactly the rows that a scan of all shards finds."""
    with shop.session(scatter=True) as session:
        everybody = session.execute(
            select(Customer.tenant_id, Customer.id, Customer.email, Customer.city)
        ).all()
        emails = {row.email for row in everybody if row.email is not None}
        assert len(emails) == sum(row.email is not None for row in everybody)
        for index, name in ((by_email, "email"), (by_city, "city")):
            for key in {getattr(row, name) for row in everybody} - {None}:
                expected = {(r.tenant_id, r.id) for r in everybody if getattr(r, name) == key}
                found = index.lookup(session, key)
                assert {(row.tenant_id, row.id) for row in found} == expected
