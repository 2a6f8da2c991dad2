"""After any writes and a round of the relay: what is cached is what the query says."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import (
    ColumnElement,
    Engine,
    Row,
    and_,
    delete,
    exists,
    func,
    select,
    text,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from datapatterns.cache_aside import Cache
from datapatterns.cache_aside.capturing import Followed
from datapatterns.cache_aside.invalidating import keys_of
from tests.fixtures.caches import open_cache
from tests.fixtures.effort import THOROUGH
from tests.fixtures.queried_things import Mark, Shelf, Thing, create_things

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

KINDS = [None, "cup", "jar", "mug"]
kinds, shelves, ids = st.sampled_from(KINDS), st.sampled_from([None, 1, 2]), st.integers(1, 6)
Write = Callable[[Engine], None]
OTHER = aliased(Thing)


def demands(of: Any) -> st.SearchStrategy[ColumnElement[bool]]:  # noqa: ANN401 -- a class or alias
    """Draw a condition that confines, or does not."""
    return st.one_of(
        kinds.map(lambda kind: of.kind == kind),
        st.lists(st.sampled_from(KINDS[1:]), max_size=2).map(of.kind.in_),
        shelves.map(lambda shelf: of.shelf_id == shelf),
        ids.map(lambda number: of.id == number),
        st.lists(ids, max_size=2).map(of.id.in_),
        st.integers(0, 9).map(lambda size: of.size > size),
        kinds.map(lambda kind: func.coalesce(of.kind, "none") == kind),
    )


def conjunctions(of: Any) -> st.SearchStrategy[ColumnElement[bool]]:  # noqa: ANN401
    return st.lists(demands(of), min_size=1, max_size=3).map(lambda some: and_(*some))


@st.composite
def queries(draw: st.DrawFn) -> Any:  # noqa: ANN401 -- any query
    """Draw a query whose tables are confined by conjunctions, or some of them."""
    on, things = Thing.shelf_id == Shelf.id, select(Thing.id, Thing.size)
    first, second = draw(conjunctions(Thing)), draw(conjunctions(OTHER))
    place = Shelf.place == draw(st.sampled_from(["left", "right", None]))
    marked = exists().where(Mark.thing_id == Thing.id, Mark.word == "old", first)
    inner = things.where(first)
    rows = draw(st.sampled_from([inner.subquery(), inner.cte()]))
    shapes = [
        inner,
        select(func.count(), func.sum(Thing.size)).where(first),
        select(Thing.id, Shelf.place).join(Shelf, and_(on, place)).where(first),
        select(Shelf.id, Thing.id).outerjoin(Thing, on).where(first),
        select(Shelf.id).where(place, Shelf.things.any(first)),
        things.where(draw(st.sampled_from([marked, ~marked]))),
        select(Thing.id, OTHER.id).where(first, second, Thing.size <= OTHER.size),
        select(rows.c.id, OTHER.kind).join(OTHER, OTHER.size == rows.c.size),
        union_all(inner, select(OTHER.id, OTHER.size).where(second)),
    ]
    return draw(st.sampled_from(shapes))


def by_orm(number: int, kind: str | None, shelf: int | None) -> Write:
    def write(engine: Engine) -> None:
        with Session(engine) as session, session.begin():
            thing = session.get(Thing, number)
            if thing is None:
                session.add(Thing(id=number, kind=kind, shelf_id=shelf, size=number))
            else:
                thing.kind, thing.shelf_id = kind, shelf

    return write


def in_bulk(kind: str | None, shelf: int | None) -> Write:
    def write(engine: Engine) -> None:
        with Session(engine) as session, session.begin():
            session.execute(delete(Thing).where(Thing.shelf_id == shelf))
            free = {*range(1, 7)} - {*session.scalars(select(Thing.id))}
            session.bulk_insert_mappings(
                Thing.__mapper__,
                [{"id": n, "kind": kind, "shelf_id": shelf, "size": n} for n in sorted(free)[:2]],
            )

    return write


def by_text(statement: str, **values: object) -> Write:
    def write(engine: Engine) -> None:
        with engine.begin() as conn:
            conn.execute(text(statement), values)

    return write


writes = st.one_of(
    st.builds(by_orm, ids, kinds, shelves),
    st.builds(by_orm, ids, kinds, shelves),
    st.builds(in_bulk, kinds, shelves),
    st.builds(lambda number: by_text("DELETE FROM thing WHERE id = :n", n=number), ids),
    st.builds(
        lambda kind, shelf: by_text(
            "UPDATE thing SET kind = CAST(:kind AS text) WHERE shelf_id = :shelf",
            kind=kind,
            shelf=shelf,
        ),
        kinds,
        shelves,
    ),
    st.builds(
        lambda number: by_text("UPDATE thing SET size = 9 - size WHERE id = :n", n=number), ids
    ),
    st.builds(lambda number: by_text("UPDATE thing SET id = id + 9 WHERE id = :n", n=number), ids),
    st.builds(
        lambda number: by_text(
            "INSERT INTO mark VALUES (:n, 'old') ON CONFLICT DO NOTHING", n=number
        ),
        ids,
    ),
    st.just(
        by_text("UPDATE shelf SET place = CASE place WHEN 'left' THEN 'right' ELSE 'left' END")
    ),
    st.just(by_text("TRUNCATE thing")),
    st.just(by_text("DELETE FROM mark")),
)


@pytest.fixture(scope="module")
def cache(module_engine: Engine, redis_url: str) -> Iterator[Cache]:
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    with open_cache(redis_url, module_engine, name="query") as cache:
        create_things(module_engine, cache)
        yield cache


def check(cache: Cache, engine: Engine, asked: Sequence[Any], done: Sequence[Write]) -> None:
    with engine.begin() as conn:
        conn.execute(text("TRUNCATE thing, mark"))
        conn.execute(
            text(
                "INSERT INTO thing (id, shelf_id, kind, size) SELECT n, 1 + n % 2, 'cup', n"
                " FROM generate_series(1, 4) AS n"
            )
        )
    cache.relay()
    for write in done:
        for statement in asked:
            cache.query(statement)
        write(engine)
        cache.relay()
        for statement in asked:
            with engine.connect() as conn:
                rows = [tuple(row) for row in conn.execute(statement)]
            assert sorted(cache.query(statement), key=repr) == sorted(rows, key=repr)


@settings(max_examples=500 if THOROUGH else 10)
@given(
    asked=st.lists(queries(), min_size=2, max_size=4), done=st.lists(writes, min_size=1, max_size=5)
)
def test_what_is_cached_is_what_the_query_says(
    asked: list[Any], done: list[Write], cache: Cache, module_engine: Engine
) -> None:
    check(cache, module_engine, asked, done)


def test_whoever_tells_nothing_of_a_value_before_leaves_it(
    cache: Cache, module_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Followed.keys_of

    def keys(self: Followed, row: Row[Any]) -> list[str]:
        return keys_of((), [self.table_tag]) if row.change_sign < 0 else original(self, row)

    monkeypatch.setattr(Followed, "keys_of", keys)

    cups = select(Thing.id).where(Thing.kind == "cup")
    with pytest.raises(AssertionError):
        check(cache, module_engine, [cups], [by_orm(1, "mug", 1)])
