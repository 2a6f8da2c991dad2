"""Make it evident if somebody changes events behind the library's back: a chain of digests.

Nothing of it is on the way of an append. Events are sealed some time after, in segments up to the
high-water mark: below it no event can appear, so whatever appears there later, was not appended.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Row,
    Select,
    Text,
    bindparam,
    case,
    cast,
    extract,
    func,
    insert,
    literal_column,
    null,
    select,
)
from sqlalchemy.sql.selectable import Subquery

from datapatterns.errors import AnchorError
from datapatterns.event_sourcing.events import START, VERSION_MAX, Position
from datapatterns.event_sourcing.keeping.anchors import Anchor, read_anchor
from datapatterns.event_sourcing.keeping.chain import BrokenSegment, ChainReport, Seal, SegmentHash
from datapatterns.event_sourcing.log.high_water import read_mark
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.sql.server import check_writable
from datapatterns.transactions import reading, resuming

SEGMENT_EVENTS_MAX: Final = 1_000_000
"""The most events of one segment; who finds it broken has to look at all of them."""

_EVENTS_PER_PAGE: Final = 2_000
_SEALS_PER_PAGE: Final = 1_000
_MILLION: Final[ColumnElement[Any]] = literal_column("1000000")


@dataclass(frozen=True, slots=True)
class HashChain:
    """Seals events, and tells whether they are what was sealed.

    Attributes:
        store: Whose events.
        anchor: Where digests are written down outside the database; without one, who owns the
            tables can seal anew what was changed.
    """

    store: EventStore
    anchor: Anchor | None = None

    def seal(self, conn: Connection, *, limit: int = 10_000) -> Seal | None:
        """Seal the next at most ``limit`` events; return None if there is none that is final.

        Nothing is published: do that when the transaction has been committed. A second sealer
        waits for the first one's transaction and goes on behind it.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
            ValueError: ``limit`` is out of bounds.
        """
        if not 1 <= limit <= SEGMENT_EVENTS_MAX:
            raise ValueError(f"a segment of {limit} events; use 1 to {SEGMENT_EVENTS_MAX}")
        schema = self.store.schema
        check_writable(conn)
        _take_turn(conn, schema)
        last = _last_seal(conn, schema)
        after = last.last_position if last else START
        mark = read_mark(conn, schema=schema, after=after)
        segment, end = SegmentHash.following(last), after
        for page in _pages(conn, schema, after=after, end=mark, limit=limit):
            segment.add(page)
            end = page[-1][0]
        if segment.events == 0:
            return None
        if segment.events < limit:  # nothing more can appear up to the mark
            end = mark
        failpoint("chain.hashed")
        row = conn.execute(
            insert(event_tables(schema).seals).returning(*_seal_columns(schema)),
            {
                "segment": last.segment + 1 if last else 1,
                "after_position": after,
                "last_position": end,
                "events": segment.events,
                "digest": segment.digest(end),
            },
        ).one()
        return _seal(row)

    def seal_all(
        self,
        engine: Engine,
        *,
        limit: int = 10_000,
        report: Callable[[Seal], object] = lambda _: None,
    ) -> int:
        """Seal every final event, a transaction for each segment; publish; return how many.

        Call it again and again, from as many processes as you like.

        Args:
            engine: Leads to the database.
            limit: The most events of a segment.
            report: Is told each seal when it is committed.

        Raises:
            AnchorError: The anchor disagrees with the database.
        """
        sealed = 0
        while True:
            with engine.connect() as conn, resuming(conn, "sealing events"):
                seal = self.seal(conn, limit=limit)
            if seal is None:
                break
            failpoint("chain.sealed")
            sealed += 1
            report(seal)
        with engine.connect() as conn, reading(conn):
            self.publish(conn)
        return sealed

    def unsealed(self, conn: Connection) -> int:
        """Return how many final events `seal_all` would seal; purged ones count like others.

        Raises:
            IsolationLevelError: The transaction is not READ COMMITTED.
        """
        tables, last = event_tables(self.store.schema), _last_seal(conn, self.store.schema)
        after = last.last_position if last else START
        mark = read_mark(conn, schema=self.store.schema, after=after)
        counts = [
            select(func.count()).where(each.c.position > after, each.c.position <= mark)
            for each in (tables.all_events, tables.tombstones)
        ]
        return sum(conn.scalar(count) or 0 for count in counts)

    def publish(self, conn: Connection) -> int:
        """Hand the anchor the seals that it lacks; return how many.

        Raises:
            AnchorError: The anchor knows a segment that is not in the database, or another
                digest of it, or contradicts itself. Nothing is published then.
        """
        if self.anchor is None:
            return 0
        anchored = read_anchor(self.anchor)
        known = published = max(anchored, default=0)
        schema = self.store.schema
        if known:
            found = _seals(conn, schema, after=known - 1, limit=1)
            if not found or (found[0].segment, found[0].digest) != (known, anchored[known]):
                raise AnchorError(
                    str(self.anchor), f"it knows another segment {known}; verify the chain"
                )
        for seals in _seal_pages(conn, schema, after=published):
            self.anchor.publish(seals)
            published = seals[-1].segment
        return published - known

    def verify(
        self,
        conn: Connection,
        *,
        after_segment: int = 0,
        report: Callable[[ChainReport], object] = lambda _: None,
    ) -> ChainReport:
        """Hash every sealed event again, and compare; events are streamed through.

        Archived events count like others, purged ones by the digest in their tombstone.

        Args:
            conn: A connection; READ COMMITTED spares the database a snapshot that is held for
                the whole time.
            after_segment: Take this segment as verified, and go on behind it.
            report: Is told what was found so far, after each segment.

        Raises:
            AnchorError: The anchor cannot be read, or contradicts itself.
            ValueError: There is no such segment.
        """
        schema = self.store.schema
        anchored = {} if self.anchor is None else read_anchor(self.anchor)
        last: Seal | None = None
        if after_segment:
            can_be = 0 < after_segment <= VERSION_MAX
            given = _seals(conn, schema, after=after_segment - 1, limit=1) if can_be else []
            if not given or given[0].segment != after_segment:
                raise ValueError(f"there is no segment {after_segment}")
            last = given[0]
        tally = _Tally()
        for seal in (
            seal for page in _seal_pages(conn, schema, after=after_segment) for seal in page
        ):
            broken = _broken(conn, schema, last, seal, tally, anchored.get(seal.segment))
            if broken is not None:
                return tally.report(last, broken)
            tally.anchored += seal.segment in anchored
            last = seal
            report(tally.report(last, None))
        end = last.segment if last else 0
        if anchored and max(anchored) > end:
            after = last.last_position if last else START
            reason = f"the anchor knows {max(anchored)} segments, the database {end}"
            return tally.report(last, BrokenSegment(end + 1, after, after, reason))
        return tally.report(last, None)


@dataclass(slots=True)
class _Tally:
    segments: int = 0
    events: int = 0
    purged: int = 0
    anchored: int = 0

    def report(self, last: Seal | None, broken: BrokenSegment | None) -> ChainReport:
        position = last.last_position if last else START
        return ChainReport(self.segments, self.events, self.purged, position, self.anchored, broken)


def _broken(
    conn: Connection,
    schema: str,
    last: Seal | None,
    seal: Seal,
    tally: _Tally,
    anchored: bytes | None,
) -> BrokenSegment | None:
    """Return what is wrong with ``seal``, which should follow ``last``."""
    number, after = (last.segment + 1, last.last_position) if last else (1, START)
    if (seal.segment, seal.after) != (number, after):
        reason = f"the seal behind is number {seal.segment}, and begins behind {seal.after}"
        return BrokenSegment(number, after, after, reason)
    if anchored is not None and seal.digest != anchored:
        reason = "the anchor knows another digest"
        return BrokenSegment(number, after, seal.last_position, reason)
    segment = SegmentHash.following(last)
    for page in _pages(conn, schema, after=after, end=seal.last_position, limit=None):
        segment.add(page)
    if segment.events != seal.events:
        reason = f"it holds {segment.events} events, and {seal.events} were sealed"
        return BrokenSegment(number, after, seal.last_position, reason)
    if segment.digest(seal.last_position) != seal.digest:
        reason = "an event, or the seal, is not what it was"
        return BrokenSegment(number, after, seal.last_position, reason)
    tally.segments += 1
    tally.events += segment.events
    tally.purged += segment.purged
    return None


def _take_turn(conn: Connection, schema: str) -> None:
    # Its own statement: what the other sealer has committed shows to the next one.
    key = func.hashtextextended(f"{schema}.event_seal", 0)
    conn.execute(select(func.pg_advisory_xact_lock(key)))
    # What the anchor gets must not be lost in a crash.
    off = func.current_setting("synchronous_commit") == "off"
    conn.execute(select(case((off, func.set_config("synchronous_commit", "on", True)))))


def _last_seal(conn: Connection, schema: str) -> Seal | None:
    seals = event_tables(schema).seals
    newest = select(*_seal_columns(schema)).order_by(seals.c.segment.desc()).limit(1)
    row = conn.execute(newest).one_or_none()
    return None if row is None else _seal(row)


def _seals(conn: Connection, schema: str, *, after: int, limit: int) -> list[Seal]:
    seals = event_tables(schema).seals
    rows = conn.execute(
        select(*_seal_columns(schema))
        .where(seals.c.segment > after)
        .order_by(seals.c.segment)
        .limit(limit)
    )
    return [_seal(row) for row in rows]


def _seal_pages(conn: Connection, schema: str, *, after: int) -> Iterator[list[Seal]]:
    while page := _seals(conn, schema, after=after, limit=_SEALS_PER_PAGE):
        yield page
        after = page[-1].segment


def _seal_columns(schema: str) -> Sequence[Any]:
    seals = event_tables(schema).seals.c
    return (
        seals.segment, seals.after_position, seals.last_position, seals.events, seals.digest,
        seals.sealed_at,
    )  # fmt: skip


def _seal(row: Any) -> Seal:  # noqa: ANN401 -- a row
    segment, after, last_position, events, digest, sealed_at = row
    return Seal(segment, Position(after), Position(last_position), events, bytes(digest), sealed_at)


def _pages(
    conn: Connection, schema: str, *, after: int, end: int, limit: int | None
) -> Iterator[Sequence[Row[Any]]]:
    """Yield events by position; each page is one statement, so an event that moves shows once."""
    while True:
        size = _EVENTS_PER_PAGE if limit is None else min(limit, _EVENTS_PER_PAGE)
        if size == 0:
            return
        page = conn.execute(
            forms_statement(schema), {"after": after, "last": end, "size": size}
        ).all()
        if page:
            yield page
            after = page[-1][0]
            limit = None if limit is None else limit - len(page)
        if len(page) < size:
            return


@cache
def forms_statement(schema: str) -> Select[Any]:
    """Return what selects position, form and tombstone's digest of a page of events."""
    tables = event_tables(schema)
    after = bindparam("after", type_=BigInteger)
    last = bindparam("last", type_=BigInteger)
    size = bindparam("size", type_=BigInteger)
    stored, gone = tables.all_events, tables.tombstones
    page = (
        select(*stored.c)
        .where(stored.c.position > after, stored.c.position <= last)
        .order_by(stored.c.position)
        .limit(size)
        .subquery("page")
    )
    digests = (
        select(gone.c.position, gone.c.digest)
        .where(gone.c.position > after, gone.c.position <= last)
        .order_by(gone.c.position)
        .limit(size)
        .subquery("digests")
    )
    live = select(
        page.c.position,
        event_form_of(schema, page).label("form"),
        cast(null(), LargeBinary).label("digest"),
    )
    live = live.select_from(with_names(schema, page))
    dead = select(digests.c.position, cast(null(), Text), digests.c.digest)
    both = live.union_all(dead).subquery("both_kinds")
    return select(both).order_by(both.c.position, both.c.digest.nulls_first()).limit(size)


