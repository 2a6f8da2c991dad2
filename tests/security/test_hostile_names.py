"""A name that somebody chose works exactly as written, or is refused: never cut, never SQL."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Table,
    Text,
    func,
    literal,
    select,
)
from sqlalchemy.exc import DBAPIError, IdentifierError

from datapatterns import DataLayer
from datapatterns.cache_aside import Cache
from datapatterns.change_log import ChangeLog, change_log_tables
from datapatterns.cqrs import Projections
from datapatterns.errors import DataPatternsError
from datapatterns.event_sourcing import NEW_STREAM, EventStore, NewEvent, StreamId
from datapatterns.event_sourcing.events import check_event_type
from datapatterns.index_table import IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from datapatterns.sql.metadata import checked_schema
from datapatterns.sql.migrating import upgrade
from datapatterns.sql.texts import is_text
from tests.fixtures.caches import PATIENT
from tests.fixtures.index_tables import assert_agrees, build
from tests.fixtures.read_models import Dashboard, ItemScanned
from tests.fixtures.view_tables import create, refresh, verify

INJECTION = "x; DROP TABLE datapatterns.event; --"
NASTY = [
    "'", '"', '""', "x'y", 'x"y', "%", "%s", "%(x)s", "%%", ":x", "a:b", ":", ";", INJECTION,
    f'"{INJECTION}', f"'{INJECTION}", "$", "$$", "$1", "$body$", "{}", "{0}", "{schema}", "\\",
    "\\'", "\n", "x\ny", "\t", "x\r\n-- y", "/*", "*/", "--", " ", " x", "x ", "x_", "__", "_",
    "X", "x.y",
    '"x"."y"', "é", "naïve", "日本語", "🧺", "\u202e", "\u0301", "ß", "İ", "select", "table",
    "user", "order", "all", "null", "pg_catalog", "new_rows", "old_rows", "position",
    "change_xid", "ctid",
    "a" * 63, "a" * 64, "a" * 200, "é" * 31, "é" * 32, "🧺" * 15, "🧺" * 16, "a\0b", "\0", "\ud800",
]  # fmt: skip
names = st.sampled_from(NASTY) | st.text(min_size=1, max_size=70)
shop = EntityGroup("hostile", strategy=Hash(buckets=4))
SLOW = settings(max_examples=settings().max_examples // 5)
SCHEMAS = ["_", "x_", "_asdict", "opts_", "count", "a" * 40, "__init__"]


@given(names)
def test_a_schema_has_a_name_that_never_needs_a_quote(name: str) -> None:
    with refusal_allowed():
        assert checked_schema(name) == name
        assert name.replace("_", "a").isalnum()
        assert name.isascii()
        assert len(name) <= 40


@pytest.mark.parametrize("schema", SCHEMAS)
def test_everything_works_in_a_schema_of_any_name_that_is_allowed(
    engine: Engine, redis_client: Redis, schema: str
) -> None:
    with engine.begin() as conn:
        upgrade(conn, schema=schema)
        store, log = EventStore(schema=schema), ChangeLog(schema)
        appended = store.append(
            conn, StreamId("a", "b"), [ItemScanned("milk", 99)], expected_version=NEW_STREAM
        )
        log.register_consumer(conn, "somebody", "test")
        log.collect_garbage(conn)
    with engine.begin() as conn:
        assert store.read_log(conn).checkpoint == appended.position
    projections = Projections(store, redis=redis_client)
    projections.catch_up(engine, Dashboard)
    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "99"}
    things = table_of("things", "name")
    things.create(engine)
    drive_table(engine, things, "name", schema=schema)
    with closing(Cache(redis_client, engine, name="c", schema=schema, policy=PATIENT)) as cache:
        number = cache.cached(identity)
        assert (number(1), number(1)) == (1, 1)
        assert cache.stats().hits == 1
    url = engine.url
    with ShardCluster(control=url, shards={"s0": url}, groups=[shop], schema=schema) as cluster:
        cluster.create_map()
        with cluster.begin_bulk(shop, "s0") as conn:
            place = shop.bucket_of(literal(7, BigInteger), strategy=shop.strategy, schema=schema)
            bucket = conn.scalar(select(place))
        assert bucket == shop.strategy.bucket(7)


@SLOW
@given(table=names, column=names)
@example(table='x"; DROP TABLE datapatterns.event; --', column="'||(SELECT 1)||'")
@example(table="%s", column="%(x)s")
@example(table="\U0001f9fa" * 16, column="x")
@example(table="x", column="é" * 32)
@example(table="a" * 63, column="b" * 63)
def test_tables_and_columns_of_any_name_are_indexed_viewed_and_captured(
    module_engine: Engine, table: str, column: str
) -> None:
    assume(column != "id")
    declared = table_of(table, column)
    try:
        with module_engine.begin() as conn:
            declared.create(conn)
    except (IdentifierError, DBAPIError, UnicodeEncodeError, ValueError):
        return  # no such table can be, with us or without
    try:
        drive_table(module_engine, declared, column)
    finally:
        with module_engine.begin() as conn:
            declared.drop(conn)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (f'x"{INJECTION}', f"'{INJECTION}"),
        ("%s", "%(x)s"),
        ("a:b", ":x"),
        ("{schema}", "$body$"),
        ("\\", "x\n-- y"),
        ("日本語", "🧺"),
        ("a" * 63, "b" * 63),
        ("select", "order"),
    ],
)
def test_a_name_that_only_looks_odd_is_not_refused(
    module_engine: Engine, table: str, column: str
) -> None:
    """The control: the test above does not get by on refusals."""
    declared = table_of(table, column)
    declared.create(module_engine)

    done = drive_table(module_engine, declared, column)

    declared.drop(module_engine)
    assert done == {"indexed", "viewed"}


@given(name=names)
def test_an_index_a_view_and_a_projection_refuse_names_that_they_could_not_keep(
    name: str,
) -> None:
    thing = table_of("thing", "name")
    accepted: list[str] = []
    for declare in (
        lambda: IndexTable(name, on=[thing.c.name]).definition.name,
        lambda: MaterializedView(name, select(thing.c.name)).table.name,
        lambda: _projection(name).name,
        lambda: checked(ShardCluster(control="postgresql:///x", shards={name: "postgresql:///x"},
                                     groups=[shop])),
        lambda: EntityGroup(name).name,
    ):  # fmt: skip
        with refusal_allowed(ValueError):
            accepted.append(declare())

    assert all(found in (name, "checked") for found in accepted)
    assert not accepted or len(name.encode()) <= 63


@given(name=names)
def test_a_consumer_is_found_by_the_name_that_it_registered(
    module_engine: Engine, name: str
) -> None:
    log = ChangeLog()
    with module_engine.connect() as conn, refusal_allowed(ValueError):
        log.register_consumer(conn, name, "test")
        assert log.lock_consumer.__name__
        found = conn.scalars(select(change_log_tables("datapatterns").consumers.c.name)).all()
        assert found == [name]
        log.forget_consumer(conn, name)


@given(key=names, tenant=names | st.just(""), category=names, kind=names)
def test_a_stream_is_read_by_the_names_that_it_was_appended_under(
    module_engine: Engine, key: str, tenant: str, category: str, kind: str
) -> None:
    store = EventStore()
    with refusal_allowed(ValueError):
        StreamId(category, key, tenant)
    with refusal_allowed(ValueError):
        NewEvent(kind, {})
    with module_engine.connect() as conn, refusal_allowed(ValueError):
        stream = StreamId("c", key, tenant)
        event = NewEvent("k" if not _allowed_kind(kind) else kind, {key: tenant})
        store.append(conn, stream, [event], expected_version=NEW_STREAM)
        [recorded] = store.read_stream(conn, stream)
        assert recorded.stream == stream
        assert (recorded.event_type, recorded.data) == (event.event_type, {key: tenant})


@SLOW
@given(cache=names, prefix=names, key=names)
def test_caches_and_read_models_in_redis_keep_to_their_prefix(
    module_engine: Engine, redis_url: str, cache: str, prefix: str, key: str
) -> None:
    with closing(Redis.from_url(redis_url)) as client:
        client.flushdb()
        with refusal_allowed():
            opened = Cache(client, module_engine, name=cache, target=prefix, policy=PATIENT)
            with closing(opened):
                own = opened.cached(identity)
                with refusal_allowed():
                    assert (own(key), own(key), opened.stats().hits) == (key, key, 1)
        with refusal_allowed(ValueError):
            projections = Projections(redis=client, redis_prefix=prefix)
            projections.catch_up(module_engine, Dashboard)
            projections.rebuild(module_engine, Dashboard)
            assert projections.verify(module_engine, Dashboard).differences == []
        beginnings = (f"{prefix}:".encode(), f"{{{prefix}:".encode()) if is_text(prefix) else ()
        assert all(found.startswith(beginnings) for found in client.scan_iter())


@given(prefix=names)
def test_a_layer_takes_a_prefix_for_everything_in_redis_or_for_nothing(prefix: str) -> None:
    with refusal_allowed(ValueError):
        layer = DataLayer("postgresql:///x", redis_url="redis://h", redis_prefix=prefix)
        with closing(layer), closing(layer.cache("c")):
            assert layer.projections.redis_prefix == prefix


def drive_table(
    engine: Engine, table: Table, column: str, *, schema: str = "datapatterns"
) -> set[str]:
    """Index, view and capture ``table``; what is not refused must be exact. Return what it was."""
    done = set()
    index = IndexTable("hostile_index", on=[table.c[column]], schema=schema)
    counted = select(table.c[column], func.count().label("n")).group_by(table.c[column])
    row = {"id": 1, column: INJECTION}
    with refusal_allowed(), undone(engine, index.drop):
        build(engine, index)
        with engine.begin() as conn:
            conn.execute(table.insert(), [row])
            assert [found.id for found in index.lookup(conn, INJECTION)] == [1]
            assert assert_agrees(conn, index) == 1
            conn.execute(table.delete())
        done.add("indexed")
    with refusal_allowed():
        view = MaterializedView("hostile_view", counted, schema=schema)
        with undone(engine, view.drop):
            drive_view(engine, table, view, row)
        done.add("viewed")
    return done


def drive_view(engine: Engine, table: Table, view: MaterializedView, row: dict[str, Any]) -> None:
    create(engine, view)
    with engine.begin() as conn:
        conn.execute(table.insert(), [row])
    refresh(engine, view)
    assert verify(engine, view) == []
    with engine.begin() as conn:
        assert conn.execute(select(view.table)).all() == [(INJECTION, 1)]
        conn.execute(table.delete())


@contextmanager
def undone(engine: Engine, drop: Callable[[Connection], object]) -> Iterator[None]:
    try:
        yield
    finally:
        with engine.begin() as conn:
            drop(conn)


@contextmanager
def refusal_allowed(*kinds: type[Exception]) -> Iterator[None]:
    """Take a typed refusal for an answer; anything that the driver or a bug says is none."""
    allowed: tuple[type[Exception], ...] = (DataPatternsError, *kinds)
    try:
        yield
    except allowed as error:
        if isinstance(error, UnicodeError):  # a ValueError, but nobody chose to raise it
            raise


def identity(_conn: Connection, wanted: Any) -> Any:  # noqa: ANN401 -- whatever is asked for
    return wanted


def table_of(name: str, column: str) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column(column, Text),
    )


def _projection(name: str) -> Any:  # noqa: ANN401 -- a class made here
    class Named(Dashboard, version=1, name=name):
        pass

    return Named


def checked(cluster: ShardCluster) -> str:
    cluster.close()
    return "checked"


def _allowed_kind(kind: str) -> bool:
    try:
        check_event_type(kind, 1)
    except ValueError:
        return False
    return True
