"""A read model in Redis counts each event once, whatever happens to Redis and to the runner."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections, RedisChanges, RedisProjection, on
from datapatterns.cqrs.leasing import Lease, claim
from datapatterns.cqrs.redis_changes import Place
from datapatterns.cqrs.redis_checkpoint import LaterEpochError, RedisKeys, RedisReadModel, Ticket
from datapatterns.cqrs.redis_projecting import RedisRunner
from datapatterns.cqrs.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.errors import (
    EvictionPolicyError,
    ForeignReadModelError,
    LeaseLostError,
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


def lapse(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET owner = NULL, lease_until = NULL")
        )


def claimed(engine: Engine) -> Lease:
    with engine.begin() as conn:
        register(conn, TABLES, Dashboard, empty=True)
        return claim(conn, TABLES, Dashboard, owner=uuid4().hex, seconds=60)


def dump(client: Redis) -> dict[bytes, bytes]:
    return {key: client.dump(key) or b"" for key in client.scan_iter()}


def restore(client: Redis, dumped: Mapping[bytes, bytes]) -> None:
    client.flushdb()
    for key, value in dumped.items():
        client.restore(key, 0, value)


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
    assert len(keys) == 4
    assert all(key.startswith(b"{datapatterns:dashboard:v1}:") for key in keys)


def test_a_runner_that_dies_before_redis_has_changed_nothing(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    runner = crashing(projections, before=True)
    with engine.connect() as conn:
        lease = runner.begin(conn, claimed(engine))
        with pytest.raises(PowerCutError):
            runner.page(conn, lease)
    lapse(engine)

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]


def test_a_runner_that_dies_before_redis_answers_has_its_page_counted_once(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    runner = crashing(projections, before=False)
    with engine.connect() as conn:
        lease = runner.begin(conn, claimed(engine))
        with pytest.raises(PowerCutError):
            runner.page(conn, lease)
    lapse(engine)

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 4)]


def test_a_page_is_not_applied_again_from_a_position_that_was_passed(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    lease = claimed(engine)
    model = in_redis(projections)
    runner = RedisRunner(STORE, Dashboard, model, page_events=2)
    with engine.connect() as conn:
        lease = runner.begin(conn, lease)
        runner.page(conn, lease)

    ticket = Ticket(lease.build, lease.epoch)
    again = model.apply(ticket, {}, after=lease.position, position=lease.position)

    assert not again


def test_a_runner_that_wakes_up_after_its_lease_was_taken_is_refused_by_redis(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    model = in_redis(projections)
    runner = RedisRunner(STORE, Dashboard, model, page_events=2)
    with engine.connect() as conn:
        stale = runner.begin(conn, claimed(engine))
        lapse(engine)
        runner.begin(conn, claimed(engine))

    # Beyond its last look at PostgreSQL, at the same position: only the epoch differs.
    applied = model.apply(
        Ticket(stale.build, stale.epoch), {}, after=stale.position, position=stale.position
    )

    assert not applied


def test_a_runner_that_wakes_up_is_refused_by_postgresql_before_it_reaches_redis(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    runner = RedisRunner(STORE, Dashboard, in_redis(projections), page_events=2)
    with engine.connect() as conn:
        stale = runner.begin(conn, claimed(engine))
        lapse(engine)
        claimed(engine)

        with pytest.raises(LeaseLostError):
            runner.page(conn, stale)


def test_a_runner_that_wakes_up_cannot_clear_what_its_heir_has_built(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(4))
    model = in_redis(projections)
    stale = claimed(engine)
    with engine.connect() as conn:
        RedisRunner(STORE, Dashboard, model, page_events=2).begin(conn, stale)
    lapse(engine)
    projections.catch_up(engine, Dashboard)
    ticket = Ticket(stale.build, stale.epoch)
    data = KEYS.of("zset", "best_sellers")

    with pytest.raises(LaterEpochError):
        model.adopt(ticket)
    with pytest.raises(LaterEpochError):
        model.reset(ticket, target=Position(0))
    redis_client.hset(KEYS.checkpoint, "clearing", "1")  # as if both were at it
    with pytest.raises(LaterEpochError):
        model.clear(ticket, [data], last=True)

    assert redis_client.exists(data)


def test_a_redis_that_lost_everything_is_filled_again(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    token = append_all(engine, STORE, milk(5))
    projections.catch_up(engine, Dashboard)
    redis_client.flushdb()

    with pytest.raises(ReadModelBuildingError):
        projections.view(Dashboard).top("best_sellers")
    with pytest.raises(ReadModelBehindError):
        projections.wait(engine, Dashboard, token, timeout_seconds=0)
    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 5)]
    assert projections.wait(engine, Dashboard, token, timeout_seconds=0) == token


def test_a_redis_that_lost_everything_in_the_middle_is_filled_again(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(7))

    def flush_once(_done: object) -> None:
        if not flushed:
            flushed.append(1)
            redis_client.flushdb()

    flushed: list[int] = []
    projections.catch_up(engine, Dashboard, page_events=2, on_page=flush_once)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 7)]


def test_a_redis_that_came_back_older_goes_on_from_there(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(5))
    projections.catch_up(engine, Dashboard)
    old = dump(redis_client)
    token = append_all(engine, STORE, milk(5))
    projections.catch_up(engine, Dashboard)
    restore(redis_client, old)

    with pytest.raises(ReadModelBehindError):
        projections.wait(engine, Dashboard, token, timeout_seconds=0)
    done = projections.catch_up(engine, Dashboard)

    assert done.events == 5
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 10)]
    assert projections.verify(engine, Dashboard).matches


def test_readers_are_told_while_the_build_is_not_whole(
    engine: Engine, projections: Projections
) -> None:
    append_all(engine, STORE, milk(4))
    projections.run(engine, Dashboard, page_events=2)

    with pytest.raises(ReadModelBuildingError) as told:
        projections.view(Dashboard).hash("cents_by_product")
    projections.run(engine, Dashboard, page_events=2)

    assert told.value.position == 2
    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "400"}


def test_a_dump_of_an_earlier_build_is_not_taken_for_this_one(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(5))
    projections.catch_up(engine, Dashboard)
    redis_client.hset(KEYS.of("hash", "cents_by_product"), "milk", "7")  # why it is rebuilt
    wrong = dump(redis_client)
    projections.rebuild(engine, Dashboard)
    rebuilt = projections.view(Dashboard).hash("cents_by_product")
    restore(redis_client, wrong)

    projections.catch_up(engine, Dashboard)

    assert rebuilt == {"milk": "500"}
    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "500"}


def test_leftovers_without_a_checkpoint_are_cleared(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    redis_client.zadd(KEYS.of("zset", "best_sellers"), {"ghost": 9})
    redis_client.set("somebody:else", "stays")
    append_all(engine, STORE, milk(1))

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 1)]
    assert redis_client.get("somebody:else") == b"stays"


def test_a_reset_that_broke_off_is_done_again(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    redis_client.hset(KEYS.checkpoint, "clearing", "1")
    redis_client.zadd(KEYS.of("zset", "best_sellers"), {"ghost": 9})

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]


def test_a_script_that_broke_off_in_the_middle_is_noticed(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    # Somebody else's type under our key lets the script fail after its first writes.
    redis_client.delete(KEYS.of("zset", "best_sellers"))
    redis_client.set(KEYS.of("zset", "best_sellers"), "tampered")
    append_all(engine, STORE, [ItemScanned("milk", 100), ItemScanned("bread", 50)])
    with pytest.raises(Exception, match="WRONGTYPE"):
        projections.catch_up(engine, Dashboard)
    redis_client.hset(KEYS.checkpoint, "torn", "1")

    projections.catch_up(engine, Dashboard)

    view = projections.view(Dashboard)
    assert view.hash("cents_by_product") == {"milk": "300", "bread": "50"}
    assert view.top("best_sellers") == [("milk", 3), ("bread", 1)]


def test_what_another_database_wrote_under_a_later_lease_is_left_alone(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(2))
    projections.catch_up(engine, Dashboard)
    redis_client.hset(KEYS.checkpoint, mapping={"epoch": "99", "build": str(uuid4())})

    with pytest.raises(ForeignReadModelError):
        projections.run(engine, Dashboard)
    foreign = redis_client.hget(KEYS.checkpoint, "epoch")
    projections.rebuild(engine, Dashboard)

    assert foreign == b"99"
    assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]


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


def test_a_redis_that_evicts_is_refused(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    append_all(engine, STORE, milk(1))
    before: Any = redis_client.config_get("maxmemory*")
    redis_client.config_set("maxmemory", "1gb")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(EvictionPolicyError, match="allkeys-lru"):
            projections.run(engine, Dashboard)
    finally:
        redis_client.config_set("maxmemory", before["maxmemory"])
        redis_client.config_set("maxmemory-policy", before["maxmemory-policy"])


class PowerCutError(Exception):
    pass


class CrashingModel(RedisReadModel):
    """Loses its process right before or right after Redis has carried a page out."""

    before: bool

    def apply(
        self,
        ticket: Ticket,
        outcome: Mapping[Place, str | None],
        *,
        after: Position,
        position: Position,
    ) -> bool:
        if not self.before:
            super().apply(ticket, outcome, after=after, position=position)
        raise PowerCutError


def crashing(projections: Projections, *, before: bool) -> RedisRunner:
    whole = in_redis(projections)
    model = type("Model", (CrashingModel,), {"before": before})(whole.client, whole.keys)
    return RedisRunner(STORE, Dashboard, model, page_events=2)


def in_redis(projections: Projections, name: str = "dashboard") -> RedisReadModel:
    assert projections.redis is not None
    return RedisReadModel(projections.redis, RedisKeys("datapatterns", name, 1))


def statuses(engine: Engine, projections: Projections) -> dict[int, str]:
    with engine.begin() as conn:
        return {status.version: status.status for status in projections.status(conn)}


def only_error(engine: Engine, projections: Projections) -> Mapping[str, Any] | None:
    with engine.begin() as conn:
        (status,) = projections.status(conn)
    return status.error