def with_names(schema: str, page: Subquery) -> Any:  # noqa: ANN401 -- a join of it
    """Return ``page`` beside streams and types; an event whose stream is gone stays in sight."""
    tables = event_tables(schema)
    streams, types = tables.streams, tables.event_types
    return page.outerjoin(streams, streams.c.id == page.c.stream_id).outerjoin(
        types, types.c.id == page.c.type_id
    )


def event_form_of(schema: str, page: Subquery) -> Any:  # noqa: ANN401 -- an expression
    """Return the expression of an event's form; see `datapatterns.event_sourcing.keeping.chain`."""
    tables = event_tables(schema)
    streams, types = tables.streams, tables.event_types
    seconds = extract("epoch", page.c.at)
    return cast(
        func.json_build_array(
            page.c.position,
            page.c.stream_id,
            streams.c.tenant,
            streams.c.category,
            streams.c.key,
            page.c.version,
            case(
                (func.isfinite(page.c.at), func.to_json(cast(seconds * _MILLION, BigInteger))),
                else_=func.to_json(cast(page.c.at, Text)),  # two of them, which are not the same
            ),
            cast(page.c.event_id, Text),
            page.c.type_id,
            types.c.name,
            types.c.schema_version,
            cast(page.c.data, Text),
            cast(page.c.meta, Text),
            page.c.codec,
            func.encode(page.c.payload, "hex"),
            cast(func.array_to_json(page.c.tags), Text),
        ),
        Text,
    )
