"""Every error that this library raises on purpose; a file for each pattern, one tree for callers.

DataPatternsError
├── ConfigurationError    fix the code or the settings; retrying cannot help
│     broadcasts          BroadcastWriteError
│     bucket_moves        MoveRefusedError
│     caches              CacheKeyError, UncacheableQueryError, UncacheableValueError,
│                         UnknownRowsError
│     change_log          CaptureRefusedError, CapturedTableInUseError, ConsumerMissingError,
│                         ForeignSnapshotError
│     citus               CitusTransactionError, CitusUnfitError
│     commands            CommandHandlerError, CommandInvalidError, CommandResultError,
│                         IdempotencyKeyReusedError
│     embedded            EmbeddedFolderError, EmbeddedStartError
│     event_data          CodecError, EncryptionKeyError, EventDataError, EventShapeError,
│                         EventTypeError, PersonalFieldError, SubjectForgottenError, SubjectKeyError
│     event_streams       AggregateError, EventIdsReusedError, MarkUnpublishedError,
│                         StreamArchivedError
│     event_transfer      EventLineError, ExportFileError, ImportChunkError, ImportVersionError,
│                         PurgeRefusedError, SourceEventError, StreamCopyError
│     index_tables        IndexChangedError, IndexDefinitionError, IndexDetachedError,
│                         IndexKeyTransferError, IndexMigrationError, IndexMissingError,
│                         IndexModeError, IndexPlaceError, IndexUndeclaredError
│     live_folds          LiveFoldLimitError
│     migrations          MigrationNeededError, SchemaManagedElsewhereError, SchemaNameError,
│                         SchemaOccupiedError, UnknownRevisionError
│     projections         EvictionPolicyError, ForeignTokenError, InlineKeyError,
│                         InlineProjectionError, MessageRefusedError, ProjectionDefinitionError,
│                         ProjectionModeError, ProjectionStoppedError, ProjectionVersionError,
│                         ReadModelDocumentError, ReadModelKeyError, TokenError
│     promotions          PromotionRefusedError, ReadModelInUseError
│     segments            SegmentError, SegmentKeyError
│     servers             MissingExtraError, MissingRightsError, ReadOnlyServerError,
│                         ServerTooOldError, SettingsError
│     shard_maps          MapChangeRefusedError
│     shard_migrations    AlembicEnvironmentError, ShardBehindError,
│                         ShardMigrationFailedError
│     shard_references    ReferenceDefinitionError, ReferenceWriteError
│     shard_statements    MergeLimitError, MultiShardWriteError, PageCursorError,
│                         PartialAnswerError, ScatterRefusedError, UnmergeableQueryError,
│                         UnroutableStatementError
│     shards              BucketCountError, GroupMismatchError, RangeBoundError,
│                         RowHasDependantsError, ShardKeyChangedError, ShardKeyError,
│                         ShardMapExistsError, ShardMapMissingError, ShardTransactionEndedError,
│                         ShardedTableError, UnroutableKeyError, WrongShardError
│     testing             FaultRefusedError, HistoryError, SearchTooLargeError
│     transactions        AbortedTransactionError, IsolationLevelError, TransactionInUseError
│     views               ViewChangedError, ViewCycleError, ViewDefinitionError, ViewInUseError,
│                         ViewMigrationError, ViewMissingError, ViewReadOnlyError, ViewSampleError,
│                         ViewUndeclaredError
├── ConflictError         another writer won; reload, decide again
│     broadcasts          ShardListChangedError
│     bucket_moves        MoveBusyError, MoveTakenOverError, StaleMoveError
│     event_streams       ConditionConflictError, VersionConflictError
│     index_tables        IndexKeyTakenError
│     projections         LeaseHeldError, LeaseLostError, ReadModelMovedError
│     segments            SegmentsBusyError
│     shard_indexes       ShardIndexGoneError
│     shard_references    ParentInUseError, ParentMissingError
│     shards              RowMissingError, ShardTransactionRefusedError, StaleShardMapError
│     views               SnapshotOutdatedError
├── UnavailableError      a dependency did not answer; retry with backoff
│     bucket_moves        MoveBlockedError
│     caches              CacheBusyError, UnfencedWriteError
│     change_log          ConsumerBehindError
│     embedded            EmbeddedTimeoutError
│     index_tables        IndexBehindError, IndexBusyError, IndexNotReadyError
│     migrations          MigrationBlockedError
│     projections         ReadModelBehindError, ReadModelBuildingError, ReadModelDamagedError,
│                         WritersInTheWayError
│     promotions          PromotionTimeoutError, StandbyBehindError
│     servers             ServerUnavailableError
│     shard_indexes       ShardIndexNotReadyError
│     shard_maps          MapChangeUnsettledError
│     shard_references    BranchesUnsettledError
│     shards              IdWorkersTakenError, ShardBusyError, ShardTimeoutError,
│                         ShardUnavailableError
│     transactions        CommitUnansweredError
│     views               ViewBehindError, ViewNotPopulatedError, ViewTimeoutError
├── CorruptionError       stored data breaks an invariant; stop and look
│     broadcasts          CopiesDifferError
│     bucket_moves        MoveMismatchError
│     commands            ExecutionUnfinishedError
│     event_data          PayloadError
│     event_streams       CheckpointError, EventGapError, EventOrphanedError
│     event_transfer      AnchorError
│     index_tables        IndexDiffersError, IndexFailedError
│     migrations          SchemaDriftError
│     projections         ForeignReadModelError, LogChangedError
│     shard_indexes       ShardIndexFailedError
│     shard_migrations    ShardDriftError
│     shards              ShardMapCorruptError
│     views               ViewDiffersError
└── OutcomeUnknownError   it has happened or it has not; find out, or send what knows itself

Callers branch on the four families and log the leaves. `OutcomeUnknownError` stands apart: it is
neither a failure nor a success, so it must not pass for an `UnavailableError` that a loop retries.
Operations that find out by themselves what they have done raise `CommitUnansweredError` instead.
"""

