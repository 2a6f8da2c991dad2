"""A read model in Redis counts each event once, whatever happens to Redis and to the runner."""

from collections.abc import Mapping
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_checkpoint import LaterEpochError, Ticket
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_projecting import RedisRunner
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.running.leasing import Lease, claim
from datapatterns.cqrs.running.log_witness import LogWitness
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.errors import (
    ForeignReadModelError,
    LeaseLostError,
    ReadModelBehindError,
    ReadModelBuildingError,
)
from datapatterns.event_sourcing import EventStore, Position
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
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


def lapse(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET owner = NULL, lease_until = NULL")
        )


def claimed(engine: Engine) -> Lease:
    with engine.begin() as conn:
        register(conn, TABLES, Dashboard, empty=True)
        (lease,) = claim(conn, TABLES, Dashboard, owner=uuid4().hex, seconds=60)
    return lease


def dump(client: Redis) -> dict[bytes, bytes]:
    return {key: client.dump(key) or b"" for key in client.scan_iter()}


def restore(client: Redis, dumped: Mapping[bytes, bytes]) -> None:
    client.flushdb()
    for key, value in dumped.items():
        client.restore(key, 0, value)


class PowerCutError(Exception):
    pass


class CrashingModel(RedisReadModel):
    """Loses its process right before or right after Redis has carried a page out."""

    before: bool

    def apply(
        self,
        ticket: Ticket,
        outcome: Outcome,
        *,
        after: Position,
        position: Position,
        witness: LogWitness = LogWitness(),  # noqa: B008 -- it is frozen
    ) -> bool:
        if not self.before:
            super().apply(ticket, outcome, after=after, position=position, witness=witness)
        raise PowerCutError


def crashing(projections: Projections, *, before: bool) -> RedisRunner:
    whole = in_redis(projections)
    model = type("Model", (CrashingModel,), {"before": before})(whole.client, whole.keys)
    return RedisRunner(STORE, Dashboard, model, page_events=2)


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
    again = model.apply(ticket, Outcome(), after=lease.position, position=lease.position)

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
        Ticket(stale.build, stale.epoch), Outcome(), after=stale.position, position=stale.position
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

    checkpoint = in_redis(projections).checkpoint()
    assert checkpoint is not None
    assert checkpoint.position == 0


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
        model.clear(ticket, [data], then="build")

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


def test_a_dump_of_an_earlier_build_is_not_taken_for_this_one(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    token = append_all(engine, STORE, milk(5))
    projections.catch_up(engine, Dashboard)
    redis_client.hset(KEYS.of("hash", "cents_by_product"), "milk", "7")  # why it is rebuilt
    wrong = dump(redis_client)
    projections.rebuild(engine, Dashboard)
    rebuilt = projections.view(Dashboard).hash("cents_by_product")
    restore(redis_client, wrong)

    with pytest.raises(ReadModelBehindError):
        projections.wait(engine, Dashboard, token, timeout_seconds=0)
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
    # As it leaves them: some of the page is there, the checkpoint has not moved, nor the sizes.
    redis_client.zincrby(KEYS.of("zset", "best_sellers"), 1, "milk")
    redis_client.hset(KEYS.checkpoint, "torn", "1")

    with pytest.raises(ReadModelBuildingError):
        projections.view(Dashboard).top("best_sellers")
    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).top("best_sellers") == [("milk", 2)]


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
