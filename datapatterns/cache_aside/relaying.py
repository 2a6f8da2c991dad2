"""Tell Redis of every invalidation that committed, also when the writer died before it could.

What is new is the difference between two snapshots, not what lies behind a counter: ids are drawn
when a row is written and show when it commits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from uuid import UUID, uuid4

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from datapatterns.cache_aside.captured_changes import CapturedChanges, Obsolete
from datapatterns.cache_aside.cluster_links import AnyLinks
from datapatterns.cache_aside.invalidating import entries_in, prefix_of, tags_in
from datapatterns.cache_aside.links import Place
from datapatterns.cache_aside.local_tier import forget_in_process
from datapatterns.cache_aside.milestones import Survey
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.redis_commands import (
    invalidations_of,
    milestone_at,
    milliseconds,
    server_key,
    survey_in,
    survey_of,
)
from datapatterns.cache_aside.schema import cache_tables
from datapatterns.cache_aside.standby import refuse_standby
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.vouching import Mark, life_in, read_mark, server_ms
from datapatterns.change_log.identity import database_identity
from datapatterns.change_log.pending import shown_by
from datapatterns.change_log.schema import PgSnapshot
from datapatterns.change_log.snapshots import Snapshot, Xid
from datapatterns.errors import MissingRightsError
from datapatterns.failpoints import failpoint
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import resuming

_ROWS_PER_FETCH = 500
_COLLECTED_MAX = 10_000
_ADVICE = (
    "this role may not run rounds of the cache's relay; let a worker run them, and this role read"
    " cache_target"
)


@dataclass(frozen=True, slots=True)
class RelayReport:
    """What one round of the relay did.

    Attributes:
        is_leading: False if another process was at it; then this round did nothing.
        transactions: How many transactions' invalidations were sent.
        entries: How many entries and tags these named.
        has_new_generation: Whether everything was forgotten, because the server is not the one
            that has been told of all earlier invalidations.
    """

    is_leading: bool
    transactions: int = 0
    entries: int = 0
    has_new_generation: bool = False


@dataclass(frozen=True, slots=True)
class _Held:
    """This target's row, locked."""

    generation: UUID
    identity: str
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Relay:
    """Carries invalidations from the outbox to one Redis.

    Attributes:
        engine: The primary of the database.
        links: The way to Redis.
        policy: How long to vouch for the server.
        schema: Where the library's tables live.
        target: The name under which this Redis is known, and what its keys begin with.
        observer: Is told what each round has done.
    """

    engine: Engine
    links: AnyLinks
    policy: CachePolicy
    schema: str
    target: str
    observer: Observer = SILENT

    def run(self) -> tuple[RelayReport, Standing | None]:
        """Send what has committed since the last round, then vouch for the server.

        A server that was restarted or failed over may have values back that had been deleted;
        they are all forgotten at once, by a new generation of keys. Sending again what had been
        sent does no harm, so a round that dies half-way is simply run again.

        Raises:
            CacheSilence: Redis did not answer; nothing is lost.
            CommitUnansweredError: The connection broke during the COMMIT; nothing is lost.
            MissingRightsError: The role may not run rounds.
            ReadOnlyServerError: The server, or the role, only reads.
            SettingsError: The engine leads to a standby.
        """
        server = self.links.current_identity()
        began_ms = {place: server_ms(self.links, place) for place in self.links.places(server)}
        with self._transaction() as conn:
            refuse_standby(conn)
            identity = self._identity(conn, server)
            captured = CapturedChanges.hold(conn, schema=self.schema, target=self.target)
            held = None if captured is None else self._lock(conn, identity)
            if captured is None or held is None:
                return RelayReport(is_leading=False), None
            report = RelayReport(is_leading=True)
            prefix = self._prefix(held)
            # Before the snapshot: what Redis loses from now on was not lost before it.
            survey = self._survey(prefix, server)
            now = conn.scalars(select(func.pg_current_snapshot(type_=PgSnapshot))).one()
            forgets_all = held.identity != identity or captured.says_too_little
            if not forgets_all:
                report, forgets_all = self._send_difference(conn, held, captured, now, server)
            # Not before all has been read: what is not logged is seen by it.
            if captured.advance(conn, now) or forgets_all:
                for place in began_ms:
                    mark = server_key(self._prefix(held), place.tag)
                    self.links.call_at(place, [("UNLINK", mark)])
                failpoint("relay.mark-removed")
                held = self._renew(conn, identity)
                report = RelayReport(is_leading=True, has_new_generation=True)
            self._collect(conn)
        failpoint("relay.committed")
        standing = Standing(self._prefix(held), server)
        for place, ms in began_ms.items():
            self._vouch(standing, place, ms)
        if survey is not None and standing.prefix == prefix:
            self.links.call(milestone_at(prefix, survey, now), identity=server)
        self._tell(report)
        return report, standing

    def _tell(self, report: RelayReport) -> None:
        named = {"target": self.target}
        self.observer.count("datapatterns.cache.relay.rounds", 1, **named)
        self.observer.count("datapatterns.cache.relay.replayed", report.entries, **named)
        if report.has_new_generation:
            self.observer.count("datapatterns.cache.relay.generations", 1, **named)

    def vouches_for(self, standing: Standing) -> bool:
        """Return whether some relay vouched for the server that answers now, and lately enough.

        Another cache may have vouched for longer than this one trusts.

        Raises:
            CacheSilence: Redis did not answer.
        """
        server = self.links.current_identity()
        if server != standing.server:
            return False
        mark = read_mark(self.links, standing)
        return mark is not None and mark.age_ms <= milliseconds(self.policy.vouched_seconds)

    def vouched_by_another(self) -> tuple[Standing, Mark] | None:
        """Return where another's relay vouches for, lately enough, and its mark; None if none does.

        For who may not run rounds; it takes no more than reading the row of this target.

        Raises:
            CacheSilence: Redis did not answer.
            SettingsError: The engine leads to a standby.
        """
        server = self.links.current_identity()
        own = cache_tables(self.schema).target
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="AUTOCOMMIT")
            refuse_standby(conn)
            row = conn.execute(
                select(own.c.generation, own.c.identity).where(own.c.name == self.target)
            ).one_or_none()
            # In a copy of the database nobody knows what has changed since.
            if row is None or row.identity != self._identity(conn, server):
                return None
        standing = Standing(prefix_of(self.target, row.generation.hex), server)
        mark = read_mark(self.links, standing)
        if mark is None or mark.age_ms > milliseconds(self.policy.vouched_seconds):
            return None
        return standing, mark

    def _identity(self, conn: Connection, server: str) -> str:
        # Databases of one server share its identity, not its entries.
        return f"{server}/{self.links.database}/{_database_identity(conn)}"

    def _survey(self, prefix: str, server: str) -> Survey | None:
        if not self.links.tells_losses:
            return None
        return survey_in(self.links.call(survey_of(prefix, begins=True), identity=server))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        # Each statement shall see what has committed by then, whatever the application prefers.
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="READ COMMITTED")
            try:
                with resuming(conn, f"a round of the relay to {self.target!r}"):
                    yield conn
            except DBAPIError as error:
                if isinstance(error.orig, InsufficientPrivilege):
                    raise MissingRightsError(_ADVICE) from error
                raise

    def _lock(self, conn: Connection, identity: str) -> _Held | None:
        """Return this target's row, locked, or None if another process holds it."""
        target = cache_tables(self.schema).target
        find = (
            select(target.c.generation, target.c.identity, target.c.snapshot)
            .where(target.c.name == self.target)
            .with_for_update(skip_locked=True)
        )
        row = conn.execute(find).one_or_none()
        if row is None:
            # Its snapshot is now: in a new generation nothing older can be cached.
            conn.execute(
                insert(target)
                .values(name=self.target, identity=identity)
                .on_conflict_do_nothing(index_elements=[target.c.name])
            )
            row = conn.execute(find).one_or_none()
        return None if row is None else _Held(*row)

    def _renew(self, conn: Connection, identity: str) -> _Held:
        target = cache_tables(self.schema).target
        row = conn.execute(
            update(target)
            .where(target.c.name == self.target)
            .values(
                generation=func.gen_random_uuid(),
                identity=identity,
                snapshot=func.pg_current_snapshot(),
                relayed_at=func.clock_timestamp(),
            )
            .returning(target.c.generation, target.c.identity, target.c.snapshot)
        ).one()
        return _Held(*row)

    def _send_difference(
        self, conn: Connection, held: _Held, captured: CapturedChanges, now: Snapshot, server: str
    ) -> tuple[RelayReport, bool]:
        """Send what was recorded and what was captured; return whether that is not enough."""
        tables = cache_tables(self.schema)
        outbox, target = tables.outbox, tables.target
        before = held.snapshot
        # A statement's own snapshot is later than ``now``; what committed in between waits for the
        # next round, which begins where this one says it ended.
        unsent = (
            select(outbox.c.xid, outbox.c.cache_keys)
            .where(
                or_(outbox.c.xid >= before.xmax, outbox.c.xid.in_(before.in_progress)),
                shown_by(now, outbox.c.xid),
            )
            .order_by(outbox.c.xid)
        )
        rows = conn.execute(unsent.execution_options(yield_per=_ROWS_PER_FETCH))
        recorded = (
            Obsolete(xid, frozenset(key for row in of_one for key in row.cache_keys))
            for xid, of_one in groupby(rows, key=lambda row: row.xid)
        )
        transactions: set[Xid] = set()
        named, forgets_all = 0, False
        for obsolete in chain(recorded, captured.since_last(conn, now)):
            entries, tags = entries_in(obsolete.keys), tags_in(obsolete.keys)
            self.links.call_all(
                invalidations_of(
                    entries,
                    tags,
                    prefix=self._prefix(held),
                    xid=obsolete.xid,
                ),
                identity=server,
            )
            forget_in_process(entries, tags)
            transactions.add(obsolete.xid)
            named += len(obsolete.keys)
            forgets_all = forgets_all or obsolete.and_more
        failpoint("relay.sent")
        conn.execute(
            update(target)
            .where(target.c.name == self.target)
            .values(snapshot=now, relayed_at=func.clock_timestamp())
        )
        report = RelayReport(is_leading=True, transactions=len(transactions), entries=named)
        return report, forgets_all

    def _collect(self, conn: Connection) -> None:
        """Delete what every target has been told, a bounded number of rows."""
        tables = cache_tables(self.schema)
        outbox, target = tables.outbox, tables.target
        horizon = select(func.min(func.pg_snapshot_xmin(target.c.snapshot))).scalar_subquery()
        told = (
            select(outbox.c.id)
            .where(outbox.c.xid < horizon)
            .order_by(outbox.c.xid)
            .limit(_COLLECTED_MAX)
        )
        conn.execute(delete(outbox).where(outbox.c.id.in_(told)))

    def _vouch(self, standing: Standing, place: Place, began_ms: int) -> None:
        """Say that a server has been told everything that had committed at ``began_ms``.

        In a cluster each node has a mark. It lasts only so long: a server cut off from the relay,
        or a dead relay, must not serve hits for ever. Its end is a time of the server's, so that a
        round or a command that took long does not last longer. It holds how long it lasts in all,
        and so its age is known.
        A mark that was lost is drawn anew, so that its loss can be seen.
        """
        key, server = server_key(standing.prefix, place.tag), standing.server
        [mark] = self.links.call_at(place, [("GET", key)])
        life_ms, known_ms = milliseconds(self.policy.vouched_seconds), life_in(mark, server)
        draw = uuid4().hex.encode()
        if known_ms is not None and isinstance(mark, bytes):
            # Whoever trusts a shorter time looks at the age.
            life_ms, draw = max(life_ms, known_ms), mark.rpartition(b"|")[2]
        fresh = b"%s|%d|%s" % (server.encode(), life_ms, draw)
        self.links.call_at(place, [("SET", key, fresh, "PXAT", began_ms + life_ms)])

    def _prefix(self, held: _Held) -> str:
        return prefix_of(self.target, held.generation.hex)


def _database_identity(conn: Connection) -> str:
    # A restored copy has another identity. After a failover, on another timeline, values may be
    # cached whose commits were lost.
    database = database_identity(conn)
    timeline = func.substr(func.pg_walfile_name(func.pg_current_wal_lsn()), 1, 8)
    parts = database.system_identifier, database.database_oid, conn.scalar(select(timeline))
    return ":".join(map(str, parts))
