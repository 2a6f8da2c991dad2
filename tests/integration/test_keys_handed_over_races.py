"""Keys that go from row to row in one transaction, and others who want, read or mend them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, func, select, update

from datapatterns.errors import IndexBusyError, IndexKeyTakenError, ShardTransactionRefusedError
from datapatterns.failpoints import armed
from datapatterns.index_table.over_shards import finding, looking_up, walking
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import Died, needs_prepared_transactions, prepared
from tests.fixtures.blocking import until_waiting
from tests.fixtures.sharded_people import (
    EMAIL,
    Customer,
    both,
    by_email,
    email_on,
    empty,
    entries,
    people,
    rows,
    tenant_on,
)

pytestmark = pytest.mark.postgres

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    needs_prepared_transactions(urls[0])
    with people(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> Iterator[ShardCluster]:
    """Two rows on the first shard whose entries are on the second."""
    empty(shop)
    with shop.session() as session, session.begin():
        for number, email in enumerate(emails(shop), 1):
            session.add(Customer(tenant_id=tenant_on(shop, "s0"), id=number, email=email))
    yield shop
    shop.recover(grace_seconds=0)
    both.sweep(shop, [EMAIL])
    assert prepared(shop) == []
    assert both.verify(shop, [EMAIL])[EMAIL].clean
    assert entries(shop) == rows(shop)
    assert len({email for email, *_ in rows(shop)}) == len(rows(shop))


def emails(cluster: ShardCluster) -> tuple[str, str]:
    return email_on(cluster, "s1"), email_on(cluster, "s1", nth=1)


def swap(cluster: ShardCluster) -> None:
    tenant = tenant_on(cluster, "s0")
    with cluster.session(atomic=True) as session, session.begin():
        first, second = (
            session.get_one(Customer, (tenant, 1)),
            session.get_one(Customer, (tenant, 2)),
        )
        first.email, second.email = second.email, first.email


def give(cluster: ShardCluster, number: int, *, tenant: int) -> None:
    """Let a row of another tenant take the key of one that is there."""
    with cluster.session(atomic=True) as session, session.begin():
        row = session.get_one(Customer, (tenant_on(cluster, "s0"), number))
        email, row.email = row.email, None
        session.add(Customer(tenant_id=tenant, id=7, email=email))


def put(cluster: ShardCluster, tenant: int, email: str) -> None:
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=tenant, id=9, email=email))


class Working(threading.Thread):
    """Does something, and keeps what that raises."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work
        self.raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 -- looked at by the test
            self.raised = error

    def finish(self) -> BaseException | None:
        self.join(TIMEOUT)
        assert not self.is_alive()
        return self.raised


@contextmanager
def halted(
    failpoint: str, work: Callable[[], None]
) -> Iterator[Callable[[], BaseException | None]]:
    """Let a thread come to a failpoint; give what lets it go on, to its end."""
    arrived, goes_on = threading.Event(), threading.Event()

    def halt() -> None:
        arrived.set()
        assert goes_on.wait(TIMEOUT)

    with armed(failpoint, halt):
        thread = Working(work)
        assert arrived.wait(TIMEOUT), thread.raised

        def finish() -> BaseException | None:
            goes_on.set()
            return thread.finish()

        try:
            yield finish
        finally:
            finish()


def looked_up(cluster: ShardCluster, email: str) -> list[int]:
    with cluster.session() as session:
        return [row.id for row in by_email.lookup(session, email)]


def looked_up_together(cluster: ShardCluster, email: str) -> list[int]:
    with cluster.session() as session:
        [found] = by_email.lookup_many(session, [email]).values()
        return [row.id for row in found]


def as_object(cluster: ShardCluster, email: str) -> list[int]:
    with cluster.session() as session:
        return [each.id for each in by_email.objects(session, Customer, email)]


def by_statement(cluster: ShardCluster, email: str) -> list[int]:
    with cluster.session() as session:
        return list(session.scalars(select(Customer.id).where(Customer.email == email)))


def by_sum(cluster: ShardCluster, email: str) -> list[int]:
    with cluster.session() as session:
        return [session.scalars(select(func.sum(Customer.id)).where(Customer.email == email)).one()]


def by_change(cluster: ShardCluster, email: str) -> list[int]:
    changed = update(Customer).where(Customer.email == email).values(city="Rome")
    with cluster.session() as session, session.begin():
        return list(session.scalars(changed.returning(Customer.id)))


READERS = [looked_up, looked_up_together, as_object, by_statement, by_sum, by_change]


@pytest.mark.parametrize("read", READERS)
def test_who_reads_between_the_two_commits_finds_who_has_the_key(
    cluster: ShardCluster, read: Callable[[ShardCluster, str], list[int]]
) -> None:
    first, second = emails(cluster)
    with halted("atomic.decided", lambda: swap(cluster)) as finish:
        assert read(cluster, first) == [2]
        assert read(cluster, second) == [1]
        assert finish() is None
    assert (looked_up(cluster, first), looked_up(cluster, second)) == ([2], [1])


@pytest.mark.parametrize("read", READERS)
def test_without_ending_what_is_decided_he_would_find_nobody(
    cluster: ShardCluster,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[ShardCluster, str], list[int]],
) -> None:
    for module in (looking_up, finding):
        monkeypatch.setattr(module, "end_decided", lambda *_: None)
    first, _ = emails(cluster)
    with halted("atomic.decided", lambda: swap(cluster)):
        assert read(cluster, first) in ([], [None])


