"""`datapatterns events tail|stream|show|blockers`: look into the log."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import msgspec

from datapatterns_cli.event_rows import (
    as_json,
    as_line,
    as_version,
    filter_of,
    filter_options,
    said,
    tell_unknown_types,
)
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import Position, Searched, StoredEvent, StoredEvents

_PAGE = 500
_POSITION_MAX = 2**63 - 1


@click.command(cls=Command)
@click.option(
    "--after",
    type=click.IntRange(0, _POSITION_MAX),
    help="Begin after this position; 0 is the beginning.  [default: the end]",
)
@filter_options
@click.option("--limit", type=click.IntRange(1), help="End after so many events.")
@click.option("--once", is_flag=True, help="End where the log ends.")
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0.01, 3_600),
    default=0.25,
    show_default=True,
    help="The longest pause when there is nothing new.",
)
@pass_invocation
@click.pass_context
def tail(ctx: click.Context, invocation: Invocation, /, **options: Any) -> None:  # noqa: ANN401
    """Show events as they come in, in the order of the log; Ctrl-C ends it.

    An event is shown when no other can appear before it any more. If nothing comes although
    somebody writes, ask `datapatterns events blockers`.

    \b
      datapatterns events tail --category basket --type basket.paid
      datapatterns events tail --after 0 --once --json | jq .data
    """  # noqa: D301
    try:
        _follow(invocation, **options)
    except KeyboardInterrupt:
        from datapatterns_cli.main import INTERRUPTED  # noqa: PLC0415 -- it imports the commands

        ctx.exit(INTERRUPTED)  # that is how it is ended; nothing is undone


def _follow(
    invocation: Invocation,
    *,
    after: int | None,
    limit: int | None,
    once: bool,
    poll_seconds: float,
    **wanted: Any,  # noqa: ANN401 -- the options of a filter
) -> None:
    if math.isnan(poll_seconds):  # passes for a number of any range
        raise click.UsageError("--poll-seconds nan is no time; write 0.25")
    layer, matching, left = invocation.layer(), filter_of(wanted), limit
    source = _stored(layer)
    tell_unknown_types(invocation, layer, matching)
    place = _Place(layer, after)
    for up_to in place.now() if once else place.for_ever(poll_seconds):
        caught_up = False
        while not caught_up:
            size = _PAGE if left is None else min(left, _PAGE)
            with layer.engine.connect() as conn:
                page = source.page(conn, place.at, up_to=up_to, limit=size, matching=matching)
            for event in page.events:
                invocation.output.line(as_line(event), as_json(event))
            left = left and left - len(page.events)
            if left == 0:
                return
            place.at, caught_up = page.checkpoint, page.caught_up


class _Place:
    """How far the log was shown, and how far it can be."""

    def __init__(self, layer: "DataLayer", after: int | None) -> None:
        from datapatterns.event_sourcing import Position  # noqa: PLC0415 -- help must not wait

        self._layer = layer
        self.at = Position(after or 0)
        if after is None:
            [self.at] = self.now()

    def now(self) -> "Iterator[Position]":
        """Yield up to where the log is final."""
        from datapatterns.errors import CheckpointError  # noqa: PLC0415 -- help must not wait for it

        with self._layer.engine.connect() as conn:
            mark = self._layer.events.high_water_mark(conn)
        if self.at > mark:
            raise CheckpointError(checkpoint=self.at, drawn=mark)
        yield mark

    def for_ever(self, poll_seconds: float) -> "Iterator[Position]":
        """Yield this whenever it has moved on."""
        from datapatterns.event_sourcing import Follower, LogFilter, Pace  # noqa: PLC0415

        # It asks for no event, only for how far the log goes: what it would read, it would decode.
        follower = Follower(
            self._layer.events,
            self._layer.engine,
            lambda _: self.at,
            matching=LogFilter(event_types=()),
            pace=Pace(min(0.002, poll_seconds), poll_seconds),
        )
        for page in follower.pages():
            yield page.checkpoint


@click.command(cls=Command)
@click.argument("category")
@click.argument("key")
@click.option("--tenant", default="", help="Whose stream it is.")
@click.option(
    "--after-version", type=click.IntRange(0), default=0, help="Only later versions than this."
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--backwards", is_flag=True, help="The newest first.")
@pass_invocation
def stream(invocation: Invocation, /, **options: Any) -> None:  # noqa: ANN401
    """Show the events of the stream KEY of a CATEGORY.

    \b
      datapatterns events stream basket 31198570044
      datapatterns events stream basket 31198570044 --backwards --limit 1 --json
    """  # noqa: D301
    _show_stream(invocation, **options)


def _show_stream(  # noqa: PLR0913 -- the command's options
    invocation: Invocation,
    *,
    category: str,
    key: str,
    tenant: str,
    after_version: int,
    limit: int,
    backwards: bool,
) -> None:
    from datapatterns.event_sourcing import StreamId  # noqa: PLC0415 -- help must not wait for it

    layer = invocation.layer()
    try:
        stream_id = StreamId(category, key, tenant)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with layer.engine.connect() as conn:
        found = _stored(layer).stream(
            conn,
            stream_id,
            after_version=after_version,
            limit=limit + 1,  # whether there are more
            backwards=backwards,
        )
    shown = as_json if invocation.output.as_json else as_version
    further = "give a higher --limit"
    if not backwards and len(found) > limit:
        further = f"go on with --after-version {found[limit - 1].version}, or {further}"
    invocation.output.page(
        [shown(event) for event in found],
        limit=limit,
        further=further,
        empty=f"{stream_id} has no events",
    )


@click.command(cls=Command)
@click.argument("which", metavar="POSITION|EVENT-ID")
@pass_invocation
def show(invocation: Invocation, *, which: str) -> None:
    """Show one event in full: the one at a position, or with an id.

    With --app, also what it says today: decoded, and lifted to the current shape. Ids have no
    index, so finding one reads events, the newest first, until it is there.

    \b
      datapatterns events show 4711 --app shop.data:layer
      datapatterns events show 6f2f7b0a-3f57-4d4b-8a3e-0d2f5d6c1f11
    """  # noqa: D301
    wanted = _wanted(which)
    layer = invocation.layer()
    event = _find(invocation, layer, wanted)
    if event is None:
        raise click.UsageError(f"there is no event {which}; `events tail` shows those that are")
    today = _decoded(invocation, layer, event)
    if invocation.output.as_json:
        invocation.output.values(as_json(event) | today)
        return
    row = as_json(event)
    row["data"] = _indented(event)
    row["recorded_at"] = row.pop("at")
    row.pop("payload", None)
    if "metadata" in row:
        row["metadata"] = bytes(row["metadata"]).decode()
    if "tags" in row:
        row["tags"] = ", ".join(row["tags"])
    order = ["position", "type", "id", "recorded_at", "tenant", "category", "key", "version"]
    first = {name: row[name] for name in order if name in row}
    invocation.output.values(first | row | today)


def _find(invocation: Invocation, layer: "DataLayer", wanted: int | UUID) -> "StoredEvent | None":
    with layer.engine.connect() as conn, invocation.output.progress("searching", 1) as advance:
        before = 0

        def report(done: "Searched") -> None:
            nonlocal before
            advance(done.positions - before, total=done.total)
            before = done.positions

        return _stored(layer).find(conn, wanted, report=report)


def _wanted(which: str) -> int | UUID:
    try:
        return int(which) if which.isdecimal() and int(which) <= _POSITION_MAX else UUID(which)
    except ValueError as error:
        raise click.UsageError(f"{which!r} is no position and no id of an event") from error


def _decoded(invocation: Invocation, layer: "DataLayer", event: "StoredEvent") -> dict[str, object]:
    if not invocation.names_app:
        return {}
    from datapatterns import DataPatternsError  # noqa: PLC0415 -- help must not wait for it

    store = layer.events
    try:
        with layer.engine.connect() as conn:
            found = store.read_stream(
                conn, event.stream, after_version=(event.version or 1) - 1, limit=1
            )
            return {"today": [repr(each) for one in found for each in store.decode(one)]}
    except DataPatternsError as error:
        return {"today": f"cannot be read: {error}"}


def _indented(event: "StoredEvent") -> str:
    if event.codec:
        return said(event)
    try:
        return msgspec.json.format(bytes(event.data), indent=2).decode()
    except RecursionError:
        return said(event)


@click.command(cls=Command)
@pass_invocation
def blockers(invocation: Invocation) -> None:
    """Show who holds readers of the log back: open transactions that have appended.

    The longest open comes first. A prepared transaction has no session; COMMIT PREPARED or
    ROLLBACK PREPARED ends it.

    \b
      datapatterns events blockers
    """  # noqa: D301
    layer = invocation.layer()
    with layer.engine.connect() as conn:
        found = layer.events.blockers(conn)
    invocation.output.table([asdict(one) for one in found], empty="nobody holds readers back")


def _stored(layer: "DataLayer") -> "StoredEvents":
    from datapatterns.event_sourcing import StoredEvents  # noqa: PLC0415 -- help must not wait

    return StoredEvents(layer.events)
