"""Two transactions and one key: each guard shown to be needed by what happens without it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, Connection, insert, text

from datapatterns.errors import IndexKeyTakenError
from datapatterns.failpoints import armed
from datapatterns.index_table.over_shards import claiming, notes, owners, shard_indexes
from datapatterns.index_table.over_shards import entries as entry_statements
from datapatterns.index_table.over_shards.claiming import Claiming
from datapatterns.index_table.over_shards.entries import Claimed, Entries, remove_everywhere
from datapatterns.index_table.over_shards.net_changes import Entry, Included
from datapatterns.index_table.over_shards.owners import has_key
from datapatterns.index_table.over_shards.reserving import Reserving
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.blocking import until_waiting
from tests.fixtures.sharded_people import (
    Customer,
    both,
    by_email,
    empty,
    entries,
    people,
    rows,
    tenant_on,
)

pytestmark = pytest.mark.postgres

BOB = "bob@example.org"
TIMEOUT = 30.0


class Crash(BaseException):
    """Nothing is tidied up after it."""


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with people(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    empty(shop)
    return shop


def put(cluster: ShardCluster, tenant: int, number: int = 1, email: str | None = BOB) -> None:
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=tenant, id=number, email=email))


def remove(cluster: ShardCluster, tenant: int, number: int = 1) -> None:
    with cluster.session() as session, session.begin():
        session.delete(session.get_one(Customer, (tenant, number)))


class Halted(threading.Thread):
    """Works in a thread that stops at a failpoint until it is let go."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work = work
        self.arrived, self.goes_on = threading.Event(), threading.Event()
        self.raised: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 -- looked at by the test
            self.raised = error

    def halt(self) -> None:
        if threading.current_thread() is self:
            self.arrived.set()
            assert self.goes_on.wait(TIMEOUT)

    def finish(self) -> None:
        self.goes_on.set()
        self.join(TIMEOUT)
        assert not self.is_alive()


@contextmanager
def halted(failpoint: str, work: Callable[[], None]) -> Iterator[Halted]:
    thread = Halted(work)
    with armed(failpoint, thread.halt, visit=None):
        thread.start()
        assert thread.arrived.wait(TIMEOUT), thread.raised
        try:
            yield thread
        finally:
            thread.finish()


def claimed_and_not_committed(cluster: ShardCluster, other: str) -> list[object]:
    """One transaction has claimed; another wants the key; then the first commits."""
    first, second = tenant_on(cluster, "s0"), tenant_on(cluster, other, nth=1)
    ended = threading.Event()

    def want() -> None:
        try:
            put(cluster, second)
        finally:
            ended.set()

    with halted("index.keys-claimed", lambda: put(cluster, first)) as claimer:
        wanting = Halted(want)
        wanting.start()
        # Either it waits for the lock, or, without one, it has its way at once.
        waits = threading.Thread(target=until_waiting, args=(cluster.engines["s0"], 1))
        if _with_lock:
            waits.start()
            waits.join(TIMEOUT)
        else:
            assert ended.wait(TIMEOUT)
        claimer.finish()
        wanting.finish()
    return [claimer.raised, wanting.raised]


_with_lock = True


@pytest.mark.parametrize("other", ["s0", "s1"])
def test_who_wants_a_key_waits_for_who_has_claimed_it_and_not_committed(
    cluster: ShardCluster, other: str
) -> None:
    first, second = claimed_and_not_committed(cluster, other)

    assert first is None
    assert isinstance(second, IndexKeyTakenError)
    assert entries(cluster) == rows(cluster)


def test_who_wants_one_of_many_keys_waits_for_who_has_claimed_them(cluster: ShardCluster) -> None:
    """Then the index is locked, not each key."""
    first, second = tenant_on(cluster, "s0"), tenant_on(cluster, "s1")

    def load() -> None:
        values = [
            {"tenant_id": first, "id": number, "email": f"{number}@example.org"}
            for number in range(300)
        ]
        with cluster.session() as session, session.begin():
            session.execute(insert(Customer), values)

    with halted("index.keys-claimed", load) as claimer:
        wanting = Halted(lambda: put(cluster, second, email="7@example.org"))
        wanting.start()
        until_waiting(cluster.engines["s0"], 1)
        claimer.finish()
        wanting.finish()
    assert isinstance(wanting.raised, IndexKeyTakenError)
    assert len(rows(cluster)) == 300
    assert entries(cluster) == rows(cluster)


