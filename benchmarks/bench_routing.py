"""What routing costs: a decision, an object by its key, a statement, and a small transaction.

Four databases of one server stand for four servers: what is told apart is the client's work.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import BigInteger, Engine, create_engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.migrations import Migrations
from datapatterns.sharding import EntityGroup, Hash, ShardCluster

CASES = ("decision", "get", "select", "write")
OPERATIONS = 200
SHARDS = 4
KEYS = 40

OWNERS = EntityGroup("owner", strategy=Hash(buckets=64))


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Note(Base):
    """What is read and written by its key."""

    __tablename__ = "note"
    __shard__ = OWNERS.by("owner_id")

    owner_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cents: Mapped[int] = mapped_column(BigInteger)


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """Sessions over shards, beside SQLAlchemy's own and a plain one that knows its server."""
    with DataLayer.embedded() as layer, ExitStack() as stack:
        urls = {}
        with layer.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            for number in range(SHARDS):
                conn.execute(text(f"CREATE DATABASE bench_routing_{number}"))
                urls[f"s{number}"] = make_url(layer.engine.url).set(
                    database=f"bench_routing_{number}"
                )
        for url in urls.values():
            Migrations({"main": url}).upgrade()
        engines = {shard: create_engine(url) for shard, url in urls.items()}
        for engine in engines.values():
            Base.metadata.create_all(engine)
            stack.callback(engine.dispose)
        cluster = stack.enter_context(
            ShardCluster(control=urls["s0"], shards=urls, groups=[OWNERS], poll_seconds=60)
        )
        cluster.create_map()
        for shard, keys in cluster.placed(OWNERS, range(KEYS), key=lambda key: key).items():
            with cluster.begin_bulk(OWNERS, shard) as conn:
                conn.execute(
                    insert(Note), [{"owner_id": key, "number": 1, "cents": 0} for key in keys]
                )
        yield _MAKERS[case](cluster, engines, stack)


def _decisions(cluster: ShardCluster, _: dict[str, Engine], __: ExitStack) -> Claim:
    access = cluster._access  # noqa: SLF001 -- what a session does first
    shard_map = access.router.map_of(OWNERS)
    statements = [_one(key) for key in range(KEYS)]

    def of_a_statement(key: int) -> None:
        footprint, values = access.footprints.of(statements[key], {})
        shard_map.shards_of(footprint.buckets(values, shard_map.strategy) or ())

    def batch(decide: Callable[[int], object]) -> Callable[[], int]:
        def run() -> int:
            for _ in range(OPERATIONS):
                for key in range(KEYS):
                    decide(key)
            return OPERATIONS * KEYS

        return run

    return Claim(
        "which shard a key is on, and which one a statement is for",
        "decisions",
        [
            Contestant("the map", "ours", batch(shard_map.shard_of)),
            Contestant("a statement's footprint", "rival", batch(of_a_statement)),
            Contestant("hash()", "limit", batch(hash)),
        ],
    )


def _one(key: int) -> Any:  # noqa: ANN401 -- a SELECT
    return select(Note).where(Note.owner_id == key, Note.number == 1)


def _reads(read: Callable[[Session, int, str], object], title: str) -> Any:  # noqa: ANN401
    def make(cluster: ShardCluster, engines: dict[str, Engine], stack: ExitStack) -> Claim:
        shard_map = cluster.router.map_of(OWNERS)
        shard_of = {key: shard_map.shard_of(key) for key in range(KEYS)}
        rival = _rival(engines, shard_of)
        plain = {shard: Session(engine) for shard, engine in engines.items()}
        sharded = cluster.session()

        def batch(session_of: Callable[[str], Session]) -> Callable[[], int]:
            def run() -> int:
                for number in range(OPERATIONS):
                    key = number % KEYS
                    session = session_of(shard_of[key])
                    read(session, key, shard_of[key])
                    session.expunge_all()
                return OPERATIONS

            return run

        stack.callback(rival.close)
        stack.callback(sharded.close)
        for session in plain.values():
            stack.callback(session.close)
        return Claim(
            title,
            "reads",
            [
                Contestant("ShardCluster.session()", "ours", batch(lambda _: sharded)),
                Contestant("Session", "limit", batch(plain.__getitem__)),
                Contestant("ShardedSession", "rival", batch(lambda _: rival)),
            ],
        )

    return make


def _writes(cluster: ShardCluster, engines: dict[str, Engine], _: ExitStack) -> Claim:
    shard_map = cluster.router.map_of(OWNERS)
    shard_of = {key: shard_map.shard_of(key) for key in range(KEYS)}

    def batch(open_session: Callable[[str], Session]) -> Callable[[], int]:
        def run() -> int:
            for number in range(OPERATIONS // 4):
                key = number % KEYS
                with open_session(shard_of[key]) as session:
                    note = session.get(
                        Note, (key, 1), identity_token=_token(session, shard_of[key])
                    )
                    assert note is not None
                    note.cents += 1
                    session.commit()
            return OPERATIONS // 4

        return run

    return Claim(
        "transactions that read an object and change it",
        "transactions",
        [
            Contestant("ShardCluster.session()", "ours", batch(lambda _: cluster.session())),
            Contestant(
                "session(atomic=True)", "rival", batch(lambda _: cluster.session(atomic=True))
            ),
            Contestant("Session", "limit", batch(lambda shard: Session(engines[shard]))),
            Contestant("ShardedSession", "rival", batch(lambda _: _rival(engines, shard_of))),
        ],
    )


def _rival(engines: dict[str, Engine], shard_of: dict[int, str]) -> ShardedSession:
    def by_key(context: Any) -> list[str]:  # noqa: ANN401 -- ORMExecuteState
        condition = context.statement.whereclause.clauses[0]
        return [shard_of[condition.right.effective_value]]

    return ShardedSession(
        shards=engines,
        shard_chooser=lambda mapper, instance, clause=None: shard_of[instance.owner_id],  # noqa: ARG005
        identity_chooser=lambda *_args, **_named: list(engines),
        execute_chooser=by_key,
    )


def _token(session: Session, shard: str) -> str | None:
    return shard if isinstance(session, ShardedSession) else None


_MAKERS: dict[str, Callable[[ShardCluster, dict[str, Engine], ExitStack], Claim]] = {
    "decision": _decisions,
    "get": _reads(
        lambda session, key, shard: session.get(
            Note, (key, 1), identity_token=_token(session, shard)
        ),
        "objects by their primary key (ShardedSession is told the shard)",
    ),
    "select": _reads(
        lambda session, key, _: session.scalars(_one(key)).all(), "a SELECT of one key's object"
    ),
    "write": _writes,
}
