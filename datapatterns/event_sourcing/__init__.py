"""Event sourcing: keep what happened, derive what is."""

from importlib import import_module
from typing import TYPE_CHECKING

from datapatterns.event_sourcing.appending.batching import StreamEvents
from datapatterns.event_sourcing.appending.event_writer import EventWriter
from datapatterns.event_sourcing.appending.forgetting import forget_append_requests
from datapatterns.event_sourcing.appending.tag_query import Condition, Tagged, TaggedPage, TagQuery
from datapatterns.event_sourcing.appending.unit import Unit
from datapatterns.event_sourcing.causing import CAUSATION_ID, CORRELATION_ID, caused_by
from datapatterns.event_sourcing.commands.commanding import CommandPolicy, Handled
from datapatterns.event_sourcing.commands.retrying import Retry
from datapatterns.event_sourcing.content.codecs import Codec, CodecChain, Codecs, MessagePack
from datapatterns.event_sourcing.content.compression import Zstandard
from datapatterns.event_sourcing.content.encryption import Encryption, KeyRing
from datapatterns.event_sourcing.events import (
    ANY,
    EXISTS,
    NEW_STREAM,
    START,
    Appended,
    Blocker,
    Expected,
    NewEvent,
    Position,
    StreamId,
)
from datapatterns.event_sourcing.evolution.checking import (
    EventCheck,
    HandlerGap,
    MisreadEvent,
    TypeFinding,
)
from datapatterns.event_sourcing.evolution.copying import CopyProgress, StreamCopy
from datapatterns.event_sourcing.evolution.event_types import (
    EventTypes,
    dropped,
    event,
    renamed,
    upcast,
)
from datapatterns.event_sourcing.evolution.evolving import Verdict
from datapatterns.event_sourcing.evolution.surveying import check_events
from datapatterns.event_sourcing.evolution.transforming import COPIED_FROM, unchanged
from datapatterns.event_sourcing.keeping.anchors import Anchor, AnchoredSeal, FileAnchor
from datapatterns.event_sourcing.keeping.append_only import AppendOnlyFinding, check_append_only
from datapatterns.event_sourcing.keeping.archiving import Archive
from datapatterns.event_sourcing.keeping.chain import BrokenSegment, ChainReport, Seal
from datapatterns.event_sourcing.keeping.partitioning import Partition, Partitioning
from datapatterns.event_sourcing.keeping.purging import ArchiveExport
from datapatterns.event_sourcing.keeping.sealing import HashChain
from datapatterns.event_sourcing.log.filtering import LogFilter
from datapatterns.event_sourcing.log.final_time import final_until
from datapatterns.event_sourcing.log.following import Follower, LogSignal
from datapatterns.event_sourcing.log.following_flow import Pace
from datapatterns.event_sourcing.log.mark_publisher import MarkPublisher
from datapatterns.event_sourcing.log.publishing import PublishedMark, publish_mark, published_mark
from datapatterns.event_sourcing.log.typed_log import TypedLog
from datapatterns.event_sourcing.persons.key_wrapping import KeyWrapper, LocalKeyWrapper
from datapatterns.event_sourcing.persons.personal import Personal, Redacted, SubjectForgotten
from datapatterns.event_sourcing.persons.shredding import Forgotten, Purge, Subjects
from datapatterns.event_sourcing.persons.subject_keys import SubjectKeys
from datapatterns.event_sourcing.recorded import LogPage, RecordedEvent, TypedEvent, TypedPage
from datapatterns.event_sourcing.states.aggregate import Aggregate
from datapatterns.event_sourcing.states.decider import Decider, Decides, Folded
from datapatterns.event_sourcing.states.handling import applies
from datapatterns.event_sourcing.states.policy import (
    SnapshotPolicy,
    every,
    larger_than,
    on,
    slower_than,
)
from datapatterns.event_sourcing.states.snapshot_keeping import Snapshots, StoredSnapshot
from datapatterns.event_sourcing.states.snapshot_writer import AsyncSnapshotWriter, SnapshotWriter
from datapatterns.event_sourcing.store import EventStore
from datapatterns.event_sourcing.transfer.eventsourcing_mapping import EventsourcingMapping
from datapatterns.event_sourcing.transfer.export_files import export_to_file, open_lines
from datapatterns.event_sourcing.transfer.exporting import EventExport, Exported
from datapatterns.event_sourcing.transfer.importing_eventsourcing import (
    EventsourcingChecked,
    EventsourcingImport,
    EventsourcingImported,
)
from datapatterns.event_sourcing.transfer.importing_lines import (
    LinesChecked,
    LinesImport,
    LinesImported,
)
from datapatterns.event_sourcing.transfer.importing_parts import ImportedEvent
from datapatterns.event_sourcing.transfer.json_lines import StoredEvent
from datapatterns.event_sourcing.transfer.stored_events import Searched, StoredEvents, StoredPage

