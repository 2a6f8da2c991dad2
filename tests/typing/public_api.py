"""Types that users rely on. Checked by mypy, never run: an unused ignore is an error, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, assert_type
from uuid import uuid4

from redis import Redis
from sqlalchemy import URL, BigInteger, Column, Connection, Engine, Row, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns import DataLayer
from datapatterns.aio import in_transaction, transaction
from datapatterns.cache_aside import AsyncCache, Cache
from datapatterns.cqrs import (
    Answer,
    AsyncRedisView,
    CommandContext,
    Commands,
    Executed,
    Message,
    ParkedKey,
    Projection,
    ProjectionProgress,
    RedisChanges,
    RedisProjection,
    RedisView,
    Relayed,
    Retried,
    Token,
    forget_executions,
    on,
    relay_messages,
    relay_messages_async,
    rows_of,
)
from datapatterns.event_sourcing import (
    ANY,
    Aggregate,
    Appended,
    AppendOnlyFinding,
    Archive,
    ArchiveExport,
    AsyncEventWriter,
    AsyncFollower,
    AsyncLogSignal,
    AsyncMarkPublisher,
    AsyncSnapshotWriter,
    ChainReport,
    Codec,
    CodecChain,
    Codecs,
    CommandPolicy,
    CopyProgress,
    Decider,
    Decides,
    Encryption,
    EventCheck,
    EventStore,
    EventWriter,
    FileAnchor,
    Folded,
    Follower,
    Forgotten,
    Handled,
    HashChain,
    KeyRing,
    KeyWrapper,
    LocalKeyWrapper,
    LogFilter,
    LogPage,
    LogSignal,
    MarkPublisher,
    MessagePack,
    NewEvent,
    Pace,
    Partition,
    Partitioning,
    Position,
    PublishedMark,
    Purge,
    RecordedEvent,
    Retry,
    Seal,
    SnapshotWriter,
    StreamCopy,
    StreamEvents,
    StreamId,
    SubjectKeys,
    Subjects,
    Tagged,
    TaggedPage,
    TagQuery,
    TypedEvent,
    TypedLog,
    Unit,
    Zstandard,
    applies,
    caused_by,
    check_append_only,
    check_events,
    dropped,
    event,
    every,
    final_until,
    forget_append_requests,
    larger_than,
    publish_mark,
    published_mark,
    renamed,
    slower_than,
    unchanged,
    upcast,
)
from datapatterns.event_sourcing import on as snapshot_on
from datapatterns.index_table import IndexTable, VerifyReport
from datapatterns.materialized_view import (
    Daily,
    MaterializedView,
    RefreshReport,
    Views,
    ViewStatus,
    ViewVerification,
)
from datapatterns.sharding import (
    EntityGroup,
    Hash,
    PinnedSession,
    ReferenceAudit,
    ShardCluster,
    ShardForeignKey,
)
from datapatterns.testing import (
    DeciderSpec,
    Decision,
    Exploration,
    Explorer,
    FaultProxy,
    Halt,
    HistoryReport,
    Outcome,
    RecordedTransaction,
    Recorder,
    Schedule,
    Trap,
    check_history,
    halted_at,
    verdict,
)

layer = DataLayer("postgresql://localhost/shop", redis_url="redis://localhost")
store: EventStore = layer.events
ring = KeyRing({"2026": bytes(32)}, writing="2026")
chain: Codec = CodecChain(MessagePack(), Zstandard(level=3), Encryption(ring))
EventStore(codecs=Codecs(chain, reading=[Zstandard()]))
people = EventStore(keys=SubjectKeys(LocalKeyWrapper(ring), cache_seconds=30))
wrapper: KeyWrapper = LocalKeyWrapper(ring)


def purge(conn: Connection, subject: str, *, tenant: str) -> None: ...


hook: Purge = purge


def forget(conn: Connection) -> None:
    assert_type(Subjects(people, purges=[purge]).forget(conn, 7, tenant="t"), Forgotten)


EventStore(codecs=chain)  # type: ignore[arg-type]
CART = StreamId("cart", "7")


class Base(DeclarativeBase):
    pass


class Line(Base):
    __tablename__ = "line"
    line_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    week: Mapped[int]
    cents: Mapped[int]


@event("item.scanned")
@dataclass(frozen=True, slots=True)
class ItemScanned:
    product_id: int
    cents: int


@event(
    "item.weighed",
    version=2,
    renamed_from="item.scaled",
    tags=lambda e: (f"product:{e.product_id}",),
)
@dataclass(frozen=True, slots=True)
class ItemWeighed:
    product_id: int
    grams: int


def decide(command: int, state: int) -> list[ItemScanned]:
    return [ItemScanned(command, state)]


def evolve(state: int, _e: ItemScanned | ItemWeighed) -> int:
    return state + 1


COUNTER = Decider(
    "counter",
    0,
    decide,
    evolve,
    snapshot=every(10) | slower_than(0.1) | larger_than(65_536) | snapshot_on(ItemWeighed),
)
DECIDES: Decides[int, int, ItemScanned] = COUNTER


def command(engine: Engine) -> None:
    with SnapshotWriter(store, engine, capacity=10) as writer:
        policy = CommandPolicy(lock=True, retry=Retry(attempts=3), snapshots=writer)
        handled = store.handle(engine, Cart, "7", lambda cart: cart.version, policy=policy)
        assert_type(handled, Handled[Cart])
        assert_type(store.handle(engine, COUNTER, "7", 5), Handled[Folded[int, int]])
        store.handle(engine, COUNTER, "7", "five")  # type: ignore[misc]
        assert_type(writer.flush(timeout_seconds=1), bool)


async def command_async(engine: AsyncEngine) -> None:
    async with AsyncSnapshotWriter(store, engine) as writer:
        policy = CommandPolicy(snapshots=writer)
        handled = await store.handle_async(engine, COUNTER, "7", 5, policy=policy)
        assert_type(handled, Handled[Folded[int, int]])
    async with engine.begin() as conn, store.for_update_async(conn, Cart, "7") as cart:
        assert_type(cart, Cart)


@upcast("item.weighed", 1)
def in_grams(old: dict[str, object]) -> dict[str, object]:
    return old


@upcast("item.sold", 1, into={"item.weighed": 2, "item.scanned": 1})
def sold(old: dict[str, object]) -> list[tuple[str, dict[str, object]]]:
    return [("item.scanned", old)]


@upcast("item.sold", 1)  # type: ignore[type-var]
def sold_as_number(old: dict[str, object]) -> int:
    return len(old)


renamed("item.seen", "item.scanned", from_version=2)
dropped("cart.viewed", reason="nobody asks for it")


class Cart(Aggregate, category="cart", snapshot=every(100)):
    cents = 0

    def scan(self, product_id: int, cents: int) -> None:
        self.emit(ItemScanned(product_id, cents))

    @applies
    def _(self, e: ItemScanned) -> None:
        self.cents += e.cents


class Sales(Projection, into=Line, version=1):
    @on(ItemScanned, key=lambda e, _meta: e.product_id)
    def _(self, row: Line, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.cents += e.cents


class Dashboard(RedisProjection, version=1):
    @on(ItemScanned)
    def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
        changes.increment("totals", "cents", e.cents)


def events_are_loaded_as_the_class_that_was_asked_for(conn: Connection) -> None:
    cart = store.load(conn, Cart, "7")
    assert_type(cart, Cart)
    assert_type(store.save(conn, cart), Position)
    page = store.read_log(conn, limit=10, matching=LogFilter(tags=["t"]))
    assert_type(page, LogPage)
    assert_type(store.read_log(conn, page, published=True), LogPage)
    assert_type(page.events[0].recorded_at, datetime)
    assert_type(page.events[0].data, Mapping[str, Any])
    typed = TypedLog(store).read(conn)
    assert_type(TypedLog(store).read(conn, typed).events, list[TypedEvent])
    TypedLog(store).read(conn, 7)  # type: ignore[arg-type]  # not a Position
    assert_type(publish_mark(conn, store), Position)
    assert_type(published_mark(conn, store), PublishedMark | None)
    assert_type(final_until(conn, store), datetime | None)
    assert_type([one.positions for one in store.blockers(conn)], list[int])
    store.append(conn, CART, [NewEvent("item.scanned", {})])  # type: ignore[call-arg]  # needs a version
    store.read_log(conn, 7)  # type: ignore[arg-type]  # not a Position
    counter = store.load(conn, COUNTER, "7", version=2)
    assert_type(counter, Folded[int, int])
    counter.decide("seven")  # type: ignore[arg-type]
    assert_type(store.load_many(conn, Cart, ["7", "8"]), list[Cart])
    assert_type(store.load_many(conn, COUNTER, ["7"]), list[Folded[int, int]])
    assert_type(store.save(conn, counter), Position)
    with store.for_update(conn, Cart, "7", lock=True) as cart:
        assert_type(cart, Cart)
    with store.for_update(conn, COUNTER, "7") as open_counter:
        assert_type(open_counter, Folded[int, int])
    store.load(conn, Line, "7")  # type: ignore[type-var]  # not an aggregate


def a_check_of_events_reports(conn: Connection) -> None:
    report = check_events(conn, store, sample=5, aggregates=[Cart], handled={"till": [ItemScanned]})
    assert_type(report, EventCheck)
    assert_type(report.ok, bool)
    assert_type(report.problems, list[str])


def decisions_over_several_streams(conn: Connection) -> None:
    query = Tagged(("course:c1",), types=(ItemScanned, "item.sold")) | Tagged(("student:s7",))
    assert_type(query, TagQuery)
    page = store.read_tagged(conn, query, exclusively=False)
    assert_type(page, TaggedPage)
    store.append(conn, CART, [], expected_version=ANY, unless=page.condition)
    store.append(conn, CART, [], expected_version=ANY, unless=query)  # type: ignore[arg-type]  # as of when?
    done = store.append_to_streams(conn, [StreamEvents(CART, [], ANY)])
    assert_type(done, dict[StreamId, Appended])
    assert_type(forget_append_requests(conn, store, older_than=timedelta(days=1)), int)


@dataclass(frozen=True)
class Pay:
    cents: int


def commands_of_a_layer(layer: DataLayer, conn: Connection) -> None:
    @layer.handles(Pay, name="pay", version=2, validate=lambda pay: {"cents": str(pay.cents)})
    def pay(command: Pay, context: CommandContext) -> int:
        assert_type(context.load(Cart, "c"), Cart)
        with context.for_update(Cart, "c", lock=True) as cart:
            assert_type(cart, Cart)
        return command.cents

    assert_type(pay(Pay(1), CommandContext(conn, store, "", {}, uuid4(), None, 1)), int)
    layer.handles(ItemScanned)(pay)  # type: ignore[arg-type]  # it handles another command
    assert_type(layer.commands, Commands)
    assert_type(layer.execute(Pay(1), idempotency_key="k", retry=Retry(attempts=2)), Executed)
    layer.execute(Pay(1), key="k")  # type: ignore[call-arg]
    assert_type(forget_executions(conn, store, older_than=timedelta(days=1), dry_run=True), int)


def units_of_work(conn: Connection, session: Session, async_session: AsyncSession) -> None:
    assert_type(store.unit(session), Unit)
    with store.unit(async_session) as unit:
        assert_type(unit.load(Cart, "7"), Cart)
        assert_type(unit.position, Position | None)
    with store.unit(conn) as unit:
        unit.append(CART, [NewEvent("a", {})], expected_version=ANY)
    store.unit(conn).append(CART, [], expected_version=ANY)  # type: ignore[attr-defined]  # a block


def appends_that_stand_alone(engine: Engine) -> None:
    with EventWriter(store, engine, connections=8) as writer:
        assert_type(writer.append(CART, [], expected_version=ANY), Appended)
    EventWriter(store, layer)  # type: ignore[arg-type]  # not an engine


async def asynchronous_appends_that_stand_alone(engine: AsyncEngine) -> None:
    async with AsyncEventWriter(store, engine) as writer:
        assert_type(await writer.append(CART, [], expected_version=ANY), Appended)


def a_stream_is_copied(conn: Connection, recorded: RecordedEvent) -> None:
    copy = StreamCopy(store, CART, StreamId("cart", "8"), unchanged)
    assert_type(copy.finish(conn, copy.copy_page(conn)), CopyProgress)
    StreamCopy(
        store, CART, StreamId("cart", "8"), lambda e: [ItemScanned(1, 2)] if e.data else None
    )
    store.append(conn, CART, [ItemScanned(1, 2)], expected_version=3, metadata=caused_by(recorded))


def followers_give_pages() -> None:
    signal = LogSignal(store, layer.engine)
    follower = Follower(store, layer.engine, signal=signal, pace=Pace(seconds_max=1))
    for page in follower.pages():
        assert_type(page, LogPage)


def marks_are_published() -> None:
    publisher = MarkPublisher(store, layer.engine, seconds=0.5, lost_seconds_max=10)
    publisher.run()
    publisher.stop()


async def marks_are_published_in_a_task(engine: AsyncEngine) -> None:
    publisher = AsyncMarkPublisher(store, engine, seconds=0.5)
    await publisher.run()
    publisher.stop()


async def async_followers_give_pages(engine: AsyncEngine) -> None:
    follower = AsyncFollower(store, engine, signal=AsyncLogSignal(store, engine))
    async for page in follower.pages():
        assert_type(page, LogPage)


async def operations_keep_their_types_on_the_way_through_asyncio(engine: AsyncEngine) -> None:
    assert_type(await in_transaction(engine, store.read_log, limit=10), LogPage)
    assert_type(await in_transaction(engine, store.load, Cart, "7"), Cart)
    async with transaction(engine, attempted="a cart", ids=[CART], traced=True) as conn:
        assert_type(await conn.run_sync(store.read_log, limit=10), LogPage)
    await in_transaction(engine, store.read_log, size=10)  # type: ignore[call-arg]  # no such name


def projections_report_their_progress() -> None:
    assert_type(layer.projections.run(layer.engine, Sales), ProjectionProgress)
    layer.projections.run(layer.engine, Cart)  # type: ignore[arg-type]  # not a projection


def answers_have_the_type_of_what_was_asked(conn: Connection) -> None:
    token = Token.parse_optional("17.5f3a9c21")
    assert_type(token, Token | None)
    assert_type(layer.wait(Sales, Position(17), timeout_seconds=1), Position)
    rows = layer.query(Sales, rows_of(select(Line.line_id, Line.cents)), after=token)
    assert_type(rows.value, list[Row[int, int]])
    assert_type(layer.query(Sales, lambda _: 1, stale="serve").value, int)
    assert_type(layer.projections.answer(conn, Sales, lambda _: "", after=token), Answer[str])
    layer.query(Sales, lambda _: 1, stale="maybe")  # type: ignore[arg-type]  # no such thing
    layer.query(Sales, lambda _: 1, before=token)  # type: ignore[call-arg]  # no such name


async def answers_have_the_same_types_from_asyncio() -> None:
    answer = await layer.query_async(Sales, rows_of(select(Line.cents)), max_staleness_seconds=5)
    assert_type(answer, Answer[list[Row[int]]])
    assert_type(await layer.wait_async(Sales, answer.token, timeout_seconds=1), Position)


def a_cached_function_takes_and_returns_what_it_did_without_conn() -> None:
    cache: Cache = layer.cache("product")

    @cache.cached
    def price(conn: Connection, product_id: int) -> int | None:
        return conn.scalar(select(Line.cents).where(Line.line_id == product_id))

    assert_type(price(7), int | None)
    price("7")  # type: ignore[arg-type]  # not an int

    @layer.cache("week").cached(ttl_seconds=60, early_refresh=0)
    def week(conn: Connection, product_id: int) -> int | None:
        return conn.scalar(select(Line.week).where(Line.line_id == product_id))

    assert_type(week(7), int | None)
    assert_type(cache.get_or_load(7, lambda conn: price.load(conn, 7), stale_seconds=5), int | None)
    cache.cached(wait_seconds=5)  # type: ignore[call-overload]  # one of the whole cache


@dataclass(frozen=True)
class Amount:
    cents: int


async def rows_of_a_cached_query_have_the_types_of_its_columns(cache: AsyncCache) -> None:
    statement = select(Line.line_id, Line.week).where(Line.cents > 5)
    assert_type(layer.cache("lines").query(statement), list[tuple[int, int]])
    assert_type(await cache.query(statement), list[tuple[int, int]])
    amounts = layer.cache("amounts").query(select(Line.cents), value_type=Amount)
    assert_type(amounts, list[Amount])
    layer.cache("lines").query("SELECT 1")  # type: ignore[call-overload]  # no query of SQLAlchemy


def views_and_indexes_report(conn: Connection) -> None:
    view = MaterializedView(
        "weekly", select(Line.week, func.count().label("lines")).group_by(Line.week)
    )
    assert_type(view.refresh(conn), RefreshReport | None)
    part = view.rebuild(conn, where=view.c.week == 7)
    assert_type((part.partitions, part.reason), tuple[int, str | None])
    declared = Views([view])
    assert_type(declared.refresh(layer.engine), dict[str, RefreshReport])
    assert_type(declared.status(conn), list[ViewStatus])
    assert_type(declared.verify(layer.engine, view, sample=0.1, seed=3), ViewVerification)
    view.verify(conn, where=view.c.week < 5)
    view.verify(conn, share=0.1)  # type: ignore[call-arg]  # it is called sample
    assert_type(layer.views.find("weekly"), MaterializedView)
    MaterializedView("daily", select(Line.week), schedule=Daily(time(3)), max_staleness_seconds=5)
    MaterializedView("daily", select(Line.week), schedule=60)  # type: ignore[arg-type]  # Every(60)
    index = IndexTable("by_week", on=[Line.week])
    assert_type(index.verify(conn), VerifyReport)


def an_archive_moves_and_purges_what_was_exported(conn: Connection) -> None:
    archive = Archive(store)
    assert_type(archive.move(conn, CART), int)
    assert_type(archive.restore(conn, CART), bool)
    exported = archive.export(conn, CART, through_version=3, write=print)
    assert_type(exported, ArchiveExport)
    archive.purge(conn, CART, exported)  # type: ignore[call-arg]  # no reason was given


def events_are_partitioned_by_an_engine_and_extended_in_a_transaction(conn: Connection) -> None:
    partitioning = Partitioning(store)
    assert_type(partitioning.partition(layer.engine), bool)
    assert_type(partitioning.extend(conn), int)
    assert_type(partitioning.partitions(conn), list[Partition])
    partitioning.partition(conn)  # type: ignore[arg-type]  # it takes several transactions


def what_is_open_is_listed(conn: Connection) -> None:
    assert_type(check_append_only(conn), list[AppendOnlyFinding])


def a_chain_seals_verifies_and_takes_any_anchor(conn: Connection) -> None:
    chain = HashChain(store, anchor=FileAnchor("anchor.jsonl"))
    assert_type(chain.seal(conn), Seal | None)
    assert_type(chain.verify(conn), ChainReport)
    HashChain(store, anchor="anchor.jsonl")  # type: ignore[arg-type]  # a path is no anchor


def shards_are_reached_by_key() -> None:
    households = EntityGroup("household", strategy=Hash(buckets=256), key=BigInteger)
    assert_type(households.strategy.bucket(7), int)
    households.strategy.bucket(7.5)  # type: ignore[arg-type]  # a float is no shard key
    with layer.cluster(households) as cluster:
        assert_type(cluster.on(households, household_id=7), PinnedSession)


def a_spec_takes_the_commands_of_its_subject() -> None:
    decision = DeciderSpec(Cart).given(ItemScanned(7, 149)).when(Cart.scan, 7, cents=149)
    assert_type(decision, Decision[Cart])
    DeciderSpec(Cart).when(Cart.scan, 7, euros=1)  # type: ignore[call-arg]


def a_recorded_transaction_has_the_connection_that_was_begun() -> None:
    recorder = Recorder()
    with recorder.client().transaction(layer.engine.begin()) as txn:
        assert_type(txn, RecordedTransaction[Connection])
        assert_type(txn.conn, Connection)
        assert_type(txn.read("x", [1]), list[int | str])
        txn.append("x", [1])  # type: ignore[arg-type]  # a list is no value
    assert_type(check_history(recorder.history()), HistoryReport)
    verdict(recorder.history(), model="repeatable-read")  # type: ignore[arg-type]  # no such level


def a_proxy_has_the_kind_of_address_that_it_stands_before() -> None:
    with FaultProxy(layer.engine.url) as proxy:
        assert_type(proxy.url, URL)
        assert_type(proxy.cut_next_reply_to("COMMIT"), Trap)
    assert_type(FaultProxy("redis://localhost").url, str)
    FaultProxy(7)  # type: ignore[type-var]  # no address
    with halted_at("relay.sent") as halt:
        assert_type(halt, Halt)


def an_explorer_hands_out_ordinary_connections_and_runs_what_returns_tasks() -> None:
    with Explorer(layer.engine.url, "redis://localhost") as explorer:
        assert_type(explorer.engine(), Engine)
        assert_type(explorer.async_engine(), AsyncEngine)
        assert_type(explorer.redis(), Redis)
        assert_type(explorer.run(lambda: {"task": explorer.clock.monotonic}, Schedule()), Outcome)
        explorer.run(lambda: {"task": 7}, Schedule())  # type: ignore[dict-item]  # no function
        explorer.run(dict, 7)  # type: ignore[arg-type]  # no schedule
        assert_type(
            explorer.explore(lambda: {"task": list}, invariant=lambda outcome: outcome.results),
            Exploration,
        )


def read_documents(view: RedisView, changes: RedisChanges) -> None:
    """Documents come as the type that was asked for; a function gets what it was promised."""
    assert_type(view.document("carts", "7", list[int]), list[int] | None)
    assert_type(view.documents("carts", ["7"], dict[str, int]), dict[str, dict[str, int]])
    assert_type(view.documents("carts", ["7"]), dict[str, Any])
    assert_type(view.all_documents("carts", list[str]), dict[str, list[str]])
    assert_type(view.rank("ranks", "7"), int | None)
    assert_type(view.scored("ranks", 1, 5), list[tuple[str, int]])

    def added(cart: list[int] | None, product: int, *, times: int) -> list[int]:
        return [*(cart or []), *[product] * times]

    changes.update_json("carts", "7", added, 5, times=2)
    changes.update_json("carts", "7", added, "5", times=2)  # type: ignore[arg-type] # no product
    changes.update_json("carts", "7", added, 5)  # type: ignore[call-arg] # how many?


async def read_documents_async(view: AsyncRedisView) -> None:
    """The same from asyncio."""
    assert_type(await view.document("carts", "7", list[int]), list[int] | None)
    assert_type(await view.all_documents("carts"), dict[str, Any])
    assert_type(await view.top("ranks"), list[tuple[str, int]])


def what_waits_is_listed_and_retried(conn: Connection) -> None:
    assert_type(layer.projections.parked(conn, Sales), list[ParkedKey])
    assert_type(layer.projections.retry(layer.engine, Sales, "milk"), Retried)
    layer.projections.retry(layer.engine, Dashboard)  # type: ignore[arg-type]  # it has no keys


async def messages_are_passed_on(engine: AsyncEngine) -> None:
    def publish(message: Message) -> None:
        assert_type(message.payload, Any)

    async def publish_async(message: Message) -> None:
        publish(message)

    assert_type(relay_messages(layer.engine, publish), Relayed)
    assert_type(await relay_messages_async(engine, publish_async), Relayed)
    await relay_messages_async(engine, publish)  # type: ignore[arg-type]  # nothing to await


def refer(cluster: ShardCluster, column: Column[int], other: Column[int]) -> None:
    """When a reference is checked is one of two words."""
    assert_type(ShardForeignKey(column, other, check="audit"), ShardForeignKey)
    ShardForeignKey((column,), (other,), check="on_write")
    ShardForeignKey(column, other, check="later")  # type: ignore[arg-type] # no such time
    ShardForeignKey(column, other)  # type: ignore[call-arg] # when?
    assert_type(cluster.audit_references("orders", limit=3), list[ReferenceAudit])
