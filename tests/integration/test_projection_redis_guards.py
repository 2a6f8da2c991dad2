"""What protects a read model in Redis when two databases, two positions or two names meet."""

from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, event

from datapatterns.cqrs import Projections
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_checkpoint import Ticket
from datapatterns.cqrs.in_redis.redis_keys import Place, RedisKeys, Structure
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.in_redis.redis_verifying import RedisReplay, verify_redis
from datapatterns.event_sourcing import START, EventStore, Position
from tests.fixtures.read_models import Dashboard, ItemScanned, append_all

STORE = EventStore()
KEYS = RedisKeys("datapatterns", "dashboard", 1)
OURS, THEIRS = Ticket(UUID(int=1), 1), Ticket(UUID(int=2), 1)
PAGE = Outcome({Place("hash", "totals", "cents"): "1"})


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


@pytest.fixture
def model(redis_client: Redis) -> RedisReadModel:
    return RedisReadModel(redis_client, KEYS)


def test_a_page_of_another_database_is_refused_even_under_an_equal_lease(
    model: RedisReadModel,
) -> None:
    model.reset(OURS, target=START)

    refused = model.apply(THEIRS, PAGE, after=START, position=Position(1))
    applied = model.apply(OURS, PAGE, after=START, position=Position(1))

    assert (refused, applied) == (False, True)


@pytest.mark.parametrize("flag", ["clearing", "torn"])
def test_nothing_is_added_to_what_is_not_whole(
    model: RedisReadModel, redis_client: Redis, flag: str
) -> None:
    model.reset(OURS, target=START)
    redis_client.hset(KEYS.checkpoint, flag, "1")

    assert not model.apply(OURS, PAGE, after=START, position=Position(1))


def test_what_redis_shows_is_durable_in_postgresql_whatever_the_default(
    engine: Engine, redis_client: Redis
) -> None:
    append_all(engine, STORE, [ItemScanned("milk", 100)])
    hasty = create_engine(engine.url, connect_args={"options": "-c synchronous_commit=off"})
    commits: list[tuple[str, int]] = []

    def look(conn: Connection) -> None:
        setting = conn.exec_driver_sql("SHOW synchronous_commit").scalar_one()
        checkpoint: Any = redis_client.hget(KEYS.checkpoint, "position")
        commits.append((setting, int(checkpoint or 0)))

    event.listen(hasty, "commit", look)
    Projections(STORE, redis=redis_client).run(hasty, Dashboard)
    hasty.dispose()

    shown = next(n for n, (_, position) in enumerate(commits) if position)
    assert commits[shown - 1] == ("on", 0)


def test_verify_begins_anew_when_redis_came_back_older(
    engine: Engine, projections: Projections, model: RedisReadModel
) -> None:
    token = append_all(engine, STORE, [ItemScanned("milk", 100)] * 4)
    projections.catch_up(engine, Dashboard, until=Position(2), page_events=2)
    model.client.hdel(KEYS.checkpoint, "target")
    replay = RedisReplay(STORE, Dashboard, page_events=10)
    replay.advance(engine, until=token)
    projections.run(engine, Dashboard, page_events=1)

    found = verify_redis(engine, replay, model, limit=1)

    assert (found.matches, found.position) == (True, 3)


def test_verify_looks_again_when_structures_appear_meanwhile(
    engine: Engine, projections: Projections
) -> None:
    class Meanwhile(RedisReadModel):
        def structures(self) -> set[Structure]:
            found = RedisReadModel.structures(self)
            append_all(engine, STORE, [ItemScanned("milk", 100)])
            projections.catch_up(engine, Dashboard)
            return found

    assert projections.redis is not None
    projections.catch_up(engine, Dashboard)

    found = verify_redis(
        engine,
        RedisReplay(STORE, Dashboard, page_events=10),
        Meanwhile(projections.redis, KEYS),
        limit=1,
    )

    assert (found.matches, found.rows) == (True, 3)


def test_a_prefix_is_no_pattern(engine: Engine, redis_client: Redis) -> None:
    projections = Projections(STORE, redis=redis_client, redis_prefix="shop[1]*?\\")
    ghost = RedisKeys("shop[1]*?\\", "dashboard", 1).of("hash", "ghost")
    neighbour = RedisKeys("shop[1]x?\\", "dashboard", 1).of("hash", "ghost")
    for key in (ghost, neighbour):
        redis_client.hset(key, "field", "left over")
    append_all(engine, STORE, [ItemScanned("milk", 100)])

    projections.catch_up(engine, Dashboard)

    assert projections.view(Dashboard).hash("ghost") == {}
    assert redis_client.exists(neighbour) == 1
    assert projections.verify(engine, Dashboard).matches