if TYPE_CHECKING:
    from datapatterns.event_sourcing.appending.event_writer_async import AsyncEventWriter
    from datapatterns.event_sourcing.log.following_async import AsyncFollower, AsyncLogSignal
    from datapatterns.event_sourcing.log.mark_publisher_async import AsyncMarkPublisher

__all__ = [
    "ANY",
    "CAUSATION_ID",
    "COPIED_FROM",
    "CORRELATION_ID",
    "EXISTS",
    "NEW_STREAM",
    "START",
    "Aggregate",
    "Anchor",
    "AnchoredSeal",
    "AppendOnlyFinding",
    "Appended",
    "Archive",
    "ArchiveExport",
    "AsyncEventWriter",
    "AsyncFollower",
    "AsyncLogSignal",
    "AsyncMarkPublisher",
    "AsyncSnapshotWriter",
    "Blocker",
    "BrokenSegment",
    "ChainReport",
    "Codec",
    "CodecChain",
    "Codecs",
    "CommandPolicy",
    "Condition",
    "CopyProgress",
    "Decider",
    "Decides",
    "Encryption",
    "EventCheck",
    "EventExport",
    "EventStore",
    "EventTypes",
    "EventWriter",
    "EventsourcingChecked",
    "EventsourcingImport",
    "EventsourcingImported",
    "EventsourcingMapping",
    "Expected",
    "Exported",
    "FileAnchor",
    "Folded",
    "Follower",
    "Forgotten",
    "Handled",
    "HandlerGap",
    "HashChain",
    "ImportedEvent",
    "KeyRing",
    "KeyWrapper",
    "LinesChecked",
    "LinesImport",
    "LinesImported",
    "LocalKeyWrapper",
    "LogFilter",
    "LogPage",
    "LogSignal",
    "MarkPublisher",
    "MessagePack",
    "MisreadEvent",
    "NewEvent",
    "Pace",
    "Partition",
    "Partitioning",
    "Personal",
    "Position",
    "PublishedMark",
    "Purge",
    "RecordedEvent",
    "Redacted",
    "Retry",
    "Seal",
    "Searched",
    "SnapshotPolicy",
    "SnapshotWriter",
    "Snapshots",
    "StoredEvent",
    "StoredEvents",
    "StoredPage",
    "StoredSnapshot",
    "StreamCopy",
    "StreamEvents",
    "StreamId",
    "SubjectForgotten",
    "SubjectKeys",
    "Subjects",
    "TagQuery",
    "Tagged",
    "TaggedPage",
    "TypeFinding",
    "TypedEvent",
    "TypedLog",
    "TypedPage",
    "Unit",
    "Verdict",
    "Zstandard",
    "applies",
    "caused_by",
    "check_append_only",
    "check_events",
    "dropped",
    "event",
    "every",
    "export_to_file",
    "final_until",
    "forget_append_requests",
    "larger_than",
    "on",
    "open_lines",
    "publish_mark",
    "published_mark",
    "renamed",
    "slower_than",
    "unchanged",
    "upcast",
]


_NEEDS_ASYNC = {  # only asked for by who has that extra
    "AsyncEventWriter": "datapatterns.event_sourcing.appending.event_writer_async",
    "AsyncFollower": "datapatterns.event_sourcing.log.following_async",
    "AsyncLogSignal": "datapatterns.event_sourcing.log.following_async",
    "AsyncMarkPublisher": "datapatterns.event_sourcing.log.mark_publisher_async",
}


def __getattr__(name: str) -> object:
    if name in _NEEDS_ASYNC:
        return getattr(import_module(_NEEDS_ASYNC[name]), name)
    raise AttributeError(name)