from datapatterns.errors.broadcasts import (
    BroadcastWriteError,
    CopiesDifferError,
    ShardListChangedError,
)
from datapatterns.errors.bucket_moves import (
    MoveBlockedError,
    MoveBusyError,
    MoveMismatchError,
    MoveRefusedError,
    MoveTakenOverError,
    StaleMoveError,
)
from datapatterns.errors.caches import (
    CacheBusyError,
    CacheKeyError,
    UncacheableQueryError,
    UncacheableValueError,
    UnfencedWriteError,
    UnknownRowsError,
)
from datapatterns.errors.change_log import (
    CapturedTableInUseError,
    CaptureRefusedError,
    ConsumerBehindError,
    ConsumerMissingError,
    ForeignSnapshotError,
)
from datapatterns.errors.citus import CitusTransactionError, CitusUnfitError
from datapatterns.errors.commands import (
    CommandHandlerError,
    CommandInvalidError,
    CommandResultError,
    ExecutionUnfinishedError,
    IdempotencyKeyReusedError,
)
from datapatterns.errors.embedded import (
    EmbeddedFolderError,
    EmbeddedStartError,
    EmbeddedTimeoutError,
)
from datapatterns.errors.event_data import (
    CodecError,
    EncryptionKeyError,
    EventDataError,
    EventShapeError,
    EventTypeError,
    PayloadError,
    PersonalFieldError,
    SubjectForgottenError,
    SubjectKeyError,
)
from datapatterns.errors.event_streams import (
    AggregateError,
    CheckpointError,
    ConditionConflictError,
    EventGapError,
    EventIdsReusedError,
    EventOrphanedError,
    MarkUnpublishedError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.errors.event_transfer import (
    AnchorError,
    EventLineError,
    ExportFileError,
    ImportChunkError,
    ImportVersionError,
    PurgeRefusedError,
    SourceEventError,
    StreamCopyError,
)
from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    DataPatternsError,
    UnavailableError,
    _restore,
)
from datapatterns.errors.index_tables import (
    IndexBehindError,
    IndexBusyError,
    IndexChangedError,
    IndexDefinitionError,
    IndexDetachedError,
    IndexDiffersError,
    IndexFailedError,
    IndexKeyTakenError,
    IndexKeyTransferError,
    IndexMigrationError,
    IndexMissingError,
    IndexModeError,
    IndexNotReadyError,
    IndexPlaceError,
    IndexUndeclaredError,
)
from datapatterns.errors.live_folds import LiveFoldLimitError
from datapatterns.errors.migrations import (
    MigrationBlockedError,
    MigrationNeededError,
    SchemaDriftError,
    SchemaManagedElsewhereError,
    SchemaNameError,
    SchemaOccupiedError,
    UnknownRevisionError,
)
from datapatterns.errors.projections import (
    EvictionPolicyError,
    ForeignReadModelError,
    ForeignTokenError,
    InlineKeyError,
    InlineProjectionError,
    LeaseHeldError,
    LeaseLostError,
    LogChangedError,
    MessageRefusedError,
    ProjectionDefinitionError,
    ProjectionModeError,
    ProjectionStoppedError,
    ProjectionVersionError,
    ReadModelBehindError,
    ReadModelBuildingError,
    ReadModelDamagedError,
    ReadModelDocumentError,
    ReadModelKeyError,
    ReadModelMovedError,
    TokenError,
    WritersInTheWayError,
)
from datapatterns.errors.promotions import (
    PromotionRefusedError,
    PromotionTimeoutError,
    ReadModelInUseError,
    StandbyBehindError,
)
from datapatterns.errors.segments import SegmentError, SegmentKeyError, SegmentsBusyError
from datapatterns.errors.servers import (
    MissingExtraError,
    MissingRightsError,
    ReadOnlyServerError,
    ServerTooOldError,
    ServerUnavailableError,
    SettingsError,
)
from datapatterns.errors.shard_indexes import (
    ShardIndexFailedError,
    ShardIndexGoneError,
    ShardIndexNotReadyError,
)
from datapatterns.errors.shard_maps import MapChangeRefusedError, MapChangeUnsettledError
from datapatterns.errors.shard_migrations import (
    AlembicEnvironmentError,
    ShardBehindError,
    ShardDriftError,
    ShardMigrationFailedError,
)
from datapatterns.errors.shard_references import (
    BranchesUnsettledError,
    ParentInUseError,
    ParentMissingError,
    ReferenceDefinitionError,
    ReferenceWriteError,
)
from datapatterns.errors.shard_statements import (
    MergeLimitError,
    MultiShardWriteError,
    PageCursorError,
    PartialAnswerError,
    ScatterRefusedError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.errors.shards import (
    BucketCountError,
    GroupMismatchError,
    IdWorkersTakenError,
    RangeBoundError,
    RowHasDependantsError,
    RowMissingError,
    ShardBusyError,
    ShardedTableError,
    ShardKeyChangedError,
    ShardKeyError,
    ShardMapCorruptError,
    ShardMapExistsError,
    ShardMapMissingError,
    ShardTimeoutError,
    ShardTransactionEndedError,
    ShardTransactionRefusedError,
    ShardUnavailableError,
    StaleShardMapError,
    UnroutableKeyError,
    WrongShardError,
)
from datapatterns.errors.testing import FaultRefusedError, HistoryError, SearchTooLargeError
from datapatterns.errors.transactions import (
    AbortedTransactionError,
    CommitUnansweredError,
    IsolationLevelError,
    OutcomeUnknownError,
    TransactionInUseError,
)
from datapatterns.errors.views import (
    SnapshotOutdatedError,
    ViewBehindError,
    ViewChangedError,
    ViewCycleError,
    ViewDefinitionError,
    ViewDiffersError,
    ViewInUseError,
    ViewMigrationError,
    ViewMissingError,
    ViewNotPopulatedError,
    ViewReadOnlyError,
    ViewSampleError,
    ViewTimeoutError,
    ViewUndeclaredError,
)

__all__ = [
    "AbortedTransactionError",
    "AggregateError",
    "AlembicEnvironmentError",
    "AnchorError",
    "BranchesUnsettledError",
    "BroadcastWriteError",
    "BucketCountError",
    "CacheBusyError",
    "CacheKeyError",
    "CaptureRefusedError",
    "CapturedTableInUseError",
    "CheckpointError",
    "CitusTransactionError",
    "CitusUnfitError",
    "CodecError",
    "CommandHandlerError",
    "CommandInvalidError",
    "CommandResultError",
    "CommitUnansweredError",
    "ConditionConflictError",
    "ConfigurationError",
    "ConflictError",
    "ConsumerBehindError",
    "ConsumerMissingError",
    "CopiesDifferError",
    "CorruptionError",
    "DataPatternsError",
    "EmbeddedFolderError",
    "EmbeddedStartError",
    "EmbeddedTimeoutError",
    "EncryptionKeyError",
    "EventDataError",
    "EventGapError",
    "EventIdsReusedError",
    "EventLineError",
    "EventOrphanedError",
    "EventShapeError",
    "EventTypeError",
    "EvictionPolicyError",
    "ExecutionUnfinishedError",
    "ExportFileError",
    "FaultRefusedError",
    "ForeignReadModelError",
    "ForeignSnapshotError",
    "ForeignTokenError",
    "GroupMismatchError",
    "HistoryError",
    "IdWorkersTakenError",
    "IdempotencyKeyReusedError",
    "ImportChunkError",
    "ImportVersionError",
    "IndexBehindError",
    "IndexBusyError",
    "IndexChangedError",
    "IndexDefinitionError",
    "IndexDetachedError",
    "IndexDiffersError",
    "IndexFailedError",
    "IndexKeyTakenError",
    "IndexKeyTransferError",
    "IndexMigrationError",
    "IndexMissingError",
    "IndexModeError",
    "IndexNotReadyError",
    "IndexPlaceError",
    "IndexUndeclaredError",
    "InlineKeyError",
    "InlineProjectionError",
    "IsolationLevelError",
    "LeaseHeldError",
    "LeaseLostError",
    "LiveFoldLimitError",
    "LogChangedError",
    "MapChangeRefusedError",
    "MapChangeUnsettledError",
    "MarkUnpublishedError",
    "MergeLimitError",
    "MessageRefusedError",
    "MigrationBlockedError",
    "MigrationNeededError",
    "MissingExtraError",
    "MissingRightsError",
    "MoveBlockedError",
    "MoveBusyError",
    "MoveMismatchError",
    "MoveRefusedError",
    "MoveTakenOverError",
    "MultiShardWriteError",
    "OutcomeUnknownError",
    "PageCursorError",
    "ParentInUseError",
    "ParentMissingError",
    "PartialAnswerError",
    "PayloadError",
    "PersonalFieldError",
    "ProjectionDefinitionError",
    "ProjectionModeError",
    "ProjectionStoppedError",
    "ProjectionVersionError",
    "PromotionRefusedError",
    "PromotionTimeoutError",
    "PurgeRefusedError",
    "RangeBoundError",
    "ReadModelBehindError",
    "ReadModelBuildingError",
    "ReadModelDamagedError",
    "ReadModelDocumentError",
    "ReadModelInUseError",
    "ReadModelKeyError",
    "ReadModelMovedError",
    "ReadOnlyServerError",
    "ReferenceDefinitionError",
    "ReferenceWriteError",
    "RowHasDependantsError",
    "RowMissingError",
    "ScatterRefusedError",
    "SchemaDriftError",
    "SchemaManagedElsewhereError",
    "SchemaNameError",
    "SchemaOccupiedError",
    "SearchTooLargeError",
    "SegmentError",
    "SegmentKeyError",
    "SegmentsBusyError",
    "ServerTooOldError",
    "ServerUnavailableError",
    "SettingsError",
    "ShardBehindError",
    "ShardBusyError",
    "ShardDriftError",
    "ShardIndexFailedError",
    "ShardIndexGoneError",
    "ShardIndexNotReadyError",
    "ShardKeyChangedError",
    "ShardKeyError",
    "ShardListChangedError",
    "ShardMapCorruptError",
    "ShardMapExistsError",
    "ShardMapMissingError",
    "ShardMigrationFailedError",
    "ShardTimeoutError",
    "ShardTransactionEndedError",
    "ShardTransactionRefusedError",
    "ShardUnavailableError",
    "ShardedTableError",
    "SnapshotOutdatedError",
    "SourceEventError",
    "StaleMoveError",
    "StaleShardMapError",
    "StandbyBehindError",
    "StreamArchivedError",
    "StreamCopyError",
    "SubjectForgottenError",
    "SubjectKeyError",
    "TokenError",
    "TransactionInUseError",
    "UnavailableError",
    "UncacheableQueryError",
    "UncacheableValueError",
    "UnfencedWriteError",
    "UnknownRevisionError",
    "UnknownRowsError",
    "UnmergeableQueryError",
    "UnroutableKeyError",
    "UnroutableStatementError",
    "VersionConflictError",
    "ViewBehindError",
    "ViewChangedError",
    "ViewCycleError",
    "ViewDefinitionError",
    "ViewDiffersError",
    "ViewInUseError",
    "ViewMigrationError",
    "ViewMissingError",
    "ViewNotPopulatedError",
    "ViewReadOnlyError",
    "ViewSampleError",
    "ViewTimeoutError",
    "ViewUndeclaredError",
    "WritersInTheWayError",
    "WrongShardError",
]

# Tracebacks, logs and pickles name them as they are imported, not by the file that they stand in:
# so one release reads what another has pickled.
for _thing in (_restore, *(globals()[name] for name in __all__)):
    _thing.__module__ = __name__
del _thing
