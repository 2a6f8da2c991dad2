"""A Redis that lost something, fell back, or holds something of others: noticed, and put right."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry
from sqlalchemy import Engine, update

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.in_redis import redis_read_model
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_read_model import (
    COUNTED_STRUCTURES_MAX,
    TOMBSTONE_SECONDS,
    RedisReadModel,
)
from datapatterns.cqrs.in_redis.redis_retiring import remove_from_redis
from datapatterns.cqrs.in_redis.redis_scripts import APPLY
from datapatterns.cqrs.schema import projection_tables
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from datapatterns.errors import (
    ForeignReadModelError,
    LeaseLostError,
    ProjectionDefinitionError,
    ProjectionStoppedError,
    ProjectionVersionError,
    ReadModelBuildingError,
    ReadModelDamagedError,
    ServerUnavailableError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.testing import wait_until
from datapatterns.testing.faults import RedisFaults, armed
from tests.fixtures.read_models import Dashboard, ItemScanned, append_all

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
KEYS = RedisKeys("datapatterns", "dashboard", 1)
CENTS, SELLERS = KEYS.of("hash", "cents_by_product"), KEYS.of("zset", "best_sellers")

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Shelves(RedisProjection, version=1):
    """Each product has a structure of its own, and nothing may be there twice."""

    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
        changes.increment(f"product {e.product}", "cents", e.cents)


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


def milk(number: int) -> list[object]:
    return [ItemScanned("milk", 100)] * number


def take_a_key(client: Redis) -> None:
    client.delete(CENTS)


def take_a_field(client: Redis) -> None:
    client.hdel(CENTS, "milk")


def add_a_member(client: Redis) -> None:
    client.zadd(SELLERS, {"ghost": 99})


def bring_another_type(client: Redis) -> None:
    client.delete(SELLERS)
    client.set(SELLERS, "theirs")


def take_the_sizes(client: Redis) -> None:
    client.delete(KEYS.sizes)


def bring_other_sizes(client: Redis) -> None:
    client.delete(KEYS.sizes)
    client.set(KEYS.sizes, "theirs")


def forget_how_many_there_are(client: Redis) -> None:
    client.hdel(KEYS.checkpoint, "structures")


def forget_which_log_it_was(client: Redis) -> None:
    client.hdel(KEYS.checkpoint, "witness")


def forget_the_checkpoint(client: Redis) -> None:
    client.delete(KEYS.checkpoint)


DAMAGES = [
    take_a_key,
    take_a_field,
    add_a_member,
    bring_another_type,
    take_the_sizes,
    bring_other_sizes,
    forget_how_many_there_are,
    forget_which_log_it_was,
    forget_the_checkpoint,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("more", [0, 2])
def test_what_somebody_took_or_added_is_put_right_by_the_next_run(
    engine: Engine, projections: Projections, redis_client: Redis, damage: object, more: int
) -> None:
    append_all(engine, STORE, milk(3))
    projections.catch_up(engine, Dashboard)
    assert callable(damage)
    damage(redis_client)
    append_all(engine, STORE, milk(more)) if more else None

    projections.catch_up(engine, Dashboard)

    view = projections.view(Dashboard)
    assert view.hash("cents_by_product") == {"milk": str(100 * (3 + more))}
    assert view.top("best_sellers") == [("milk", 3 + more)]
    assert projections.verify(engine, Dashboard).matches


@pytest.mark.parametrize("damage", [take_a_key, take_a_field, add_a_member, bring_another_type])
def test_what_is_taken_while_a_run_is_under_way_is_noticed_by_the_page_that_comes_there(
    engine: Engine, projections: Projections, redis_client: Redis, damage: object
) -> None:
    """And the control: without the sizes the page counts on from nothing."""
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    append_all(engine, STORE, milk(4))
    assert callable(damage)

    with armed("redis-projection.page-read", lambda: damage(redis_client)):
        projections.catch_up(engine, Dashboard, page_events=2)

    assert projections.verify(engine, Dashboard).matches
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 6)]


def test_without_looking_at_sizes_a_page_would_count_on_from_nothing(
    engine: Engine,
    projections: Projections,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = "damaged = size(i) ~="
    assert guard in APPLY
    monkeypatch.setattr(redis_read_model, "APPLY", APPLY.replace(guard, "damaged = 0 == 1 + "))
    monkeypatch.setattr(redis_read_model, "_sizes_agree", lambda *_: True)
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    take_a_key(redis_client)
    append_all(engine, STORE, milk(1))

    projections.catch_up(engine, Dashboard)

    assert not projections.verify(engine, Dashboard).matches


def test_of_many_structures_a_missing_one_is_noticed_by_whoever_asks_for_it(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    products = [ItemScanned(f"p{n}", 1) for n in range(3 * COUNTED_STRUCTURES_MAX)]
    append_all(engine, STORE, products)
    projections.catch_up(engine, Shelves)
    view = projections.view(Shelves)
    redis_client.delete(RedisKeys("datapatterns", "shelves", 1).of("hash", "product p7"))

    with pytest.raises(ReadModelDamagedError, match="product p7"):
        view.hash("product p7")
    assert view.hash("product p8") == {"cents": "1"}
    append_all(engine, STORE, [ItemScanned("p7", 1)])
    projections.catch_up(engine, Shelves)

    assert view.hash("product p7") == {"cents": "2"}
    assert projections.verify(engine, Shelves).matches


def test_a_page_that_meets_damage_is_not_taken_for_an_event_that_cannot_be_applied(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    class Strict(RedisProjection, version=1):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
            if e.cents == 0:
                changes.put_json("products", e.product, {"n": 0})
            else:
                changes.update_json("products", e.product, lambda d: {"n": d["n"] + 1})

    append_all(engine, STORE, [ItemScanned("milk", 0), *milk(2)])
    projections.catch_up(engine, Strict)
    append_all(engine, STORE, milk(1))
    key = RedisKeys("datapatterns", "strict", 1).of("json", "products")

    with armed("redis-projection.page-read", lambda: redis_client.delete(key)):
        projections.catch_up(engine, Strict)

    assert projections.view(Strict).document("products", "milk") == {"n": 3}
    append_all(engine, STORE, [ItemScanned("unknown", 1)])
    with pytest.raises(ProjectionStoppedError):  # the control: this one is the event's fault
        projections.catch_up(engine, Strict)


def test_a_key_of_somebody_else_where_the_checkpoint_belongs_is_refused(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    redis_client.set(KEYS.checkpoint, "theirs")
    append_all(engine, STORE, milk(1))

    with pytest.raises(ForeignReadModelError, match="checkpoint"):
        projections.catch_up(engine, Dashboard)

    assert redis_client.get(KEYS.checkpoint) == b"theirs"


@pytest.mark.parametrize("command", ["hlen", "hrandfield", "zcard"])
def test_a_right_that_is_missing_is_not_taken_for_damage(
    engine: Engine,
    projections: Projections,
    redis_client: Redis,
    redis_url: str,
    command: str,
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    append_all(engine, STORE, milk(2))
    redis_client.acl_setuser(
        "narrow",
        enabled=True,
        nopass=True,
        keys=["*"],
        categories=["+@all"],
        commands=[f"-{command}"],
    )
    try:
        with Redis.from_url(redis_url, username="narrow", password="any") as client:
            narrow = Projections(STORE, redis=client)
            for _ in range(2):
                with pytest.raises(ResponseError, match=command):
                    narrow.run(engine, Dashboard)
    finally:
        redis_client.acl_deluser("narrow")

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]
    projections.catch_up(engine, Dashboard)
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]


def test_a_flush_at_every_step_of_a_run_is_made_good(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    for name in (
        "redis-projection.build-confirmed",
        "redis-projection.clearing",
        "redis-projection.page-read",
        "redis-projection.page-applied",
    ):
        append_all(engine, STORE, milk(3))
        redis_client.delete(KEYS.checkpoint)
        with armed(name, redis_client.flushdb):
            try:
                projections.catch_up(engine, Dashboard, page_events=2)
            except ReadModelBuildingError:
                pytest.fail("a runner is no reader")
        projections.catch_up(engine, Dashboard)

        assert projections.verify(engine, Dashboard).matches, name


@pytest.fixture
def primary() -> Iterator[ValkeyServer]:
    with EmbeddedServers(durable=False) as servers:
        yield servers.valkey("primary", settings={"appendonly": False, "save": ""}, tcp=True)


def test_a_replica_that_was_behind_and_is_promoted_is_gone_on_from(
    engine: Engine, primary: ValkeyServer
) -> None:
    with EmbeddedServers(durable=False) as servers:
        follower = servers.valkey("follower", settings={"appendonly": False, "save": ""}, tcp=True)
        with Redis.from_url(primary.url) as first, Redis.from_url(follower.url) as second:
            options = first.connection_pool.connection_kwargs
            second.config_set("masterauth", options["password"])
            second.execute_command("REPLICAOF", "127.0.0.1", options["port"])
            wait_until(
                lambda: second.info("replication")["master_link_status"] == "up",
                deadline_seconds=30,
            )
            append_all(engine, STORE, milk(3))
            projections = Projections(STORE, redis=first)
            projections.catch_up(engine, Dashboard)
            assert first.wait(1, 10_000) == 1
            second.execute_command("REPLICAOF", "NO", "ONE")
            append_all(engine, STORE, milk(4))
            projections.catch_up(engine, Dashboard)  # the replica has none of it

            after = Projections(STORE, redis=second)
            behind = after.view(Dashboard).top("best_sellers")
            done = after.catch_up(engine, Dashboard, page_events=3)

            assert behind == [("milk", 3)]
            assert done.events == 4
            assert after.view(Dashboard).top("best_sellers") == [("milk", 7)]
            assert after.verify(engine, Dashboard).matches


def test_a_primary_that_became_a_replica_is_a_reason_to_try_again(
    engine: Engine, primary: ValkeyServer
) -> None:
    append_all(engine, STORE, milk(2))
    with Redis.from_url(primary.url, retry=Retry(NoBackoff(), 0)) as client:
        projections = Projections(STORE, redis=client)
        projections.catch_up(engine, Dashboard)
        append_all(engine, STORE, milk(2))

        def demote() -> None:
            client.config_set("replica-serve-stale-data", "yes")
            client.execute_command("REPLICAOF", "127.0.0.1", "1")

        with (
            armed("redis-projection.page-read", demote),
            pytest.raises(ServerUnavailableError),
        ):
            projections.run(engine, Dashboard)
        client.execute_command("REPLICAOF", "NO", "ONE")

        projections.catch_up(engine, Dashboard)

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]


def test_a_full_redis_takes_no_page_in_part(engine: Engine, primary: ValkeyServer) -> None:
    append_all(engine, STORE, milk(2))
    with Redis.from_url(primary.url) as client, RedisFaults(primary) as faults:
        projections = Projections(STORE, redis=client)
        projections.catch_up(engine, Dashboard)
        append_all(engine, STORE, milk(2))
        with (
            faults.limited_memory(headroom_bytes=0, policy="noeviction"),
            pytest.raises(ServerUnavailableError),
        ):
            projections.run(engine, Dashboard)

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]
        projections.catch_up(engine, Dashboard)
        assert projections.verify(engine, Dashboard).matches


def test_a_redis_that_is_busy_with_a_script_is_a_reason_to_try_again(
    engine: Engine, primary: ValkeyServer
) -> None:
    append_all(engine, STORE, milk(2))
    with (
        Redis.from_url(primary.url) as client,
        Redis.from_url(primary.url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        projections = Projections(STORE, redis=client)
        projections.catch_up(engine, Dashboard)
        client.config_set("busy-reply-threshold", 1)
        endless = thread.submit(other.eval, "while true do end", 0)
        wait_until(lambda: is_busy(client), deadline_seconds=30)
        try:
            with pytest.raises(ServerUnavailableError, match="BUSY"):
                projections.view(Dashboard).position()
            with pytest.raises(ServerUnavailableError, match="BUSY"):
                projections.run(engine, Dashboard)
        finally:
            client.script_kill()
        with pytest.raises(ResponseError):
            endless.result()

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]


def is_busy(client: Redis) -> bool:
    try:
        client.ping()
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def set_status(engine: Engine, status: str) -> None:
    with engine.begin() as conn:
        conn.execute(update(TABLES.projections).values(status=status))


def test_a_version_that_is_retired_leaves_nothing_but_what_fences_its_last_runner(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    redis_client.set("somebody:else", "stays")
    model = RedisReadModel(redis_client, KEYS)
    with engine.connect() as conn:
        with pytest.raises(ProjectionDefinitionError, match="not retired"):
            remove_from_redis(conn, TABLES, model)
        assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]
        set_status(engine, "retired")

        remove_from_redis(conn, TABLES, model)
        remove_from_redis(conn, TABLES, model)  # as after a lost answer

    assert set(redis_client.scan_iter()) == {KEYS.checkpoint.encode(), b"somebody:else"}
    assert 0 < redis_client.ttl(KEYS.checkpoint) <= TOMBSTONE_SECONDS
    with pytest.raises(ReadModelBuildingError):
        projections.view(Dashboard).position()
    with pytest.raises(ProjectionVersionError):
        projections.run(engine, Dashboard)


def test_a_runner_that_is_under_way_leaves_nothing_in_a_version_that_is_retired(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(4))
    projections.run(engine, Dashboard, page_events=2)

    def retire() -> None:
        set_status(engine, "retired")
        with engine.connect() as conn:
            remove_from_redis(conn, TABLES, RedisReadModel(redis_client, KEYS))

    with armed("redis-projection.page-read", retire), pytest.raises(LeaseLostError):
        projections.run(engine, Dashboard, page_events=2)

    assert list(redis_client.scan_iter()) == [KEYS.checkpoint.encode()]


def test_a_version_that_is_taken_up_again_is_built_anew(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    set_status(engine, "retired")
    with engine.connect() as conn:
        remove_from_redis(conn, TABLES, RedisReadModel(redis_client, KEYS))
    set_status(engine, "live")

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]
    assert redis_client.ttl(KEYS.checkpoint) == -1


def test_a_read_model_in_redis_is_not_run_in_segments(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    with engine.begin() as conn:
        conn.execute(update(TABLES.shards).values(mask=1))

    with pytest.raises(ProjectionDefinitionError, match="one segment"):
        projections.run(engine, Dashboard)

    assert not Dashboard.is_splittable
