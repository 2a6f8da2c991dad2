"""Documents and ranks of a read model in Redis, as readers see them, also from asyncio."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import Engine

from datapatterns.cqrs import (
    DELETE,
    AsyncRedisView,
    Projections,
    RedisChanges,
    RedisProjection,
    RedisView,
    on,
)
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.errors import (
    ForeignReadModelError,
    ProjectionStoppedError,
    ReadModelBuildingError,
    ReadModelDamagedError,
    ReadModelDocumentError,
    ServerUnavailableError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import ItemScanned, ProductsMerged, ProductWithdrawn, append_all

STORE = EventStore()
KEYS = RedisKeys("datapatterns", "shelf", 1)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@dataclass(frozen=True)
class Product:
    scans: int
    cents: list[int]


class Row(msgspec.Struct):
    scans: int
    cents: list[int]


def scanned(document: Any, cents: int) -> object:  # noqa: ANN401 -- JSON
    document = document or {"scans": 0, "cents": []}
    if cents == -1:
        raise LookupError("no price")
    document["scans"] += 1
    document["cents"].append(cents)
    return document


class Shelf(RedisProjection, version=1):
    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
        changes.update_json("products", e.product, scanned, e.cents)
        changes.add_score("scans", e.product)

    @on(ProductWithdrawn)
    def _(self, changes: RedisChanges, e: ProductWithdrawn, _meta: RecordedEvent) -> None:
        changes.update_json("products", e.product, lambda _: DELETE)
        changes.remove_member("scans", e.product)

    @on(ProductsMerged)
    def _(self, changes: RedisChanges, e: ProductsMerged, _meta: RecordedEvent) -> None:
        changes.drop_json("products")
        changes.drop_scores("scans")
        for product in e.products:
            changes.put_json("products", product, {"scans": 0, "cents": []})


@pytest.fixture
def projections(redis_client: Redis) -> Projections:
    return Projections(STORE, redis=redis_client)


Ask = Callable[..., Any]
"""Asks a view by the name of its method."""


@asynccontextmanager
async def async_view(projections: Projections, redis_url: str) -> Any:  # noqa: ANN401
    async with AsyncRedis.from_url(redis_url) as client:
        yield projections.async_view(client, Shelf)


@pytest.fixture(params=[RedisView, AsyncRedisView])
def ask(request: pytest.FixtureRequest, projections: Projections, redis_url: str) -> Iterator[Ask]:
    if request.param is RedisView:
        yield lambda name, *args, **options: getattr(projections.view(Shelf), name)(
            *args, **options
        )
        return

    async def answered(name: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        async with async_view(projections, redis_url) as view:
            method: Callable[..., Awaitable[Any]] = getattr(view, name)
            return await method(*args, **options)

    with asyncio.Runner() as runner:
        yield lambda name, *args, **options: runner.run(answered(name, *args, **options))


def scan_all(engine: Engine, **products: int) -> None:
    events: list[object] = [
        ItemScanned(product, 10 * n)
        for product, scans in products.items()
        for n in range(1, scans + 1)
    ]
    append_all(engine, STORE, events)


@pytest.mark.parametrize("page_events", [1, 4, 100])
def test_documents_are_what_their_events_made_of_them(
    engine: Engine, projections: Projections, ask: Ask, page_events: int
) -> None:
    scan_all(engine, milk=3, bread=1, tea=2)
    append_all(engine, STORE, [ProductWithdrawn("tea")])

    projections.catch_up(engine, Shelf, page_events=page_events)

    milk = {"scans": 3, "cents": [10, 20, 30]}
    assert ask("document", "products", "milk") == milk
    assert ask("document", "products", "tea") is None
    assert ask("documents", "products", []) == {}
    assert ask("documents", "products", ["milk", "tea"]) == {"milk": milk}
    assert ask("all_documents", "products") == {"milk": milk, "bread": {"scans": 1, "cents": [10]}}
    assert projections.verify(engine, Shelf).matches


def test_documents_come_as_the_type_that_is_asked_for(
    engine: Engine, projections: Projections, ask: Ask
) -> None:
    scan_all(engine, milk=1)
    projections.catch_up(engine, Shelf)

    assert ask("document", "products", "milk", Product) == Product(1, [10])
    assert ask("documents", "products", ["milk"], Row) == {"milk": Row(1, [10])}
    assert ask("all_documents", "products", Row) == {"milk": Row(1, [10])}
    with pytest.raises(ReadModelDocumentError, match="Expected `int`"):
        ask("all_documents", "products", dict[str, int])


def test_a_page_costs_one_command_for_each_document(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    scan_all(engine, milk=50, bread=50)
    redis_client.config_resetstat()

    projections.catch_up(engine, Shelf)

    stats = redis_client.info("commandstats")
    assert stats["cmdstat_hmget"]["calls"] < 15
    # Two documents, two structures' sizes, the checkpoint's own fields; not one per event.
    assert stats["cmdstat_hset"]["calls"] < 15


def test_members_are_read_by_rank_score_and_page(
    engine: Engine, projections: Projections, ask: Ask
) -> None:
    scan_all(engine, a=1, b=2, c=3, d=3, e=5)
    projections.catch_up(engine, Shelf)

    assert ask("top", "scans", 2) == [("e", 5), ("d", 3)]
    assert ask("ranked", "scans", first=2, limit=2) == [("c", 3), ("b", 2)]
    assert ask("ranked", "scans", limit=2, highest_first=False) == [("a", 1), ("b", 2)]
    assert ask("ranked", "scans", first=9) == []
    assert ask("scored", "scans", 2, 3) == [("b", 2), ("c", 3), ("d", 3)]
    assert ask("scored", "scans", 2, highest_first=True, first=1, limit=2) == [("d", 3), ("c", 3)]
    assert ask("scored", "scans", high=1) == [("a", 1)]
    assert ask("count", "scans", 3) == 3
    assert ask("count", "scans") == 5
    assert (ask("rank", "scans", "e"), ask("rank", "scans", "a")) == (0, 4)
    assert ask("rank", "scans", "a", highest_first=False) == 0
    assert ask("rank", "scans", "nobody") is None
    assert ask("scores", "scans", ["a", "nobody", "e"]) == {"a": 1, "e": 5}
    assert ask("scores", "scans", []) == {}
    assert (ask("hash", "none"), ask("fields", "none", []), ask("fields", "none", ["a"])) == (
        {},
        {},
        {},
    )
    for wrong in ({"limit": 0}, {"first": -1}):
        with pytest.raises(ValueError, match="ask"):
            ask("ranked", "scans", **wrong)
        with pytest.raises(ValueError, match="ask"):
            ask("scored", "scans", **wrong)


def test_a_structure_goes_as_a_whole(engine: Engine, projections: Projections, ask: Ask) -> None:
    scan_all(engine, milk=3, bread=1)
    projections.catch_up(engine, Shelf)
    append_all(engine, STORE, [ProductsMerged(["dairy"]), ItemScanned("dairy", 5)])

    projections.catch_up(engine, Shelf)

    assert ask("all_documents", "products") == {"dairy": {"scans": 1, "cents": [5]}}
    assert ask("top", "scans") == [("dairy", 1)]
    assert projections.verify(engine, Shelf).matches


def test_an_event_that_a_document_refuses_stops_the_read_model_right_before_it(
    engine: Engine, projections: Projections, ask: Ask
) -> None:
    scan_all(engine, milk=3)
    append_all(engine, STORE, [ItemScanned("milk", -1), ItemScanned("milk", 7)])

    with pytest.raises(ProjectionStoppedError, match="no price") as stopped:
        projections.catch_up(engine, Shelf)

    assert isinstance(stopped.value.__cause__, LookupError)
    assert stopped.value.position == 4
    checkpoint = projections._in_redis(Shelf).checkpoint()  # noqa: SLF001 -- readers are refused
    assert checkpoint is not None
    assert checkpoint.position == 3
    with pytest.raises(ReadModelBuildingError):
        ask("document", "products", "milk")


def test_readers_are_told_what_they_cannot_have(
    engine: Engine, projections: Projections, redis_client: Redis, ask: Ask
) -> None:
    with pytest.raises(ReadModelBuildingError):
        ask("position")
    scan_all(engine, milk=2, bread=1)
    projections.catch_up(engine, Shelf)
    redis_client.zrem(KEYS.of("zset", "scans"), "bread")
    redis_client.delete(KEYS.of("json", "products"))

    assert ask("position") == 3
    with pytest.raises(ReadModelDamagedError, match="products"):
        ask("document", "products", "milk")
    for name in ("top", "ranked", "scored", "count"):
        with pytest.raises(ReadModelDamagedError, match="scans"):
            ask(name, "scans")
    redis_client.set(KEYS.of("zset", "scans"), "theirs")
    with pytest.raises(ReadModelDamagedError, match="scans"):
        ask("top", "scans")
    redis_client.set(KEYS.checkpoint, "theirs")
    with pytest.raises(ForeignReadModelError):
        ask("position")
    with pytest.raises(ForeignReadModelError):
        ask("top", "scans")


def test_an_asynchronous_reader_is_told_that_redis_does_not_answer() -> None:
    async def top() -> object:
        nobody = AsyncRedis(host="127.0.0.1", port=1)
        view = AsyncRedisView(nobody, KEYS)
        try:
            return await view.top("scans")
        finally:
            await nobody.aclose()

    with pytest.raises(ServerUnavailableError):
        asyncio.run(top())


def test_verify_sees_what_is_none_of_ours(
    engine: Engine, projections: Projections, redis_client: Redis
) -> None:
    scan_all(engine, milk=1)
    projections.catch_up(engine, Shelf)
    redis_client.set(f"{KEYS.tag}:theirs:x", "a value")
    redis_client.hset(KEYS.of("json", "products"), "milk", '{"scans": 1, "cents": [10]}')
    redis_client.delete(KEYS.of("zset", "scans"))
    redis_client.set(KEYS.of("zset", "scans"), "theirs")

    found = projections.verify(engine, Shelf)

    assert [difference.key for difference in found.differences] == [
        ("json", "products", "milk"),  # the same document, but not the same text
        ("theirs", "x", ""),
        ("zset", "scans", ""),
        ("zset", "scans", "milk"),
    ]
    first = projections.verify(engine, Shelf, limit=1)
    assert first.differences == found.differences[:1]
