"""A read model in Redis: what it shows, when it says that it cannot, what is refused."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.schema import projection_tables
from datapatterns.embedded import EmbeddedServers, ValkeyServer
from datapatterns.errors import (
    EvictionPolicyError,
    ProjectionStoppedError,
    ReadModelBehindError,
    ReadModelBuildingError,
    ServerUnavailableError,
    SettingsError,
)
from datapatterns.event_sourcing import START, EventStore, Position, RecordedEvent
from tests.fixtures.read_models import (
    Dashboard,
    DoorOpened,
    ItemScanned,
    ProductWithdrawn,
    append_all,
)

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
KEYS = RedisKeys("datapatterns", "dashboard", 1)


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


def milk(number: int) -> list[object]:
    return [ItemScanned("milk", 100)] * number


def in_redis(projections: Projections, name: str = "dashboard") -> RedisReadModel:
    assert projections.redis is not None
    return RedisReadModel(projections.redis, RedisKeys("datapatterns", name, 1))


def test_a_dashboard_shows_what_happened(engine: Engine, projections: Projections) -> None:
    events = [*milk(3), ItemScanned("bröd", 250), ItemScanned("beer", 1), ProductWithdrawn("beer")]
    token = append_all(engine, STORE, events)

    done = projections.catch_up(engine, Dashboard)

    view = projections.view(Dashboard)
    assert done.events == 6
    assert view.position() == token
    assert view.hash("cents_by_product") == {"milk": "300", "bröd": "250"}
    assert view.fields("cents_by_product", ["milk", "beer"]) == {"milk": "300"}
    assert view.fields("cents_by_product", []) == {}
    assert view.top("best_sellers") == [("milk", 3), ("bröd", 1)]
    assert view.top("best_sellers", 1) == [("milk", 3)]
    assert view.top("nothing") == []
    with pytest.raises(ValueError, match="none"):
        view.top("best_sellers", 0)


def test_two_dashboards_do_not_meet(engine: Engine, projections: Projections) -> None:
    class Doors(RedisProjection, version=1):
        @on(DoorOpened)
        def _(self, changes: RedisChanges, _e: DoorOpened, _meta: RecordedEvent) -> None:
            changes.increment("cents_by_product", "milk")

    append_all(engine, STORE, [*milk(1), DoorOpened()])

    projections.catch_up(engine, Dashboard)
    projections.catch_up(engine, Doors)

    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "100"}
    assert projections.view(Doors).hash("cents_by_product") == {"milk": "1"}


def test_a_client_that_decodes_answers_works_as_well(
    engine: Engine, redis_url: str, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    with Redis.from_url(redis_url, decode_responses=True) as client:
        projections = Projections(STORE, redis=client)
        projections.catch_up(engine, Dashboard)
        append_all(engine, STORE, milk(2))
        projections.catch_up(engine, Dashboard)

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]
        assert projections.verify(engine, Dashboard).matches
    assert redis_client.exists(KEYS.checkpoint)


def test_all_keys_share_one_slot_of_a_cluster(engine: Engine, projections: Projections) -> None:
    append_all(engine, STORE, milk(1))
    projections.catch_up(engine, Dashboard)

    client = projections.redis
    assert client is not None
    keys = list(client.scan_iter())
    assert len(keys) == 5  # three structures, their sizes, the checkpoint
    assert all(key.startswith(b"{datapatterns:dashboard:v1}:") for key in keys)


def test_readers_are_told_while_the_build_is_not_whole(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    projections.run(engine, Dashboard, page_events=2)

    with pytest.raises(ReadModelBuildingError) as told:
        projections.view(Dashboard).hash("cents_by_product")
    with pytest.raises(ReadModelBehindError):
        projections.wait(engine, Dashboard, Position(2), timeout_seconds=0)
    projections.run(engine, Dashboard, page_events=2)

    assert told.value.position == 2
    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "400"}


def test_the_next_version_is_built_beside_the_one_that_is_read(
    engine: Engine, projections: Projections
) -> None:
    class Next(RedisProjection, version=2, name="dashboard"):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
            changes.add_score("best_sellers", e.product, 10)

    append_all(engine, STORE, milk(4))
    projections.catch_up(engine, Dashboard)
    projections.run(engine, Next, page_events=2)
    meanwhile = statuses(engine, projections)
    projections.catch_up(engine, Next)

    assert meanwhile == {1: "live", 2: "building"}
    assert statuses(engine, projections) == {1: "standby", 2: "live"}
    assert projections.view(Next).top("best_sellers") == [("milk", 40)]
    append_all(engine, STORE, milk(1))
    projections.catch_up(engine, Dashboard)  # code that is not deployed anew yet
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 5)]


def test_an_event_that_cannot_be_applied_stops_the_dashboard_right_before_it(
    engine: Engine, projections: Projections
) -> None:
    class Strict(RedisProjection, version=1):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, e: ItemScanned, meta: RecordedEvent) -> None:
            if e.product == "poison" and not fixed:
                raise LookupError(e.product)
            changes.increment("cents", "all", e.cents)
            changes.put("last", "version", meta.version)

    fixed: list[bool] = []
    append_all(engine, STORE, [*milk(3), ItemScanned("poison", 1), *milk(2)])
    with pytest.raises(ProjectionStoppedError) as stopped:
        projections.catch_up(engine, Strict)
    with pytest.raises(ProjectionStoppedError):
        projections.catch_up(engine, Strict)
    error = only_error(engine, projections)
    stuck = in_redis(projections, "strict").checkpoint()
    fixed.append(True)
    projections.catch_up(engine, Strict)

    assert isinstance(stopped.value.__cause__, LookupError)
    assert stuck is not None
    assert stuck.position == stopped.value.position - 1 == 3
    assert error == {
        "position": 4,
        "event_type": "test.item_scanned",
        "error": "LookupError",
        "message": "poison",
    }
    assert projections.view(Strict).hash("cents") == {"all": "501"}
    assert only_error(engine, projections) is None


def test_text_that_is_incremented_stops_the_dashboard(
    engine: Engine, projections: Projections
) -> None:
    class Muddled(RedisProjection, version=1):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
            changes.put("muddle", "f", e.product)

        @on(ProductWithdrawn)
        def _(self, changes: RedisChanges, _e: ProductWithdrawn, _meta: RecordedEvent) -> None:
            changes.increment("muddle", "f")

    append_all(engine, STORE, milk(1))
    projections.catch_up(engine, Muddled)
    append_all(engine, STORE, [ProductWithdrawn("milk")])

    with pytest.raises(ProjectionStoppedError, match="incremented but holds text"):
        projections.catch_up(engine, Muddled)

    checkpoint = in_redis(projections, "muddled").checkpoint()
    assert checkpoint is not None
    assert checkpoint.whole


def test_events_that_concern_nobody_move_the_checkpoint(
    engine: Engine, projections: Projections
) -> None:
    token = append_all(engine, STORE, [DoorOpened()] * 5)

    done = projections.catch_up(engine, Dashboard)

    assert done.events == 0
    assert projections.wait(engine, Dashboard, token, timeout_seconds=0) == token


def test_verify_shows_what_is_not_as_the_log_says(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, [*milk(3), ItemScanned("bread", 50)])
    projections.catch_up(engine, Dashboard)
    cents = KEYS.of("hash", "cents_by_product")
    redis_client.hset(cents, mapping={"milk": "1", "ghost": "2"})
    redis_client.zrem(KEYS.of("zset", "best_sellers"), "bread")
    redis_client.hset(KEYS.of("hash", "unheard_of"), "a", "b")

    found = projections.verify(engine, Dashboard)

    assert not found.matches
    assert [(d.key, d.stored, d.expected) for d in found.differences] == [
        (("hash", "cents_by_product", "ghost"), {"value": "2"}, None),
        (("hash", "cents_by_product", "milk"), {"value": "1"}, {"value": "300"}),
        (("hash", "unheard_of", "a"), {"value": "b"}, None),
        (("zset", "best_sellers", "bread"), None, {"value": "1"}),
    ]


def test_a_redis_that_does_not_answer_is_a_reason_to_try_again(engine: Engine) -> None:
    append_all(engine, STORE, milk(1))
    nobody = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    projections = Projections(STORE, redis=nobody)

    with pytest.raises(ServerUnavailableError):
        projections.catch_up(engine, Dashboard)
    with pytest.raises(ServerUnavailableError):
        projections.view(Dashboard).position()
    with pytest.raises(ServerUnavailableError):
        projections.wait(engine, Dashboard, START, timeout_seconds=0)

    with engine.begin() as conn:
        (status,) = projections.status(conn)
    assert status.owner is None  # the lease was given back
    assert status.positions_behind == 1


def test_a_redis_projection_needs_a_client(engine: Engine) -> None:
    with pytest.raises(SettingsError, match="redis"):
        Projections(STORE).run(engine, Dashboard)


@pytest.fixture
def own_redis() -> Iterator[ValkeyServer]:
    with EmbeddedServers(durable=False) as servers:
        yield servers.valkey("own", settings={"appendonly": False, "save": ""})


def test_a_redis_that_evicts_is_refused(engine: Engine, own_redis: ValkeyServer) -> None:
    append_all(engine, STORE, milk(1))
    with Redis.from_url(own_redis.url) as client:
        projections = Projections(STORE, redis=client)
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "allkeys-lru")
        projections.run(engine, Dashboard)  # memory without a limit is never full
        client.config_set("maxmemory", "64mb")
        with pytest.raises(EvictionPolicyError, match="allkeys-lru"):
            projections.run(engine, Dashboard)
        client.config_set("maxmemory-policy", "volatile-lru")
        projections.run(engine, Dashboard)


def test_a_redis_that_dies_and_comes_back_empty_is_filled_again(
    engine: Engine, own_redis: ValkeyServer
) -> None:
    append_all(engine, STORE, milk(3))
    with Redis.from_url(own_redis.url, retry=Retry(NoBackoff(), 0)) as client:
        projections = Projections(STORE, redis=client)
        projections.catch_up(engine, Dashboard)
        own_redis.kill()
        append_all(engine, STORE, milk(1))
        with pytest.raises(ServerUnavailableError):
            projections.catch_up(engine, Dashboard)
        own_redis.start()

        projections.catch_up(engine, Dashboard)

        assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]


def statuses(engine: Engine, projections: Projections) -> dict[int, str]:
    with engine.begin() as conn:
        return {status.version: status.status for status in projections.status(conn)}


def only_error(engine: Engine, projections: Projections) -> Mapping[str, Any] | None:
    with engine.begin() as conn:
        (status,) = projections.status(conn)
    return status.error
