"""Each pattern does its work under the rights that the documentation tells users to grant."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from sqlalchemy import URL, BigInteger, Connection, MetaData, func, insert, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.change_log import ChangeLog, change_token
from datapatterns.cqrs import (
    CommandContext,
    Commands,
    InlineProjections,
    Projection,
    Projections,
    forget_executions,
    on,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    START,
    Archive,
    EventStore,
    HashChain,
    ImportedEvent,
    LogSignal,
    NewEvent,
    Partitioning,
    RecordedEvent,
    StreamEvents,
    StreamId,
    Subjects,
    Tagged,
    check_append_only,
    final_until,
    forget_append_requests,
    publish_mark,
)
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.materialized_view import MaterializedView
from datapatterns.materialized_view.replacing import replace_view
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from tests.fixtures import people
from tests.fixtures.caches import PATIENT
from tests.fixtures.index_tables import backfill
from tests.fixtures.least_rights import LeastRights, least_rights_on, redis_user, run, sql_blocks
from tests.fixtures.local_tiers import LOCAL, until_kept
from tests.fixtures.read_models import Base as ReadModels
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    ProductSales,
    SalesByProduct,
)
from tests.fixtures.view_tables import create as create_view
from tests.fixtures.view_tables import verify

store = EventStore()
households = EntityGroup("household", strategy=Hash(buckets=16))


@dataclass(frozen=True, slots=True)
class Note:
    """A command."""

    text: str


class Shop(DeclarativeBase):
    pass


class Product(Shop):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    department: Mapped[str | None]


class Line(Shop):
    __tablename__ = "line"

    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(index=True)
    cents: Mapped[int]


class Customer(Shop):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None]
    name: Mapped[str]


class BoughtBase(DeclarativeBase):
    pass


class Bought(BoughtBase):
    __tablename__ = "bought"

    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)


class BoughtByProduct(Projection, into=Bought, version=1, messages=True):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Bought, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1
        self.emit("bought", e.product)


class Sharded(DeclarativeBase):
    metadata = MetaData()


class Basket(Sharded):
    __tablename__ = "basket"
    __shard__ = households.by("household_id")

    household_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cents: Mapped[int]


weekly = MaterializedView(
    "sales_by_department",
    select(Product.department, func.sum(Line.cents).label("cents"))
    .join(Line, Product.id == Line.product_id)
    .group_by(Product.department),
)
largest = MaterializedView("largest_line", select(func.max(Line.cents).label("largest")))
by_email = IndexTable(
    "customer_by_email", on=[Customer.email], unique=True, include=[Customer.name]
)


@pytest.fixture(scope="module")
def rights(least_rights: LeastRights) -> LeastRights:
    """A database with a shop, which belongs to the owner."""
    with least_rights.owner.begin() as conn:
        Shop.metadata.create_all(conn)
        ReadModels.metadata.create_all(conn)
    least_rights.grant(2)
    return least_rights


@pytest.fixture
def redis_of_app(redis_url: str, redis_client: Redis) -> Iterator[Redis]:
    """A client under the rights of the page, of an empty Redis."""
    assert redis_client.dbsize() == 0
    with redis_user(redis_url) as client:
        yield client


def test_the_worker_publishes_the_mark_and_everybody_reads_up_to_it(rights: LeastRights) -> None:
    with rights.worker.begin() as conn:
        mark = publish_mark(conn, store)
    for engine in (rights.app, rights.reader):
        with engine.begin() as conn:
            assert store.high_water_mark(conn, published=True) == mark
        with engine.begin() as conn, pytest.raises(ProgrammingError, match="permission denied"):
            publish_mark(conn, store)
    assert LogSignal(store, rights.reader).look(0) >= mark
    assert LogSignal(store, rights.reader, published=True).look(0) == mark
    with rights.reader.begin() as conn:
        assert final_until(conn, store) is not None


def test_the_application_appends_loads_and_reads(rights: LeastRights) -> None:
    stream = StreamId("till", secrets.token_hex(4))

    with rights.app.begin() as conn:
        appended = store.append(conn, stream, [NewEvent("a.b", {})], expected_version=NEW_STREAM)
        store.append(conn, stream, [NewEvent("a.b", {})], expected_version=appended.version)
    with rights.reader.begin() as conn:
        page = store.read_log(conn, START)

    assert [event.version for event in page.events if event.stream == stream] == [1, 2]
    with rights.reader.begin() as conn:
        assert store.blockers(conn) == []


def test_the_owner_imports(rights: LeastRights) -> None:
    chunk = [ImportedEvent(StreamId("till", "imported"), NewEvent("a.b", {}))]

    with rights.owner.begin() as conn:
        assert store.import_events(conn, chunk, source="old", chunk=1) == 1


def test_the_application_decides_over_tags_and_the_worker_forgets_what_was_sent(
    rights: LeastRights,
) -> None:
    about = Tagged((f"course:{secrets.token_hex(4)}",))
    event = NewEvent("a.b", {}, tags=about.tags)
    with rights.app.begin() as conn:
        page = store.read_tagged(conn, about)
        store.read_tagged(conn, about, exclusively=True)
        stream = StreamId("a", secrets.token_hex(8))
        store.append(conn, stream, [event], expected_version=ANY, unless=page.condition)
        store.append_to_streams(conn, [StreamEvents(stream, [event], ANY, event_ids=[uuid4()])])

    with rights.worker.begin() as conn:
        assert forget_append_requests(conn, store, older_than=timedelta(microseconds=1)) >= 1


def test_the_app_executes_commands_and_the_worker_forgets_them(rights: LeastRights) -> None:
    commands = Commands(store)

    @commands.handles(Note)
    def _(command: Note, context: CommandContext) -> str:
        noted = [NewEvent("a.b", {"text": command.text})]
        context.append(context.stream("a", "noted"), noted, expected_version=ANY)
        return command.text

    first = commands.execute(rights.app, Note("x"), idempotency_key="k")
    assert commands.execute(rights.app, Note("x"), idempotency_key="k").repeated
    assert first.position > 0

    age = timedelta(microseconds=1)
    with rights.worker.begin() as conn:
        assert forget_executions(conn, store, older_than=age, dry_run=True) == 1
        assert forget_executions(conn, store, older_than=age) == 1


def test_the_worker_seals_the_reader_verifies_and_nobody_else_may_change_events(
    rights: LeastRights,
) -> None:
    chain = HashChain(store)
    with rights.app.begin() as conn:
        store.append(conn, StreamId("a", "sealed"), [NewEvent("a.b", {})], expected_version=ANY)

    sealed = chain.seal_all(rights.worker)
    with rights.reader.begin() as conn:
        report = chain.verify(conn)
        findings = check_append_only(conn)

    assert sealed == 1
    assert report.intact
    assert [str(each) for each in findings if each.is_error] == []


def test_the_owner_keeps_events_for_long_and_the_worker_makes_partitions(
    rights: LeastRights,
) -> None:
    archive, partitioning = Archive(store), Partitioning(store)
    stream = StreamId("a", secrets.token_hex(4))
    with rights.app.begin() as conn:
        store.append(conn, stream, [NewEvent("a.b", {})], expected_version=ANY)
    with rights.owner.begin() as conn:
        archive.compact(conn, stream, NewEvent("a.b", {}), expected_version=1)
    assert archive.move_all(rights.owner) == 1
    HashChain(store).seal_all(rights.worker)
    with rights.owner.begin() as conn:
        exported = archive.export(conn, stream, through_version=1, write=len)
        archive.purge(conn, stream, exported, reason="old")

    assert partitioning.partition(rights.owner, size=5)
    with rights.worker.begin() as conn:
        assert partitioning.extend(conn, ahead=5) >= 1
    with rights.app.begin() as conn:
        store.append(conn, stream, [NewEvent("a.b", {})], expected_version=2)
    with rights.reader.begin() as conn:
        assert [e.version for e in store.read_stream(conn, stream)] == [2, 3]
        assert [str(each) for each in check_append_only(conn) if each.is_error] == []
    with rights.owner.begin() as conn:
        partitioning.drop_empty(conn)
        partitioning.undo(conn)
    with rights.app.begin() as conn:
        store.append(conn, stream, [NewEvent("a.b", {})], expected_version=3)


def test_the_application_stores_personal_fields_and_the_owner_forgets(
    rights: LeastRights,
) -> None:
    who = secrets.token_hex(8)
    with rights.app.begin() as conn:
        for _ in range(2):
            customer = people.store.load(conn, people.Customer, who)
            customer.register("a@b")
            people.store.save(conn, customer)
            assert people.store.save_snapshot(conn, customer)
    with rights.worker.begin() as conn:
        [first, _] = people.store.read_stream(conn, StreamId("customer", who))
        assert first.data["email"] == "a@b"
    for role in (rights.app, rights.worker, rights.reader):
        for sql in (
            "SELECT wrapped_key FROM datapatterns.subject_key",
            "UPDATE datapatterns.subject_key SET created_at = now()",
            "SELECT * FROM datapatterns.shred_subject('', 'x')",
        ):
            with role.begin() as conn, pytest.raises(ProgrammingError, match="permission denied"):
                conn.exec_driver_sql(sql)
    with (
        rights.reader.begin() as conn,
        pytest.raises(ProgrammingError, match="permission denied for function read_subject_keys"),
    ):
        people.store.read_stream(conn, StreamId("customer", who))

    with rights.owner.begin() as conn:
        done = Subjects(people.store).forget(conn, who)
        assert Subjects(people.store).rewrap(conn, limit=100) is None

    assert done.snapshots == 2
    with rights.app.begin() as conn:
        assert people.store.load(conn, people.Customer, who).emails == ["[forgotten]"] * 2


def test_the_worker_projects_what_the_application_appends(
    rights: LeastRights, redis_of_app: Redis
) -> None:
    projections = Projections(store, redis=redis_of_app)
    with rights.app.begin() as conn:
        stream = StreamId("basket", secrets.token_hex(4))
        token = store.append(conn, stream, [ItemScanned("milk", 99)], expected_version=ANY).position

    for projection in (SalesByProduct, Dashboard):
        projections.catch_up(rights.worker, projection)
        projections.wait(rights.app, projection, token, timeout_seconds=5)
        projections.rebuild(rights.worker, projection)
        assert projections.verify(rights.worker, projection).differences == []

    with rights.app.begin() as conn:
        assert conn.scalar(select(ProductSales.cents).filter_by(product="milk")) == 99
    assert projections.view(Dashboard).hash("cents_by_product") == {"milk": "99"}
    with rights.reader.begin() as conn:
        assert {status.positions_behind for status in projections.status(conn)} == {0}

    worker = projections.worker([SalesByProduct])
    assert worker.step(rights.worker).held == 1
    with rights.worker.connect() as conn:
        worker.leave(conn)
    assert projections.split_into(rights.worker, SalesByProduct, 2) == 2
    assert projections.merge(rights.worker, SalesByProduct) == 1


def test_the_application_keeps_inline_what_the_worker_switches(rights: LeastRights) -> None:
    keeping = EventStore(inline=InlineProjections((BoughtByProduct,)))
    projections = Projections(keeping)
    sent = "SELECT count(*) FROM datapatterns.outbox WHERE payload #>> '{}' = 'tea'"
    with rights.owner.begin() as conn:
        Bought.metadata.create_all(conn)
    of_all_read_models = sql_blocks()[2].partition("\n\n")[2]
    run(rights.owner, rights.named(of_all_read_models.replace("product_sales", "bought")))

    projections.make_inline(rights.worker, BoughtByProduct)
    with rights.app.begin() as conn, pytest.raises(ProgrammingError, match="permission denied"):
        keeping.append(conn, StreamId("b", "1"), [ItemScanned("tea", 1)], expected_version=ANY)
    grants = sql_blocks()[3].replace("product_sales", "bought")
    run(rights.owner, rights.named(grants))
    with rights.app.begin() as conn:
        keeping.append(conn, StreamId("b", "1"), [ItemScanned("tea", 1)], expected_version=ANY)
    try:
        assert projections.verify(rights.worker, BoughtByProduct).matches
        with rights.reader.begin() as conn:
            assert conn.exec_driver_sql(sent).scalar_one() == 1
    finally:
        projections.make_async(rights.worker, BoughtByProduct)


def test_the_worker_refreshes_views_of_what_the_application_writes(rights: LeastRights) -> None:
    for view in (weekly, largest):
        with rights.owner.begin() as conn:
            view.create(conn)
    rights.grant(4)
    for view in (weekly, largest):
        with rights.worker.begin() as conn:
            view.populate(conn)

    with rights.app.begin() as conn:
        conn.execute(insert(Product), [{"id": 1, "department": "dairy"}])
        conn.execute(insert(Line), [{"id": 1, "product_id": 1, "cents": 250}])
    for view in (weekly, largest):
        with rights.worker.begin() as conn:
            view.refresh(conn)
        assert verify(rights.worker, view) == []

    with rights.reader.begin() as conn:
        assert conn.execute(select(weekly.table)).all() == [("dairy", 250)]
        assert conn.execute(select(largest.table)).all() == [(250,)]
        assert weekly.freshness(conn).pending_rows == 0
    with rights.worker.begin() as conn:
        ChangeLog().collect_garbage(conn)


def test_the_worker_keeps_the_next_version_of_a_view_fresh_until_its_owner_comes(
    rights: LeastRights,
) -> None:
    old = MaterializedView("smallest", select(func.min(Line.cents).label("smallest")))
    new = MaterializedView("smallest", select(func.min(Line.cents + 1).label("smallest")))
    definition = new.definition
    create_view(rights.owner, old)
    with rights.owner.begin() as conn:
        replace_view(conn, definition.names, definition.blueprint(definition.candidates[0]))
    rights.grant(4)
    with rights.app.begin() as conn:
        conn.execute(insert(Product), [{"id": 9, "department": "rest"}])

    for cents in (70, 60):
        with rights.app.begin() as conn:
            conn.execute(insert(Line), [{"id": cents, "product_id": 9, "cents": cents}])
        with rights.worker.begin() as conn:
            new.refresh(conn)
        assert verify(rights.worker, new) == []
        with rights.reader.begin() as conn:
            assert conn.scalar(select(old.table)) != cents + 1
    with rights.owner.begin() as conn:
        new.refresh(conn)
    with rights.app.begin() as conn:
        conn.execute(insert(Line), [{"id": 5, "product_id": 9, "cents": 5}])
    with rights.worker.begin() as conn:
        new.refresh(conn)

    with rights.reader.begin() as conn:
        assert conn.execute(select(new.table)).all() == [(6,)]
    assert verify(rights.worker, new) == []


def test_the_application_writes_and_asks_an_index_table_that_the_owner_builds(
    rights: LeastRights,
) -> None:
    with rights.app.begin() as conn:
        conn.execute(insert(Customer), [{"id": 1, "email": "ann@x.example", "name": "Ann"}])
    with rights.owner.begin() as conn:
        by_email.create(conn)
    backfill(rights.owner, by_email)
    with rights.owner.begin() as conn:
        by_email.activate(conn)

    with rights.app.begin() as conn:
        conn.execute(insert(Customer), [{"id": 2, "email": "bob@x.example", "name": "Bob"}])
        conn.execute(update(Customer).filter_by(id=1).values(email="anna@x.example"))
    with rights.app.begin() as conn:
        assert [row.name for row in by_email.lookup(conn, "anna@x.example")] == ["Ann"]
        assert by_email.verify(conn).clean
        with pytest.raises(ProgrammingError, match="permission denied"):
            conn.execute(text("DELETE FROM datapatterns.customer_by_email"))


def test_the_worker_keeps_an_index_table_behind_writers_that_only_log(rights: LeastRights) -> None:
    by_name = IndexTable("customer_by_name", on=[Customer.name], mode="async")
    with rights.owner.begin() as conn:
        by_name.create(conn)
    Indexes([by_name]).build(rights.owner)
    rights.grant(4)
    with rights.app.begin() as conn:
        conn.execute(insert(Customer), [{"id": 77, "email": "zoe@x.example", "name": "Zoe"}])
        token = change_token(conn)

    worker = Indexes([by_name]).worker()
    worker.step(rights.worker)

    assert not worker.troubles
    by_name.wait(rights.app, token, timeout_seconds=0.0)
    with rights.app.begin() as conn:
        assert [row.id for row in by_name.lookup(conn, "Zoe")] == [77]
        assert by_name.lag(conn).pending_rows == 0
        with pytest.raises(ProgrammingError, match="permission denied"):
            conn.execute(text("DELETE FROM datapatterns.customer_by_name"))


def test_the_application_caches_and_the_worker_relays(
    rights: LeastRights, redis_of_app: Redis
) -> None:
    run(rights.owner, "INSERT INTO product VALUES (5, 'bread')")
    with closing(Cache(redis_of_app, rights.app, name="product", policy=PATIENT)) as cache:

        @cache.cached
        def department(conn: Connection, number: int) -> str | None:
            return conn.scalar(select(Product.department).filter_by(id=number))

        assert department(5) == department(5) == "bread"
        with cache.writes() as conn:
            conn.execute(update(Product).filter_by(id=5).values(department="rolls"))
            department.invalidate_in(conn, 5)
        assert department(5) == department(5) == "rolls"
        assert (cache.stats().hits, cache.stats().loads) == (2, 2)

        with rights.app.begin() as conn:  # a writer that nobody tells Redis of
            conn.execute(update(Product).filter_by(id=5).values(department="cake"))
            department.invalidate_in(conn, 5)
        with closing(
            Cache(redis_of_app, rights.worker, name="product", policy=PATIENT)
        ) as of_worker:
            assert of_worker.relay().transactions == 2
        assert department(5) == "cake"


def test_the_application_keeps_values_in_its_process(
    rights: LeastRights, redis_of_app: Redis
) -> None:
    run(rights.owner, "INSERT INTO product VALUES (6, 'bread')")
    with closing(Cache(redis_of_app, rights.app, name="product", policy=LOCAL)) as cache:

        def department(conn: Connection) -> str | None:
            return conn.scalar(select(Product.department).filter_by(id=6))

        until_kept(cache, lambda: cache.get_or_load(6, department))


def test_shards_work_for_an_application_that_owns_nothing(server_url: URL) -> None:
    with least_rights_on(server_url, databases=2) as shards:

        def cluster_of(role: str) -> ShardCluster:
            urls = [getattr(rights, role).url for rights in shards]
            return ShardCluster(
                control=urls[0],
                shards={"s0": urls[0], "s1": urls[1]},
                groups=[households],
                watch_load=True,
            )

        with cluster_of("owner") as cluster:
            cluster.create_map()
        for rights in shards:
            with rights.owner.begin() as conn:
                Sharded.metadata.create_all(conn)
                conn.execute(
                    text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON basket TO {rights.prefix}app")
                )

        with cluster_of("app") as cluster:
            with cluster.session() as session:
                session.add(Basket(household_id=7, id=1, cents=250))
                session.commit()
            with cluster.on(households, household_id=7) as pinned:
                assert pinned.scalars(select(Basket.cents)).all() == [250]
            rows = [{"household_id": n, "id": 1, "cents": n} for n in range(20, 40)]
            for shard, mine in cluster.placed(
                households, rows, key=lambda row: row["household_id"]
            ).items():
                with cluster.begin_bulk(households, shard) as conn:
                    conn.execute(insert(Basket), mine)
            with cluster.session(scatter=True) as session:
                assert session.scalar(select(func.count()).select_from(Basket)) == 21
            assert all(t.misplaced == 0 for shard in cluster.stats() for t in shard.tables)
            assert [(key.key, key.hits_min) for key in cluster.hot_keys(households)] == [(7, 2)]


def test_redis_refuses_what_no_pattern_needs(redis_of_app: Redis) -> None:
    client: Any = redis_of_app  # execute_command has no types
    for command in (
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "GET", "*"),
        ("ACL", "LIST"), ("SHUTDOWN",), ("MONITOR",), ("MODULE", "LIST"), ("GET", "other"),
        ("SET", "datapatterns", "1"), ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
    ):  # fmt: skip
        with pytest.raises(ResponseError) as refused:
            client.execute_command(*command)
        said = str(refused.value)  # of a script, each version in its own words
        assert isinstance(refused.value, NoPermissionError) or "ACL" in said or "can't" in said


def test_the_application_does_all_that_a_cache_can_with_the_rights_of_the_page(
    rights: LeastRights, redis_of_app: Redis
) -> None:
    """Tags, many, fences, refreshes, audits, snapshots kept, values kept in the process."""
    policy = CachePolicy(redis_timeout_seconds=5, vouched_seconds=60, local_bytes=2**16)
    cache = Cache(redis_of_app, rights.app, name="all", policy=policy, strict=True)
    with closing(cache):

        @cache.cached(tags=lambda number: [f"shelf {number}"])
        def doubled(_: Connection, number: int) -> int:
            return 2 * number

        assert doubled(1) == doubled(1) == doubled.refresh(1) == 2
        assert doubled.get_many([1, 2, 3]) == {1: 2, 2: 4, 3: 6}
        with cache.writes() as conn:
            doubled.invalidate_in(conn, 1)
            cache.invalidate_in(conn, tags=["shelf 2"])
        with rights.app.connect() as conn:
            conn.execution_options(isolation_level="REPEATABLE READ")
            assert doubled.within(conn, 1) == 2
        assert cache.relay().is_leading
        assert doubled.audit().violations == ()
        stats = cache.stats()
    # What Redis had refused would show as reads that went past it.
    assert (stats.bypassed, stats.undelivered) == (0, 0)
    assert stats.hits + stats.local_hits >= 2
    with pytest.raises(NoPermissionError):
        redis_of_app.acl_whoami()
