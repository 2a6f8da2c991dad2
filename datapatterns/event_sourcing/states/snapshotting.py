"""Write snapshots: states that a load can begin with instead of the first event.

A snapshot is a copy for speed. Its key holds a fingerprint of the code that folded it, so changed
code finds none and folds the events; two releases keep theirs side by side.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Delete,
    LargeBinary,
    SmallInteger,
    Text,
    bindparam,
    cast,
    delete,
    select,
)
from sqlalchemy.dialects.postgresql import JSON, insert

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.content.contents import Contents
from datapatterns.event_sourcing.content.shapes import schema_of
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider
from datapatterns.event_sourcing.states.fingerprint import fingerprint, operators_of
from datapatterns.event_sourcing.states.sourced import Sourced
from datapatterns.event_sourcing.states.state import (
    StateShape,
    state_defaults,
    state_shape,
    value_shape,
)
from datapatterns.event_sourcing.states.subjects import (
    Subject,
    apply_of,
    event_classes,
    subject_name,
    subject_of,
)


@dataclass(frozen=True, slots=True)
class SnapshotKind:
    """Which snapshots a release of an aggregate can use."""

    aggregate: str
    fingerprint: bytes
    shape: StateShape

    def bound_to(self, stream: StreamId, version: int) -> bytes:
        """Return what a snapshot is authenticated as, if it is encrypted."""
        return msgspec.json.encode(
            (stream.tenant, stream.category, stream.key, self.aggregate, self.fingerprint, version)
        )


def snapshot_kind(subject: Subject, types: EventTypes) -> SnapshotKind | None:
    """Return which snapshots ``subject`` can use; None if it declares no policy.

    Raises:
        AggregateError: Its state cannot be stored.
        EventTypeError: A handler's event is not declared.
    """
    if subject.snapshot_policy is None:
        return None
    return _snapshot_kind(subject, types, types.revision)


def save_snapshot(
    conn: Connection,
    sourced: Sourced,
    *,
    schema: str,
    types: EventTypes,
    contents: Contents,
    keep: int,
) -> bool:
    """Do what `EventStore.save_snapshot` promises."""
    if keep < 1:
        raise ValueError(f"keeping {keep} snapshots means writing none; keep at least 1")
    history = sourced._history  # noqa: SLF001 -- its keeper
    history.refuse_torn()
    if history.unsaved:
        raise ValueError(f"{sourced} has unsaved events; save it first")
    kind = snapshot_kind(subject_of(sourced), types)
    if kind is None:
        raise AggregateError(
            subject_name(subject_of(sourced)),
            "has no snapshot policy; declare it with snapshot=every(100)",
        )
    values = {
        "category": history.stream.category,
        "tenant": history.stream.tenant,
        "key": history.stream.key,
        "version": history.version,
        "position": history.position,
        "aggregate": kind.aggregate,
        "fingerprint": kind.fingerprint,
    }
    state = kind.shape.encode(sourced)
    bound_to = kind.bound_to(history.stream, history.version)
    stored = contents.outgoing_state(
        conn,
        state,
        bound_to=bound_to,
        tenant=history.stream.tenant,
        subjects=history.persons,
    )
    if stored is None:
        return False
    stream_id = conn.scalar(_insert_statement(schema), values | stored._asdict())
    if stream_id is None:
        return False
    history.snapshot_version = history.version
    history.loaded_bytes = 0
    history.folded.clear()
    conn.execute(_thin_out_statement(schema), {**values, "stream_id": stream_id, "keep": keep})
    return True


def is_due(sourced: Sourced) -> bool:
    """Do what `EventStore.snapshot_if_due` promises, but for the writing."""
    history = sourced._history  # noqa: SLF001 -- its keeper
    policy = subject_of(sourced).snapshot_policy
    return policy is not None and policy.is_due(
        events=history.version - history.snapshot_version,
        load_seconds=history.load_seconds,
        loaded_bytes=history.loaded_bytes,
        folded=history.folded,
    )


@dataclass(frozen=True, slots=True)
class _Folding:
    """What makes the state of a subject: its shape, and the code that folds events into it."""

    shape: StateShape
    code: list[tuple[str, Any]]
    owners: tuple[type, ...]
    packages: set[str]


@lru_cache(maxsize=1_000)
def _snapshot_kind(subject: Subject, types: EventTypes, _revision: int) -> SnapshotKind:
    events = sorted(event_classes(subject), key=lambda event: types.of(event).name)
    folding = (
        _folding_of_decider(subject)
        if isinstance(subject, Decider)
        else _folding_of_aggregate(subject, [(types.of(event).name, event) for event in events])
    )
    code, packages = folding.code, folding.packages | {_top_package(event) for event in events}
    # The values that the fold works with, and their operators.
    code.append(("values", list(folding.shape.hints)))
    schemas = []
    for event in events:
        declared = types.of(event)
        code.append((f"{declared.name} made", event))
        # Upcasters, and what leads from one shape to the next: a rename, types that it is split in.
        history = types.history(event)
        steps = {str(shape): step for shape, _, step in history if step is not None}
        code += steps.items()
        packages.update(_top_package(step) for step in steps.values())
        ways = [(shape, leads_to) for shape, leads_to, _ in history]
        schemas.append((declared.name, declared.schema_version, schema_of(event), ways))
    return SnapshotKind(
        subject_name(subject),
        fingerprint(
            code,
            owners=(*folding.owners, *events),
            packages=packages,
            extra=(folding.shape.schema(), schemas, subject.snapshot_version),
        ),
        folding.shape,
    )


def _folding_of_aggregate(aggregate: type[Aggregate], events: list[tuple[str, type]]) -> _Folding:
    handlers = [(name, apply_of(aggregate, event)) for name, event in events]
    start = [
        ("__init__", aggregate.__init__),
        ("defaults", state_defaults(aggregate, above=Aggregate)),
        ("operators", [operators_of(cls) for cls in _own_classes(aggregate)]),
    ]
    return _Folding(
        state_shape(aggregate, above=Aggregate),
        [*start, *handlers],
        (aggregate,),
        {_top_package(cls) for cls in _own_classes(aggregate)},
    )


def _folding_of_decider(decider: Decider[Any, Any, Any]) -> _Folding:
    if not decider.events:
        raise AggregateError(
            decider.category,
            "has snapshots, but does not say which events it folds; annotate the event that"
            " evolve takes with their classes, or give events=(Paid, Shipped)",
        )
    held = list(_within(decider.evolve))
    owners = tuple(part if isinstance(part, type) else type(part) for part in held)
    made_by = tuple(cls for cls in owners if cls.__module__ not in sys.stdlib_module_names)
    return _Folding(
        value_shape(decider.category, decider.state),
        [("initial", decider.initial), ("evolve", decider.evolve), ("made by", made_by)],
        made_by,
        {_top_package(part) for part in (*held, type(decider.initial))} - sys.stdlib_module_names,
    )


def _within(function: Any) -> Iterator[Any]:  # noqa: ANN401 -- whatever can be called
    """Return ``function``, and what it wraps or is a method of."""
    yield function
    for name in ("func", "__func__", "__self__", "__wrapped__"):
        if name in dir(function):
            yield from _within(getattr(function, name))


def _own_classes(aggregate: type[Aggregate]) -> list[type]:
    return [cls for cls in aggregate.__mro__ if cls not in Aggregate.__mro__]


def _top_package(code: Any) -> str:  # noqa: ANN401 -- a class or a function
    return str(code.__module__).partition(".")[0]


@cache
def _insert_statement(schema: str) -> Any:  # noqa: ANN401 -- Core has no public name for it
    tables = event_tables(schema)
    events, streams, snapshots = tables.all_events, tables.streams, tables.snapshots
    # From the event itself: so a state whose events were rolled back, or that another writer's
    # events have replaced, leaves no snapshot.
    source = (
        select(
            events.c.stream_id,
            bindparam("aggregate", type_=Text),
            bindparam("fingerprint", type_=LargeBinary),
            events.c.version,
            events.c.position,
            events.c.at,
            cast(bindparam("state", type_=Text), JSON),
            bindparam("payload", type_=LargeBinary),
            bindparam("codec", type_=SmallInteger),
            bindparam("subjects", type_=ARRAY(Text)),
        )
        .join(streams, streams.c.id == events.c.stream_id)
        .where(
            streams.c.tenant == bindparam("tenant"),
            streams.c.category == bindparam("category"),
            streams.c.key == bindparam("key"),
            events.c.version == bindparam("version", type_=BigInteger),
            events.c.position == bindparam("position", type_=BigInteger),
        )
    )
    columns = [snapshots.c[name] for name in _COLUMNS]
    return (
        insert(snapshots)
        .from_select(columns, source)
        .on_conflict_do_nothing()
        .returning(snapshots.c.stream_id)
    )


_COLUMNS = (
    "stream_id", "aggregate", "fingerprint", "version", "position", "at", "state",
    "payload", "codec", "subjects",
)  # fmt: skip


@cache
def _thin_out_statement(schema: str) -> Delete:
    snapshots = event_tables(schema).snapshots
    ours = (
        (snapshots.c.stream_id == bindparam("stream_id", type_=BigInteger))
        & (snapshots.c.aggregate == bindparam("aggregate", type_=Text))
        & (snapshots.c.fingerprint == bindparam("fingerprint", type_=LargeBinary))
    )
    newest = (
        select(snapshots.c.version)
        .where(ours)
        .order_by(snapshots.c.version.desc())
        .offset(bindparam("keep", type_=BigInteger))
    )
    return delete(snapshots).where(ours, snapshots.c.version.in_(newest))
