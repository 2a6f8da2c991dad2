"""What is written to several shards in one block happens on all of them, or on none."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from datapatterns.breaker import FAILURES_MAX, RETRY_SECONDS
from datapatterns.embedded import EmbeddedServers
from datapatterns.errors import (
    AbortedTransactionError,
    OutcomeUnknownError,
    SettingsError,
    ShardTransactionEndedError,
    ShardTransactionRefusedError,
    ShardUnavailableError,
    WrongShardError,
)
from datapatterns.failpoints import armed
from datapatterns.sharding import AtomicWork, Recovered, ShardCluster
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.testing import Databases, ManualClock, wait_until
from datapatterns.testing.faults import FaultProxy
from tests.fixtures.atomic import (
    Died,
    baskets,
    decisions,
    keys_on_each,
    needs_prepared_transactions,
    prepared,
    put,
    put_on_each,
)
from tests.fixtures.shard_model import households, named, sharded_shop

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster
        cluster.recover(grace_seconds=0)
        assert prepared(cluster) == []


def die() -> None:
    raise Died


def test_a_block_is_committed_on_every_shard(cluster: ShardCluster) -> None:
    work = put_on_each(cluster)

    assert work.left_to_recovery == ()
    assert len(baskets(cluster)) == 3
    assert (prepared(cluster), decisions(cluster)) == ([], [])


def test_an_error_leaves_nothing_anywhere(cluster: ShardCluster) -> None:
    def fail(_work: AtomicWork) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        put_on_each(cluster, fail)

    assert baskets(cluster) == []


def test_who_writes_to_one_shard_prepares_nothing(cluster: ShardCluster) -> None:
    first, *others = keys_on_each(cluster)

    with armed("atomic.branch-prepared", die), cluster.atomically() as work:
        put(work, first)
        for key in others:
            work.connect(households, household_id=key).execute(text("SELECT 1"))

    assert baskets(cluster) == [first]


def test_keys_of_one_shard_share_a_connection(cluster: ShardCluster) -> None:
    first = keys_on_each(cluster)[0]

    with cluster.atomically() as work:
        conns = {id(work.connect(households, household_id=key)) for key in (first, first, first)}

    assert len(conns) == 1


@pytest.mark.parametrize(
    ("failpoint", "visit", "happened"),
    [
        ("atomic.branch-prepared", 1, False),
        ("atomic.branch-prepared", 2, False),
        ("atomic.decision-written", 1, False),
        ("atomic.decided", 1, True),
        ("atomic.branch-settled", 1, True),
        ("atomic.branch-settled", 2, True),
    ],
)
def test_who_dies_on_the_way_leaves_all_or_nothing(
    cluster: ShardCluster, failpoint: str, visit: int, *, happened: bool
) -> None:
    with armed(failpoint, die, visit=visit), pytest.raises(Died):
        put_on_each(cluster)

    cluster.recover(grace_seconds=0)

    assert len(baskets(cluster)) == (3 if happened else 0)
    cluster.recover(grace_seconds=0)
    assert (prepared(cluster), decisions(cluster)) == ([], [])


def test_recovery_leaves_a_transaction_alone_that_is_under_way(cluster: ShardCluster) -> None:
    waiting: list[str] = []

    with armed("atomic.decision-written", lambda: waiting.extend(cluster.recover().waiting)):
        put_on_each(cluster)

    assert len(waiting) == 2
    assert len(baskets(cluster)) == 3


def test_a_transaction_that_recovery_gave_up_is_refused(cluster: ShardCluster) -> None:
    def recover() -> None:
        cluster.recover(grace_seconds=0)

    with (
        armed("atomic.branch-prepared", recover),
        pytest.raises(ShardTransactionRefusedError, match="repeat it"),
    ):
        put_on_each(cluster)

    assert baskets(cluster) == []
    assert cluster.recover(grace_seconds=0).waiting == {}
    assert decisions(cluster) == []


def test_a_transaction_that_has_decided_is_waited_for_not_given_up(cluster: ShardCluster) -> None:
    with armed("atomic.decision-written", lambda: cluster.recover(grace_seconds=0)):
        put_on_each(cluster)

    assert len(baskets(cluster)) == 3


def test_what_recovery_has_settled_first_is_no_failure(cluster: ShardCluster) -> None:
    with armed("atomic.decided", lambda: cluster.recover(grace_seconds=0)):
        work = put_on_each(cluster)

    assert len(baskets(cluster)) == 3
    assert len(work.left_to_recovery) == 2
    cluster.recover(grace_seconds=0)
    assert decisions(cluster) == []


def test_a_branch_whose_connection_breaks_is_left_to_recovery(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    killer = create_engine(shard_urls[1])

    def kill() -> None:
        with killer.connect() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    with armed("atomic.decided", kill):
        work = put_on_each(cluster)
    killer.dispose()

    assert work.left_to_recovery == ("s1",)
    assert len(baskets(cluster)) == 2
    assert len(cluster.recover().committed) == 1
    assert len(baskets(cluster)) == 3


def test_an_error_that_was_caught_commits_nothing(cluster: ShardCluster) -> None:
    def fail(work: AtomicWork) -> None:
        conn = work.connect(households, household_id=keys_on_each(cluster)[1])
        with suppress(DBAPIError):
            conn.execute(text("SELECT 1 / 0"))

    with pytest.raises(AbortedTransactionError):
        put_on_each(cluster, fail)

    assert baskets(cluster) == []


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_part_that_was_ended_by_itself_is_refused(cluster: ShardCluster, verb: str) -> None:
    first, *others = keys_on_each(cluster)

    def end(work: AtomicWork) -> None:
        getattr(work.connect(households, household_id=first), verb)()

    with pytest.raises(ShardTransactionEndedError, match="leave commit"):
        put_on_each(cluster, end)

    assert not {*others} & {*baskets(cluster)}


def test_what_the_server_refuses_to_prepare_commits_nothing(cluster: ShardCluster) -> None:
    def make_temporary(work: AtomicWork) -> None:
        conn = work.connect(households, household_id=keys_on_each(cluster)[1])
        conn.execute(text("CREATE TEMP TABLE t (i int)"))

    with pytest.raises(NotSupportedError, match="PREPARE"):
        put_on_each(cluster, make_temporary)

    assert baskets(cluster) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_deferred_constraint_of_any_shard_undoes_all(cluster: ShardCluster, place: int) -> None:
    """The primary finds out in its COMMIT, when the others are prepared already."""
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(text("CREATE TABLE once (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))

    def put_twice(work: AtomicWork) -> None:
        conn = work.connect(households, household_id=keys_on_each(cluster)[place])
        conn.execute(text("INSERT INTO once VALUES (1), (1)"))

    with pytest.raises(IntegrityError):
        put_on_each(cluster, put_twice)

    assert baskets(cluster) == []
    assert prepared(cluster) == []


@pytest.mark.parametrize("happens", [True, False])
def test_a_lost_answer_of_the_primary_is_found_out(
    cluster: ShardCluster, shard_urls: list[URL], *, happens: bool
) -> None:
    with FaultProxy(shard_urls[0]) as network:
        urls = {**named(shard_urls[:3]), "s0": network.url}
        with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as frail:
            lose = network.cut_next_reply_to if happens else network.cut_before_request
            with nullcontext() if happens else pytest.raises(ShardUnavailableError):
                put_on_each(frail, lambda _: lose("COMMIT"))

    assert len(baskets(cluster)) == (3 if happens else 0)


def test_a_primary_that_is_gone_leaves_it_to_recovery(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    with FaultProxy(shard_urls[0]) as network:
        urls = {**named(shard_urls[:3]), "s0": network.url}

        def lose() -> None:
            network.cut_next_reply_to("COMMIT")
            network.refuse()

        with (
            ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as frail,
            armed("atomic.decision-written", lose),
            pytest.raises(OutcomeUnknownError),
        ):
            put_on_each(frail)

    cluster.recover(grace_seconds=0)

    assert len(baskets(cluster)) == 3


@pytest.mark.parametrize("error", [PoolTimeout(), WrongShardError(expected="s0", found="s9")])
def test_a_primary_that_cannot_be_asked_undoes_nothing(
    cluster: ShardCluster, shard_urls: list[URL], error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    with FaultProxy(shard_urls[0]) as network:
        urls = {**named(shard_urls[:3]), "s0": network.url}
        with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as frail:

            def lose() -> None:
                network.cut_next_reply_to("COMMIT")
                event.listen(frail.engines["s0"], "do_connect", refuse)

            with armed("atomic.decision-written", lose), pytest.raises(OutcomeUnknownError):
                put_on_each(frail)

    cluster.recover(grace_seconds=0)

    assert len(baskets(cluster)) == 3


def test_a_primary_that_is_left_alone_undoes_nothing(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    """Unknown is not undone: neither by who commits, nor by recovery in the same process."""
    clock = ManualClock()
    with FaultProxy(shard_urls[0]) as network:
        urls = {**named(shard_urls[:3]), "s0": network.url}
        with ShardCluster(
            control=shard_urls[0], shards=urls, groups=[households], clock=clock
        ) as frail:

            def lose() -> None:
                network.cut_next_reply_to("COMMIT")
                network.refuse()
                for _ in range(FAILURES_MAX):
                    with pytest.raises(DBAPIError):
                        frail.engines["s0"].connect()
                network.pass_through()

            with armed("atomic.decision-written", lose), pytest.raises(OutcomeUnknownError):
                put_on_each(frail)
            meanwhile = frail.recover(grace_seconds=0)
            clock.advance(RETRY_SECONDS)
            afterwards = frail.recover(grace_seconds=0)

    assert (meanwhile.committed, meanwhile.rolled_back) == ([], [])
    assert meanwhile.unreachable == ["s0"]
    assert sorted(meanwhile.waiting) == sorted(afterwards.committed)
    assert len(baskets(cluster)) == 3


def set_on_all(cluster: ShardCluster, setting: str) -> None:
    """Set something for all connections to come."""
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            conn.execute(text(f'ALTER DATABASE "{engine.url.database}" SET {setting}'))
            conn.commit()
        engine.dispose()


def test_recovery_sees_what_it_has_waited_for_at_any_isolation_level(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    set_on_all(cluster, "default_transaction_isolation = 'repeatable read'")
    rounds: list[Future[Recovered]] = []
    is_waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def recover_meanwhile() -> None:
        recovering = pool.submit(strict.recover, grace_seconds=0)
        rounds.append(recovering)
        with strict.engines["s0"].connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            wait_until(lambda: recovering.done() or conn.scalar(is_waiting) == 1)

    with (
        ShardCluster(
            control=shard_urls[0], shards=named(shard_urls[:3]), groups=[households]
        ) as strict,
        ThreadPoolExecutor(1) as pool,
        armed("atomic.decision-written", recover_meanwhile),
    ):
        put_on_each(strict)

    assert rounds[0].result().waiting == {}
    assert len(baskets(cluster)) == 3


def test_a_statement_timeout_does_not_stop_recovery(cluster: ShardCluster) -> None:
    set_on_all(cluster, "statement_timeout = '300ms'")
    waiting: list[str] = []

    def recover() -> None:
        waiting.extend(cluster.recover(grace_seconds=0).waiting)

    with armed("atomic.decision-written", recover):
        put_on_each(cluster)

    assert len(waiting) == 2
    assert len(baskets(cluster)) == 3


def test_a_primary_that_only_allows_reading_does_not_stop_recovery(cluster: ShardCluster) -> None:
    with armed("atomic.branch-prepared", die), pytest.raises(Died):
        put_on_each(cluster)
    left = len(prepared(cluster))
    set_on_all(cluster, "default_transaction_read_only = on")

    assert len(cluster.recover(grace_seconds=0).waiting) == left

    for engine in cluster.engines.values():
        with engine.connect() as conn:
            conn.execute(text("SET TRANSACTION READ WRITE"))
            database = engine.url.database
            conn.execute(text(f'ALTER DATABASE "{database}" RESET default_transaction_read_only'))
            conn.commit()
        engine.dispose()
    assert len(cluster.recover(grace_seconds=0).rolled_back) == left


def test_a_branch_of_another_role_is_named_and_stops_no_other(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    role = f"limited_{uuid4().hex}"
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text(f"CREATE ROLE {role} IN ROLE pg_read_all_data, pg_write_all_data"))
    with armed("atomic.decided", die), pytest.raises(Died):
        put_on_each(cluster)

    with ShardCluster(
        control=shard_urls[0],
        shards=named(shard_urls[:3]),
        groups=[households],
        engine_options={"connect_args": {"options": f"-c role={role}"}},
    ) as limited:
        assert len(limited.recover(grace_seconds=0).denied) == 2

    assert len(cluster.recover(grace_seconds=0).committed) == 2
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text(f"DROP ROLE {role}"))


def test_a_server_that_prepares_nothing_is_named() -> None:
    with EmbeddedServers(durable=False) as servers:
        server = servers.postgres(settings={"max_prepared_transactions": "0"})
        with Databases(server.url) as databases:
            urls = [databases.new() for _ in range(2)]
            with sharded_shop(urls) as cluster:
                with pytest.raises(SettingsError, match="it is 0 on"):
                    put_on_each(cluster)

                assert baskets(cluster) == []


def test_the_name_of_a_branch_says_all_of_it() -> None:
    names = [
        "datapatterns/datapatterns/00000000000000000000000000000001/s0/18446744073709551615/s1",
        "datapatterns/x/0123456789abcdef0123456789abcdef/a_1/7/b",
    ]

    for name in names:
        branch = Branch.named(name)
        assert branch is not None
        assert branch.name == name
    assert Branch.named("datapatterns/x/short/a/7/b") is None
    assert Branch.named("gid of others") is None
    assert len(names[0]) < 200