def no_lock(_conn: Connection, _locks: object, **_named: object) -> None:
    pass


def lock_the_row(conn: Connection, _locks: object, **_named: object) -> None:
    """As Vitess does, whose database waits for rows that are not committed."""
    conn.execute(text("SELECT 1 FROM customer FOR SHARE")).close()


@pytest.mark.parametrize("instead", [no_lock, lock_the_row])
def test_without_the_lock_two_rows_would_have_one_key(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch, instead: Callable[..., None]
) -> None:
    monkeypatch.setattr(owners, "lock_keys", instead)
    monkeypatch.setattr(f"{__name__}._with_lock", False)

    assert claimed_and_not_committed(cluster, "s1") == [None, None]
    assert len(rows(cluster)) == 2


def deleted_and_put_again(cluster: ShardCluster) -> None:
    """A row goes, and comes back with the same key before its entry is forgotten."""
    put(cluster, 1)
    with halted("index.base-committed", lambda: remove(cluster, 1)):
        put(cluster, 1)


def test_a_late_forgetting_does_not_take_the_entry_of_the_next_row(cluster: ShardCluster) -> None:
    deleted_and_put_again(cluster)

    assert entries(cluster) == rows(cluster)
    assert len(rows(cluster)) == 1


def test_without_the_claim_a_late_forgetting_would_take_it(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = entry_statements.Entries.removed

    def unguarded(self: Entries, conn: Connection, seen: list[Claimed], *, alone: bool) -> int:
        standing = self.found(conn, [each.entry.key for each in seen])
        gone = {each.entry for each in seen}
        return guarded(self, conn, [each for each in standing if each.entry in gone], alone=alone)

    monkeypatch.setattr(Entries, "removed", unguarded)
    deleted_and_put_again(cluster)

    assert len(rows(cluster)) == 1
    assert entries(cluster) == []


def test_a_row_that_claims_its_own_entry_again_claims_it_anew(cluster: ShardCluster) -> None:
    """Or a late forgetting could not tell the two."""
    put(cluster, 1)
    before = claims(cluster)
    with halted("index.base-committed", lambda: remove(cluster, 1)):
        put(cluster, 1)
        assert claims(cluster) != before


def claims(cluster: ShardCluster) -> list[object]:
    return [
        claim
        for engine in cluster.engines.values()
        for claim in _scalars(engine.connect(), "SELECT claim FROM customer_by_email")
    ]


def _scalars(conn: Connection, statement: str) -> list[object]:
    with conn:
        return list(conn.scalars(text(statement)))


def test_what_was_this_rows_before_stays_when_its_commit_fails(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, 2, email="taken@example.org")

    def back_and_taken() -> None:
        with cluster.session() as session, session.begin():
            row = session.get_one(Customer, (1, 1))
            row.email = None
            session.flush()
            row.email = BOB
            session.add(Customer(tenant_id=1, id=2, email="taken@example.org"))

    put(cluster, 1)
    with pytest.raises(IndexKeyTakenError):
        back_and_taken()
    assert entries(cluster) == rows(cluster)

    # Were it given up like any other claim, the committed row would be without entry.
    give_up = Claiming.give_up

    def give_up_all(self: Claiming) -> None:
        give_up(self)
        for each in self.kept:
            standing = both_found(self.entries, each.key)
            remove_everywhere(self.entries.access, self.entries.index, standing)

    monkeypatch.setattr(Claiming, "give_up", give_up_all)
    with pytest.raises(IndexKeyTakenError):
        back_and_taken()
    assert BOB not in [entry[0] for entry in entries(cluster)]


def both_found(of_index: Entries, key: tuple[str, ...]) -> list[Claimed]:
    [(shard, keys)] = of_index.by_shard([key]).items()
    with of_index.reading(shard, keys) as conn:
        return of_index.found(conn, keys)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_rows_first_and_entries_afterwards_would_lose_entries_in_a_crash(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise Crash

    with armed("index.keys-claimed", crash), pytest.raises(Crash):
        put(cluster, 1)
    assert rows(cluster) == []  # an entry that leads nowhere, and no harm

    claim = Claiming.claim
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(
        Claiming, "claim", lambda self, added: late.append(lambda: claim(self, added))
    )
    committed = Reserving.committed

    def claim_afterwards(self: Reserving) -> None:
        committed(self)
        for each in late:
            each()

    monkeypatch.setattr(Reserving, "committed", claim_afterwards)
    with armed("index.base-committed", crash), pytest.raises(Crash):
        put(cluster, 2, email="rob@example.org")
    assert [row[0] for row in rows(cluster)] == ["rob@example.org"]
    assert "rob@example.org" not in [entry[0] for entry in entries(cluster)]


def test_a_sweep_waits_for_who_has_claimed_and_not_committed(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with halted("index.keys-claimed", lambda: put(cluster, tenant_on(cluster, "s0"))) as claimer:
        sweeping = Halted(lambda: sweep(cluster))
        sweeping.start()
        until_waiting(cluster.engines["s0"], 1)
        claimer.finish()
        sweeping.finish()
    assert sweeping.raised is None
    assert entries(cluster) == rows(cluster)

    empty(cluster)
    monkeypatch.setattr(owners, "lock_keys", no_lock)
    with halted("index.keys-claimed", lambda: put(cluster, 1)):
        sweep(cluster)
    assert len(rows(cluster)) == 1
    assert entries(cluster) == []


def sweep(cluster: ShardCluster) -> None:
    """Remove entries that lead nowhere, of any age."""
    index = both.indexes["customer_by_email"]
    with cluster.session() as session:
        access = session.shard_access
    of_index = Entries(access, index)
    for email, *_ in entries(cluster):
        for seen in both_found(of_index, (email,)):
            if not has_key(access, index, seen.entry, lock_seconds=TIMEOUT):
                remove_everywhere(access, index, [seen])


def test_a_look_up_follows_a_key_that_is_handed_over_while_it_reads(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, 1)
    from datapatterns.index_table.over_shards import looking_up  # noqa: PLC0415

    read = looking_up.read_entries
    once = iter([True])

    def then_handed_over(*arguments: object, **named: object) -> object:
        found = read(*arguments, **named)  # type: ignore[arg-type]
        if next(once, False):
            remove(cluster, 1)
            put(cluster, 2)
        return found

    monkeypatch.setattr(looking_up, "read_entries", then_handed_over)
    with cluster.session() as session:
        assert [row.tenant_id for row in by_email.lookup(session, BOB)] == [2]


def test_locks_are_taken_before_claims_can_be_seen(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    lock, claim = notes.locked_changes, Claiming.claim

    def lock_first(*arguments: object, **named: object) -> object:
        order.append("lock")
        return lock(*arguments, **named)  # type: ignore[arg-type]

    def then_claim(self: Claiming, added: Mapping[Entry, Included]) -> None:
        order.append("claim")
        claim(self, added)

    monkeypatch.setattr(shard_indexes, "locked_changes", lock_first)
    monkeypatch.setattr(Claiming, "claim", then_claim)
    put(cluster, 1)
    assert order[:2] == ["lock", "claim"]


def overtaken_before_a_take_over(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> BaseException | None:
    """Two find an entry that leads nowhere; the second takes it over and commits before the first.

    The entry's row would be on the shard of the second: so its lock keeps neither waiting.
    """

    def crash() -> None:
        raise Crash

    with armed("index.keys-claimed", crash), pytest.raises(Crash):
        put(cluster, tenant_on(cluster, "s1"))
    assert (rows(cluster), len(entries(cluster))) == ([], 1)

    first = Halted(lambda: put(cluster, tenant_on(cluster, "s0")))

    def then_halted(*arguments: object, **named: object) -> bool:
        found = has_key(*arguments, **named)  # type: ignore[arg-type]
        first.halt()
        return found

    monkeypatch.setattr(claiming, "has_key", then_halted)
    first.start()
    assert first.arrived.wait(TIMEOUT), first.raised
    try:
        put(cluster, tenant_on(cluster, "s1", nth=1))
    finally:
        first.finish()
    return first.raised


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_who_takes_over_an_entry_looks_again_if_another_was_faster(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = overtaken_before_a_take_over(cluster, monkeypatch)

    assert isinstance(raised, IndexKeyTakenError)
    assert [row[1] for row in rows(cluster)] == [tenant_on(cluster, "s1", nth=1)]
    assert entries(cluster) == rows(cluster)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_without_the_claim_a_take_over_would_give_two_rows_one_key(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = Entries._is  # noqa: SLF001 -- only its last condition is taken away
    monkeypatch.setattr(Entries, "_is", lambda self, seen: guarded(self, seen)[:-1])

    assert overtaken_before_a_take_over(cluster, monkeypatch) is None
    assert len(rows(cluster)) == 2
    assert len(entries(cluster)) == 1
