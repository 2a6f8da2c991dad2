"""`datapatterns events snapshot|archive|forget`: what whoever looks after the store does."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.named_objects import bad_option, load_object
from datapatterns_cli.shared_options import Command, Group, dry_run_option

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.event_sourcing import Aggregate, Archive, Decider, Snapshots, StreamId

_BATCH = 1_000

_tenant = click.option("--tenant", default="", help="Whose stream it is.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_of = click.option(
    "--of",
    metavar="MODULE:NAME",
    help="Its Aggregate class or Decider.  [default: the app's Aggregate of that category]",
)


@click.group(cls=Group)
def snapshot() -> None:
    """List, take and delete snapshots; they are copies for speed, so none is missed for long.

    \b
      datapatterns events snapshot list basket 31198570044 --app shop.data:layer
      datapatterns events snapshot take basket 31198570044 --app shop.data:layer
      datapatterns events snapshot purge --app shop.data:layer --dry-run
    """  # noqa: D301


@snapshot.command("list")
@click.argument("category")
@click.argument("key")
@_tenant
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@pass_invocation
def list_(invocation: Invocation, *, category: str, key: str, tenant: str, limit: int) -> None:
    """List the snapshots of a stream, the newest first.

    With --app it is told which ones the code at hand can use.
    """
    layer = invocation.layer()
    with layer.engine.connect() as conn:
        found = _snapshots(layer).list(conn, _stream(category, key, tenant), limit=limit + 1)
    invocation.output.page(
        [asdict(one) for one in found],
        limit=limit,
        further="give a higher --limit",
        empty="there are no snapshots",
    )


@snapshot.command()
@click.argument("category")
@click.argument("key")
@_tenant
@_of
@dry_run_option
@pass_invocation
def take(
    invocation: Invocation,
    *,
    category: str,
    key: str,
    tenant: str,
    of: str | None,
    dry_run: bool,
) -> None:
    """Load what is in a stream, and store a snapshot of its state; one that is there stays."""
    layer = invocation.layer()
    stream = _stream(category, key, tenant)
    subject = _subject(category, of) if of else _aggregate(category)
    with layer.engine.connect() as conn, conn.begin() as begun:
        loaded = layer.events.load(conn, subject, key, tenant=tenant)
        taken = bool(loaded.version) and layer.events.save_snapshot(conn, loaded)
        if dry_run:
            begun.rollback()
    if not loaded.version:
        invocation.output.note(f"{stream} has no events")
    done = "would_take" if dry_run else "taken"
    invocation.output.values({"version": loaded.version, done: taken})


@snapshot.command()
@click.argument("category")
@click.argument("key")
@_tenant
@dry_run_option
@pass_invocation
def drop(invocation: Invocation, *, category: str, key: str, tenant: str, dry_run: bool) -> None:
    """Delete all snapshots of a stream; the next load folds its events."""
    layer = invocation.layer()
    with layer.engine.connect() as conn, conn.begin() as begun:
        dropped = _snapshots(layer).drop(conn, _stream(category, key, tenant))
        if dry_run:
            begun.rollback()
    invocation.output.values({"would_drop" if dry_run else "dropped": dropped})


@snapshot.command()
@dry_run_option
@pass_invocation
def purge(invocation: Invocation, *, dry_run: bool) -> None:
    """Delete the snapshots that the app's aggregates and deciders cannot use any more.

    Snapshots of those that the app does not declare stay; a decider is found by its name in a
    module. Wait until no other release runs that uses the old ones.
    """
    layer = invocation.layer()
    snapshots = _snapshots(layer)
    if not snapshots.known:
        raise click.UsageError(
            "which code is to use them? Give --app, with Aggregates or Deciders in it"
        )
    with layer.engine.connect() as conn:
        outdated = snapshots.count_outdated(conn)
    if dry_run:
        invocation.output.values({"would_delete": outdated})
        return
    deleted = 0
    with invocation.output.progress("deleting", outdated) as advance:
        while deleted < outdated:
            with layer.engine.begin() as conn:
                some = snapshots.drop_outdated(conn, limit=_BATCH)
            if not some:
                break
            advance(some)
            deleted += some
    invocation.output.values({"deleted": deleted})


@click.group(cls=Group)
def archive() -> None:
    """Move events that are rarely needed out of the way, and back.

    Connect as who owns the tables. Readers of the log still find archived events.

    \b
      datapatterns events archive stop basket 31198570044     it takes no more appends
      datapatterns events archive move                         what stopped, what was compacted
      datapatterns events archive restore basket 31198570044
    """  # noqa: D301


@archive.command()
@click.argument("category")
@click.argument("key")
@_tenant
@dry_run_option
@pass_invocation
def stop(invocation: Invocation, *, category: str, key: str, tenant: str, dry_run: bool) -> None:
    """Let a stream take no more appends; `move` then moves its events."""
    from datapatterns.event_sourcing import Archive  # noqa: PLC0415 -- help must not wait for it

    layer, stream = invocation.layer(), _stream(category, key, tenant)
    with layer.engine.connect() as conn, conn.begin() as begun:
        if not layer.events.read_stream(conn, stream, limit=1):
            raise click.UsageError(f"{stream} has no events")
        version = Archive(layer.events).stop(conn, stream)
        if dry_run:
            begun.rollback()
    invocation.output.values({"would_stop_at" if dry_run else "stopped_at": version})


@archive.command()
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=_BATCH,
    show_default=True,
    help="How many events a transaction moves.",
)
@dry_run_option
@pass_invocation
def move(invocation: Invocation, *, batch: int, dry_run: bool) -> None:
    """Move the events of stopped streams, and those before summaries, into the archive.

    Run it again if it breaks off.
    """
    from datapatterns.event_sourcing import Archive  # noqa: PLC0415 -- help must not wait for it

    layer = invocation.layer()
    found = Archive(layer.events)
    if dry_run:
        rows = [{"stream": str(stream)} for stream in _pending(layer, found)]
        invocation.output.table(rows, empty="there is nothing to move")
        return
    with invocation.output.progress("moving", None) as advance:
        moved = found.move_all(
            layer.engine, limit=batch, progress=lambda _, events: advance(events)
        )
    invocation.output.values({"moved": moved})


def _pending(layer: "DataLayer", archive: "Archive") -> "Iterator[StreamId]":
    after = 0
    with layer.engine.connect() as conn:
        while page := archive.pending(conn, after_id=after):
            after = page[-1][0]
            yield from (stream for _, stream in page)


@archive.command()
@click.argument("category")
@click.argument("key")
@_tenant
@dry_run_option
@pass_invocation
def restore(invocation: Invocation, *, category: str, key: str, tenant: str, dry_run: bool) -> None:
    """Bring the events of a stopped stream back, and let it take appends again."""
    from datapatterns.event_sourcing import Archive  # noqa: PLC0415 -- help must not wait for it

    layer, stream = invocation.layer(), _stream(category, key, tenant)
    with layer.engine.connect() as conn:
        if not layer.events.read_stream(conn, stream, limit=1):
            raise click.UsageError(f"{stream} has no events")
    if dry_run:
        with layer.engine.connect() as conn:
            stopped = Archive(layer.events).is_stopped(conn, stream)
        invocation.output.values({"stream": str(stream), "would_restore": stopped})
        return
    is_open = False
    with invocation.output.progress("restoring", None) as advance:
        while not is_open:
            with layer.engine.begin() as conn:
                is_open = Archive(layer.events).restore(conn, stream, limit=_BATCH)
            advance(0 if is_open else _BATCH)
    invocation.output.values({"stream": str(stream), "open": is_open})


@click.command(cls=Command)
@click.argument("subject")
@click.option("--tenant", default="", help="Whose log it is about.")
@_yes
@dry_run_option
@pass_invocation
def forget(invocation: Invocation, *, subject: str, tenant: str, yes: bool, dry_run: bool) -> None:
    """Make the personal data of a SUBJECT unreadable for ever, by destroying its key.

    Events stay; their fields that are about that person read as forgotten. Read models of the
    application are purged only if the application forgets with its purges, in its own code.

    \b
      datapatterns events forget 4711
    """  # noqa: D301
    from datapatterns.event_sourcing import Subjects  # noqa: PLC0415 -- help must not wait for it

    layer = invocation.layer()
    _stream("forgotten", subject, tenant)  # who can be named at all
    if not yes and not dry_run:
        _ask(invocation, subject)
    with layer.engine.connect() as conn, conn.begin() as begun:
        done = Subjects(layer.events).forget(conn, subject, tenant=tenant)
        if dry_run:
            begun.rollback()
    if dry_run:
        found: dict[str, object] = {"would_forget": subject}
    else:
        found = {"forgotten": subject, "position": done.position}
    before = {"before": done.position is None, "had_key": done.had_key}
    gone = "snapshots_to_delete" if dry_run else "snapshots_deleted"
    invocation.output.values(found | before | {gone: done.snapshots})
    if done.position is not None and not done.had_key:
        invocation.output.note(
            f"No personal data of {subject!r} had a key; is that how the events name the person?"
        )


def _ask(invocation: Invocation, subject: str) -> None:
    invocation.output.note(f"The key of {subject!r} goes, and nothing brings it back.")
    invocation.output.ask()


def _stream(category: str, key: str, tenant: str) -> "StreamId":
    from datapatterns.event_sourcing import StreamId  # noqa: PLC0415 -- help must not wait for it

    try:
        return StreamId(category, key, tenant)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _snapshots(layer: "DataLayer") -> "Snapshots":
    from datapatterns.event_sourcing import Snapshots  # noqa: PLC0415 -- help must not wait for it

    return Snapshots(layer.events, (*declared_aggregates(), *_deciders()))


def declared_aggregates() -> "list[type[Aggregate]]":
    """Return the aggregates that were declared by what was imported: those of the app."""
    from datapatterns.event_sourcing import Aggregate  # noqa: PLC0415 -- help must not wait for it

    found: list[type[Any]] = []
    waiting: list[type[Any]] = [Aggregate]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return [one for one in found if one.snapshot_policy is not None]


def _subject(category: str, of: str) -> "type[Aggregate] | Decider[Any, Any, Any]":
    from datapatterns.event_sourcing import Aggregate, Decider  # noqa: PLC0415

    found = load_object(of, option="--of")
    is_aggregate = isinstance(found, type) and issubclass(found, Aggregate)
    if not is_aggregate and not isinstance(found, Decider):
        raise bad_option(f"{of!r} is no Aggregate class and no Decider", "--of")
    if found.category != category:
        raise bad_option(f"{of!r} has the category {found.category}, not {category}", "--of")
    subject: type[Aggregate] | Decider[Any, Any, Any] = found
    return subject


def _deciders() -> "list[Decider[Any, Any, Any]]":
    """Return the deciders that modules hold by name: those of the app, which was imported."""
    from datapatterns.event_sourcing import Decider  # noqa: PLC0415 -- help must not wait for it

    held = (vars(module).values() for module in list(sys.modules.values()))
    found = {id(one): one for some in held for one in list(some) if isinstance(one, Decider)}
    return [one for one in found.values() if one.snapshot_policy is not None]


def _aggregate(category: str) -> "type[Aggregate]":
    found = [one for one in declared_aggregates() if one.category == category]
    if len(found) != 1:
        raise click.UsageError(
            f"{len(found)} Aggregates with snapshots have the category {category}; give --app, and"
            " --of if there are several"
        )
    return found[0]