@pytest.mark.parametrize("at", ["index.keys-claimed", "index.keys-handed-over"])
def test_who_reads_before_it_is_decided_finds_who_had_the_key(
    cluster: ShardCluster, at: str
) -> None:
    first, second = emails(cluster)
    with halted(at, lambda: swap(cluster)):
        assert (looked_up(cluster, first), looked_up(cluster, second)) == ([1], [2])
        assert (by_statement(cluster, first), by_statement(cluster, second)) == ([1], [2])


@pytest.mark.parametrize(
    ("at", "of", "waits_on"),
    [
        ("index.keys-claimed", "s0", "s0"),
        ("index.keys-claimed", "s1", "s0"),
        ("index.keys-handed-over", "s0", "s0"),
        ("index.keys-handed-over", "s1", "s1"),
        ("atomic.branch-prepared", "s0", "s0"),
        ("atomic.branch-prepared", "s1", "s1"),
        ("atomic.decided", "s0", "s1"),
        ("atomic.decided", "s1", "s1"),
    ],
)
def test_who_wants_the_key_waits_and_does_not_get_it(
    cluster: ShardCluster, at: str, of: str, waits_on: str
) -> None:
    tenant, (first, _) = tenant_on(cluster, of, nth=1), emails(cluster)
    with halted(at, lambda: swap(cluster)) as finish:
        wanting = Working(lambda: put(cluster, tenant, first))
        until_waiting(cluster.engines[waits_on], 1)
        assert finish() is None
        assert isinstance(wanting.finish(), IndexKeyTakenError)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_nobody_waits_for_ever_for_who_has_died(cluster: ShardCluster) -> None:
    first, _ = emails(cluster)

    def die() -> None:
        raise Died

    with armed("atomic.decided", die), pytest.raises(Died):
        swap(cluster)
    with pytest.raises(IndexBusyError):
        put(cluster, tenant_on(cluster, "s1"), first)
    with pytest.raises(IndexBusyError):
        give(cluster, 2, tenant=tenant_on(cluster, "s1"))

    cluster.recover(grace_seconds=0)
    with pytest.raises(IndexKeyTakenError):
        put(cluster, tenant_on(cluster, "s1"), first)
    give(cluster, 2, tenant=tenant_on(cluster, "s1"))
    assert looked_up(cluster, first) == [7]


def test_who_hands_a_key_on_waits_for_who_has_handed_it_over(cluster: ShardCluster) -> None:
    """The rows are free, their entries not yet."""
    first, second = emails(cluster)
    with halted("atomic.decided", lambda: swap(cluster)) as finish:
        giving = Working(lambda: give(cluster, 2, tenant=tenant_on(cluster, "s0", nth=1)))
        until_waiting(cluster.engines["s1"], 1)
        assert finish() is None
        assert giving.finish() is None
    assert (looked_up(cluster, first), looked_up(cluster, second)) == ([7], [1])


def test_who_takes_a_key_for_another_row_waits_for_that_rows_commit(cluster: ShardCluster) -> None:
    """Its entry shows it first: the row's shard is the one that has not followed yet."""
    key, heir = email_on(cluster, "s0"), tenant_on(cluster, "s1")
    put(cluster, tenant_on(cluster, "s0"), key)

    with halted("atomic.decided", lambda: give(cluster, 9, tenant=heir)) as finish:
        wanting = Working(lambda: put(cluster, tenant_on(cluster, "s0", nth=1), key))
        until_waiting(cluster.engines["s1"], 1)
        assert finish() is None
        assert isinstance(wanting.finish(), IndexKeyTakenError)
    assert looked_up(cluster, key) == [7]


def test_verify_and_sweep_between_the_two_commits_find_nothing_wrong(
    cluster: ShardCluster,
) -> None:
    with halted("atomic.decided", lambda: swap(cluster)) as finish:
        assert both.verify(cluster, [EMAIL])[EMAIL].clean
        assert both.sweep(cluster, [EMAIL], older_than_seconds=0)[EMAIL].removed == 0
        assert finish() is None


def test_without_ending_what_is_decided_verify_would_call_it_damage(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "end_decided_texts", lambda *_: None)
    with halted("atomic.decided", lambda: swap(cluster)) as finish:
        report = both.verify(cluster, [EMAIL])[EMAIL]
        assert (report.missing, report.orphaned) == (2, 2)
        assert finish() is None
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("at", "ends_as"),
    [
        ("index.keys-handed-over", None),
        ("atomic.branch-prepared", ShardTransactionRefusedError),
        ("atomic.decided", None),
    ],
)
def test_recovery_may_come_at_any_step(
    cluster: ShardCluster, at: str, ends_as: type[BaseException] | None
) -> None:
    first, second = emails(cluster)
    with halted(at, lambda: swap(cluster)) as finish:
        cluster.recover(grace_seconds=0)
        raised = finish()
    assert raised is None if ends_as is None else isinstance(raised, ends_as)
    expected = ([2], [1]) if ends_as is None else ([1], [2])
    assert (looked_up(cluster, first), looked_up(cluster, second)) == expected


def test_included_columns_follow_a_change_that_has_not_seen_the_entry(
    cluster: ShardCluster,
) -> None:
    """It is committed while the entry leads to the other row still."""
    tenant = tenant_on(cluster, "s0")

    def rename() -> None:
        with cluster.session() as session, session.begin():
            session.get_one(Customer, (tenant, 2)).name = "Renamed"

    with halted("atomic.decided", lambda: swap(cluster)) as finish:
        rename()
        assert finish() is None
    assert [row[3] for row in rows(cluster)].count("Renamed") == 1
