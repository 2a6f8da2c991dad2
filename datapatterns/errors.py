"""Every error that this library raises on purpose.

DataPatternsError
├── ConfigurationError        fix the code or the settings; retrying cannot help
│   ├── AbortedTransactionError
│   ├── AggregateError
│   ├── BucketCountError
│   ├── CacheKeyError
│   ├── CaptureRefusedError
│   ├── CapturedTableInUseError
│   ├── CodecError
│   ├── ConsumerMissingError
│   ├── EmbeddedFolderError
│   ├── EmbeddedStartError
│   ├── EncryptionKeyError
│   ├── EventDataError
│   ├── EventIdsReusedError
│   ├── EventLineError
│   ├── EventShapeError
│   ├── EventTypeError
│   ├── EvictionPolicyError
│   ├── ExportFileError
│   ├── FaultRefusedError
│   ├── ForeignSnapshotError
│   ├── GroupMismatchError
│   ├── HistoryError
│   ├── ImportChunkError
│   ├── ImportVersionError
│   ├── IndexChangedError
│   ├── IndexDefinitionError
│   ├── IndexDetachedError
│   ├── IndexMissingError
│   ├── IndexModeError
│   ├── IsolationLevelError
│   ├── MarkUnpublishedError
│   ├── MergeLimitError
│   ├── MigrationNeededError
│   ├── MissingExtraError
│   ├── MissingRightsError
│   ├── MultiShardWriteError
│   ├── PersonalFieldError
│   ├── ProjectionDefinitionError
│   ├── ProjectionStoppedError
│   ├── ProjectionVersionError
│   ├── PurgeRefusedError
│   ├── ReadModelKeyError
│   ├── ReadOnlyServerError
│   ├── ScatterRefusedError
│   ├── SchemaManagedElsewhereError
│   ├── SchemaNameError
│   ├── SchemaOccupiedError
│   ├── SearchTooLargeError
│   ├── ServerTooOldError
│   ├── SettingsError
│   ├── ShardKeyChangedError
│   ├── ShardKeyError
│   ├── ShardMapExistsError
│   ├── ShardMapMissingError
│   ├── ShardedTableError
│   ├── SourceEventError
│   ├── StreamArchivedError
│   ├── StreamCopyError
│   ├── SubjectForgottenError
│   ├── SubjectKeyError
│   ├── TransactionInUseError
│   ├── UncacheableValueError
│   ├── UnknownRevisionError
│   ├── UnknownRowsError
│   ├── UnmergeableQueryError
│   ├── UnroutableStatementError
│   ├── ViewChangedError
│   ├── ViewDefinitionError
│   ├── ViewMissingError
│   └── WrongShardError
├── ConflictError             another writer won; reload, decide again
│   ├── ConditionConflictError
│   ├── IndexKeyTakenError
│   ├── LeaseHeldError
│   ├── LeaseLostError
│   ├── SnapshotOutdatedError
│   ├── StaleShardMapError
│   └── VersionConflictError
├── UnavailableError          a dependency did not answer; retry with backoff
│   ├── CacheBusyError
│   ├── CommitUnansweredError
│   ├── EmbeddedTimeoutError
│   ├── IndexNotReadyError
│   ├── MigrationBlockedError
│   ├── ReadModelBehindError
│   ├── ReadModelBuildingError
│   ├── ServerUnavailableError
│   ├── ShardUnavailableError
│   ├── ViewBehindError
│   └── ViewNotPopulatedError
├── CorruptionError           stored data breaks an invariant; stop and look
│   ├── AnchorError
│   ├── CheckpointError
│   ├── EventGapError
│   ├── EventOrphanedError
│   ├── ForeignReadModelError
│   ├── IndexDiffersError
│   ├── PayloadError
│   ├── SchemaDriftError
│   ├── ShardMapCorruptError
│   └── ViewDiffersError
└── OutcomeUnknownError       it has happened or it has not; find out, or send what knows itself

Callers branch on the four families and log the leaves. `OutcomeUnknownError` stands apart: it is
neither a failure nor a success, so it must not pass for an `UnavailableError` that a loop retries.
Operations that find out by themselves what they have done raise `CommitUnansweredError` instead.
"""

from collections.abc import Iterable


class DataPatternsError(Exception):
    """Base of every deliberate error; catch it to catch all of them."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls cls(*args), which breaks for any __init__ with named
        # arguments as soon as an error crosses a process boundary.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(DataPatternsError):
    """The code or the settings are wrong; retrying cannot help."""


class AbortedTransactionError(ConfigurationError):
    """An error of a statement was caught inside its transaction, which then was to be committed.

    PostgreSQL answers such a COMMIT with a ROLLBACK and no error, so all of it would be lost
    without a word.

    Attributes:
        attempted: What was to be committed.
    """

    def __init__(self, attempted: str) -> None:
        super().__init__(
            f"{attempted} cannot be committed: one of its statements has failed, and the error was"
            " caught; let the error out, or put what may fail into conn.begin_nested()"
        )
        self.attempted = attempted


class AggregateError(ConfigurationError):
    """An aggregate is declared so that it cannot be rebuilt from its events.

    Attributes:
        aggregate: The name of its class.
    """

    def __init__(self, aggregate: str, advice: str) -> None:
        super().__init__(f"{aggregate}: {advice}")
        self.aggregate = aggregate


class BucketCountError(ConfigurationError):
    """Keys cannot be spread over this number of buckets.

    Attributes:
        buckets: The number that was asked for.
    """

    def __init__(self, buckets: int) -> None:
        super().__init__(f"{buckets} buckets cannot be addressed by bits; use a power of two")
        self.buckets = buckets


class CacheKeyError(ConfigurationError):
    """This cannot name a cache or one of its entries.

    Attributes:
        part: What cannot be part of the name.
    """

    def __init__(self, part: object, advice: str) -> None:
        super().__init__(f"{part!r} cannot name a cache entry: {advice}")
        self.part = repr(part)
        self.advice = advice


class CaptureRefusedError(ConfigurationError):
    """Changes of this table cannot be captured without missing some.

    Attributes:
        table: The table, with its schema.
        reason: What stands in the way, and the way out.
    """

    def __init__(self, table: str, reason: str) -> None:
        super().__init__(f"changes of {table} cannot be captured: {reason}")
        self.table = table
        self.reason = reason


class CapturedTableInUseError(ConfigurationError):
    """Somebody still consumes the changes of this table.

    Attributes:
        table: The table, with its schema.
        consumers: Who consumes its changes.
    """

    def __init__(self, table: str, consumers: list[str]) -> None:
        super().__init__(
            f"changes of {table} are still consumed by {', '.join(consumers)}; drop those first"
        )
        self.table = table
        self.consumers = consumers


class CodecError(ConfigurationError):
    """A codec is not known to this store, or cannot be used as it is declared.

    Attributes:
        codec: Its id; None if it has none.
    """

    def __init__(self, codec: int | None, advice: str) -> None:
        super().__init__(advice if codec is None else f"codec {codec} {advice}")
        self.codec = codec


class ConsumerMissingError(ConfigurationError):
    """Nobody of this name consumes changes.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no consumer is called {name!r}; register it first")
        self.name = name


class EmbeddedFolderError(ConfigurationError):
    """A folder cannot hold embedded servers.

    Attributes:
        folder: Which one.
    """

    def __init__(self, folder: object, advice: str) -> None:
        super().__init__(f"{folder}: {advice}")
        self.folder = str(folder)


class EmbeddedStartError(ConfigurationError):
    """An embedded server does not start.

    Attributes:
        server: Which one.
        problem: Why, with the end of its log if it has one.
    """

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(f"{server} does not start: {problem}")
        self.server = server
        self.problem = problem


class EncryptionKeyError(ConfigurationError):
    """A key that data was encrypted under is not at hand, or is no key.

    Attributes:
        key_id: Its name.
    """

    def __init__(self, key_id: str, advice: str) -> None:
        super().__init__(f"encryption key {key_id!r} {advice}")
        self.key_id = key_id


class EventDataError(ConfigurationError):
    """An event holds data that could not be stored and read back.

    Attributes:
        event_type: The type of the event.
        reason: What is wrong with its data, and where.
    """

    def __init__(self, event_type: str, reason: str) -> None:
        super().__init__(f"the data of {event_type!r} cannot be stored: {reason}")
        self.event_type = event_type
        self.reason = reason


class EventIdsReusedError(ConfigurationError):
    """The ids of an append were given before, to other events.

    Attributes:
        stream: What was to be appended to.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"some of these event ids for {stream} were appended before, with other events"
            " behind it; give new events new ids, and a retry exactly those that it had"
        )
        self.stream = stream


class EventLineError(ConfigurationError):
    """A line of a file of events is not an event that could be stored.

    Attributes:
        line: Its number, from 1.
        reason: What is wrong with it; values are not quoted at length.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class EventShapeError(ConfigurationError):
    """Stored data does not fit the class that is declared for its type.

    Attributes:
        event_type: The type of the event.
        schema_version: The shape that was stored.
        reason: What does not fit.
    """

    def __init__(self, event_type: str, *, schema_version: int, reason: str) -> None:
        super().__init__(
            f"{event_type!r} as stored in version {schema_version} does not fit its class:"
            f" {reason}; register an upcaster with @upcast({event_type!r}, {schema_version})"
        )
        self.event_type = event_type
        self.schema_version = schema_version
        self.reason = reason


class EventTypeError(ConfigurationError):
    """A type of event is not declared, or is declared twice.

    Attributes:
        event_type: The name of the type, or of the class that has none.
    """

    def __init__(self, event_type: str, advice: str) -> None:
        super().__init__(f"{event_type}: {advice}")
        self.event_type = event_type


class EvictionPolicyError(ConfigurationError):
    """Redis may drop parts of a read model when its memory is full.

    Attributes:
        policy: Its ``maxmemory-policy``.
    """

    def __init__(self, policy: str) -> None:
        super().__init__(
            f"Redis evicts any key when its memory is full (maxmemory-policy {policy}), and a read"
            " model with holes looks whole; use noeviction or a volatile-* policy"
        )
        self.policy = policy


class ExportFileError(ConfigurationError):
    """An export cannot be written into this file, or continued in it.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str, advice: str) -> None:
        super().__init__(f"{path}: {advice}")
        self.path = path


class FaultRefusedError(ConfigurationError):
    """A fault can't be brought about here, or would reach further than asked.

    Attributes:
        fault: What was to be done.
        advice: Why not, and what to do instead.
    """

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(f"{fault}: {advice}")
        self.fault = fault
        self.advice = advice


class ForeignSnapshotError(ConfigurationError):
    """A consumer's snapshot speaks of another cluster's or another database's transactions.

    That is what a dump leaves behind that was restored elsewhere. Comparing transaction ids of
    two clusters would skip changes silently.

    Attributes:
        name: The consumer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} was last advanced in another database; call ChangeLog.rebase(),"
            " then populate its views again"
        )
        self.name = name


class GroupMismatchError(ConfigurationError):
    """The code declares an entity group otherwise than its stored map.

    Attributes:
        group: The name of the group.
        declared: What the code says.
        stored: What the map was created for.
    """

    def __init__(self, group: str, *, declared: str, stored: str) -> None:
        super().__init__(
            f"group {group!r} is declared as {declared}, but its data was placed by {stored};"
            " declare what is stored, or copy the data into a new group"
        )
        self.group = group
        self.declared = declared
        self.stored = stored


class HistoryError(ConfigurationError):
    """A recorded history cannot be checked, because no clients can have done what it says.

    Attributes:
        reason: What is wrong with it.
        line: The line of its file, counted from 1; None if it was not read from a file.
        event: The index of the event; None if it has none.
    """

    def __init__(self, reason: str, *, line: int | None = None, event: int | None = None) -> None:
        places = [
            f"{name} {number}"
            for name, number in (("line", line), ("event", event))
            if number is not None
        ]
        where = f" at {', '.join(places)}" if places else ""
        super().__init__(f"the history cannot be checked{where}: {reason}; correct what records it")
        self.reason = reason
        self.line = line
        self.event = event


class ImportChunkError(ConfigurationError):
    """A chunk of this number was imported before, with other events.

    Attributes:
        source: The name of what is imported.
        chunk: The number of the chunk.
    """

    def __init__(self, source: str, *, chunk: int) -> None:
        super().__init__(
            f"chunk {chunk} of {source!r} was imported before, with other events; cut the source"
            " into the same chunks as before, or import it under another name"
        )
        self.source = source
        self.chunk = chunk


class ImportVersionError(ConfigurationError):
    """Events that are imported would get other versions than they had.

    Attributes:
        stream: Which stream, as text.
        expected: The version in what is imported.
        found: The version that the event would get; None if it is not known.
    """

    def __init__(self, stream: str, *, expected: int, found: int | None) -> None:
        got = "another one" if found is None else str(found)
        super().__init__(
            f"{stream}: the event of version {expected} would get {got}; import into a store"
            " without these streams, from a source that holds them whole, or give up the versions"
            " (keep_versions=False, --renumber)"
        )
        self.stream = stream
        self.expected = expected
        self.found = found


class IndexChangedError(ConfigurationError):
    """An index table was built from another definition than the one declared.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"index table {index!r} was built from another definition; declare that one, or"
            " drop() it, create() it anew and backfill()"
        )
        self.index = index


class IndexDefinitionError(ConfigurationError):
    """An index table cannot be declared like this, or not on this table.

    Attributes:
        index: Its name.
        problem: What stands in the way, and the way out.
    """

    def __init__(self, index: str, problem: str) -> None:
        super().__init__(f"index table {index!r}: {problem}")
        self.index = index
        self.problem = problem


class IndexDetachedError(ConfigurationError):
    """Rows were written past an index table: its triggers don't fire for its table.

    Attributes:
        index: Its name.
        table: The table that it was declared on.
    """

    def __init__(self, index: str, *, table: str) -> None:
        super().__init__(
            f"the triggers of index table {index!r} don't all fire for table {table}; if they"
            " were disabled, repair() it; if another table took the place of the one it was"
            " built on, drop() it, create() it anew and backfill()"
        )
        self.index = index
        self.table = table


class IndexMissingError(ConfigurationError):
    """An index table is declared but was never created in this database.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"there is no index table {index!r} in this database; create() it in a migration"
        )
        self.index = index


class IndexModeError(ConfigurationError):
    """An index table cannot be kept this way.

    Attributes:
        index: Its name.
        mode: The mode that was asked for.
    """

    def __init__(self, index: str, *, mode: str) -> None:
        super().__init__(
            f"index table {index!r}: mode {mode!r} is not available yet; use 'local', which"
            " keeps the index in the database of the rows: over shards, one on each"
        )
        self.index = index
        self.mode = mode


class IsolationLevelError(ConfigurationError):
    """The transaction sees too little, or too much, for this operation to be right.

    Attributes:
        found: The isolation level of the caller's transaction.
        needed: The level that the operation needs.
    """

    def __init__(self, *, found: str, needed: str) -> None:
        super().__init__(f"this needs a {needed} transaction, not {found}; open one for it")
        self.found = found
        self.needed = needed


class MarkUnpublishedError(ConfigurationError):
    """Somebody wants to read up to the published mark, and nobody has published one."""

    def __init__(self) -> None:
        super().__init__(
            "no high-water mark was published yet; let a worker call publish_mark() now and then,"
            " or read without published=True"
        )


class MergeLimitError(ConfigurationError):
    """A statement over several shards asks for more rows than may be merged in memory.

    Attributes:
        limit: How many rows may be merged.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the shards would send more than {limit} rows to be merged; narrow the statement,"
            " add a LIMIT, or read shard by shard"
        )
        self.limit = limit


class MigrationNeededError(ConfigurationError):
    """The library's tables are older than the code that uses them.

    Attributes:
        schema: Where the tables live, or should.
        found: The revision they are at; None where there are none yet.
        needed: The revision this version of the library works with.
    """

    def __init__(self, schema: str, *, found: str | None, needed: str) -> None:
        where = f"are at revision {found}" if found else "do not exist yet"
        super().__init__(
            f"the tables in schema {schema!r} {where}, {needed} is needed;"
            " run: datapatterns migrate upgrade"
        )
        self.schema = schema
        self.found = found
        self.needed = needed


class MissingExtraError(ConfigurationError):
    """A package is not installed that only some users need.

    Attributes:
        package: Which one.
        extra: The extra of this library that brings it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f'{package} is not installed; run: pip install "datapatterns[{extra}]"')
        self.package = package
        self.extra = extra


class MissingRightsError(ConfigurationError):
    """The database role may not do this.

    Attributes:
        reason: What the server said, such as ``permission denied for schema shop``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; connect as a role that may, or grant it the right")
        self.reason = reason


class MultiShardWriteError(ConfigurationError):
    """One transaction would write to several shards, and so could be half done after a crash.

    Attributes:
        shards: The shards that it would write to.
    """

    def __init__(self, shards: Iterable[str]) -> None:
        self.shards = tuple(sorted(shards))
        super().__init__(
            f"this transaction would write to {', '.join(self.shards)}, which cannot commit"
            " together; commit for each shard key, or place rows in bulk with ShardCluster.placed()"
        )


class PersonalFieldError(ConfigurationError):
    """A personal field is declared so that it could not be protected.

    Attributes:
        event_type: The type of the event.
        field: Which field.
    """

    def __init__(self, event_type: str, *, field: str, advice: str) -> None:
        super().__init__(f"{event_type}: the personal field {field} {advice}")
        self.event_type = event_type
        self.field = field


class ProjectionDefinitionError(ConfigurationError):
    """A projection is declared in a way that cannot work.

    Attributes:
        projection: Its name.
    """

    def __init__(self, projection: str, advice: str) -> None:
        super().__init__(f"projection {projection}: {advice}")
        self.projection = projection
        self.advice = advice


class ProjectionStoppedError(ConfigurationError):
    """An event cannot be applied; all before it are, nothing after it is.

    Attributes:
        projection: Its name.
        position: The event's.
        event_type: What it is.
    """

    def __init__(self, projection: str, *, position: int, event_type: str, reason: str) -> None:
        super().__init__(
            f"projection {projection} stopped before {event_type} at position {position}:"
            f" {reason}; fix the projection or its table and run it again"
        )
        self.projection = projection
        self.position = position
        self.event_type = event_type


class ProjectionVersionError(ConfigurationError):
    """The read model was built by another version of its projection.

    Attributes:
        projection: Its name.
        declared: The version in the code.
        live: The version that built what is there; None if that is not known.
    """

    def __init__(self, projection: str, *, declared: int, live: int | None) -> None:
        built = "unknown code" if live is None else f"version {live}"
        super().__init__(
            f"projection {projection}: its read model was built by {built}, this code declares"
            f" version {declared}; rebuild it with the code that is to run"
        )
        self.projection = projection
        self.declared = declared
        self.live = live


class PurgeRefusedError(ConfigurationError):
    """Events cannot be exported or removed for good: they are needed, or not where they should be.

    Attributes:
        stream: The stream.
        reason: What stands in the way.
    """

    def __init__(self, stream: str, reason: str) -> None:
        super().__init__(f"events of {stream} cannot be purged: {reason}")
        self.stream = stream
        self.reason = reason


class ReadModelKeyError(ConfigurationError):
    """A key of a read model is not what its table's primary key is.

    Attributes:
        projection: The read model's name.
    """

    def __init__(self, projection: str, detail: str) -> None:
        super().__init__(
            f"read model {projection}: {detail}; let key= return the column's own type and shape"
        )
        self.projection = projection
        self.detail = detail


class ReadOnlyServerError(ConfigurationError):
    """The server, or its setting for this role, only allows reading."""

    def __init__(self) -> None:
        super().__init__("this server only allows reading; connect to the primary")


class ScatterRefusedError(ConfigurationError):
    """A statement does not say for which shard key, so it would have to go to every shard.

    Attributes:
        tables: The sharded tables that it names.
    """

    def __init__(self, tables: Iterable[str]) -> None:
        self.tables = tuple(sorted(tables))
        super().__init__(
            f"no shard key of {', '.join(self.tables)} follows from the WHERE clause; compare the"
            " key with = or IN, or allow a read of all shards with execution_options(scatter=True)"
        )


class SchemaManagedElsewhereError(ConfigurationError):
    """The library's tables belong to an application's own Alembic environment.

    Attributes:
        schema: Where the tables live.
        version_table: The Alembic version table that counts their revisions.
    """

    def __init__(self, schema: str, *, version_table: str) -> None:
        super().__init__(
            f"the tables in schema {schema!r} are migrated by the Alembic environment that counts"
            f" in {version_table}; run that one: alembic upgrade heads"
        )
        self.schema = schema
        self.version_table = version_table


class SchemaNameError(ConfigurationError):
    """The library's tables cannot live in a schema of this name.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot name the library's schema; use 1 to 40 of a-z, 0-9 and _,"
            " not beginning with a digit or pg_, and no word of SQL"
        )
        self.name = name


class SchemaOccupiedError(ConfigurationError):
    """The schema holds tables that this library did not make.

    Attributes:
        schema: Where the library's tables should go.
        relations: Some of what is there, at most three names.
    """

    def __init__(self, schema: str, relations: tuple[str, ...]) -> None:
        super().__init__(
            f"schema {schema!r} holds tables of somebody else ({', '.join(relations)});"
            " choose another with --schema or DATAPATTERNS_SCHEMA"
        )
        self.schema = schema
        self.relations = relations


class SearchTooLargeError(ConfigurationError):
    """There are more schedules within the bounds than anybody would wait for.

    Attributes:
        explored: How many ran; nothing was found in them.
        known: How many more are known; each can lead to others.
    """

    def __init__(self, *, explored: int, known: int) -> None:
        self.explored, self.known = explored, known
        super().__init__(
            f"after {explored:,} schedules at least {known:,} are left; lower max_preemptions or "
            "narrow crash_at, use fewer or shorter tasks, set max_schedules, or let search() draw"
        )


class ServerTooOldError(ConfigurationError):
    """The server lacks what the library builds on.

    Attributes:
        product: What it is, such as ``PostgreSQL``.
        found: The server's version, such as ``13.4``.
        needed: The oldest major version that will do.
    """

    def __init__(self, product: str, *, found: str, needed: int) -> None:
        super().__init__(
            f"this is {product} {found}, {needed} or newer is needed; upgrade the server"
        )
        self.product = product
        self.found = found
        self.needed = needed


class SettingsError(ConfigurationError):
    """A setting is missing or cannot be used.

    Attributes:
        setting: Which one, as the user would write it.
    """

    def __init__(self, setting: str, advice: str) -> None:
        super().__init__(f"{setting}: {advice}")
        self.setting = setting
        self.advice = advice


class ShardKeyChangedError(ConfigurationError):
    """A row's shard key would change, which would leave it on the wrong shard.

    Attributes:
        table: The table of the row.
        column: Its shard key.
    """

    def __init__(self, *, table: str, column: str) -> None:
        super().__init__(
            f"{table}.{column} is a shard key and cannot be changed; delete the row and insert it"
            " again under the new key, in two transactions"
        )
        self.table = table
        self.column = column


class ShardKeyError(ConfigurationError):
    """A value cannot be, or is not, the shard key that it is used as.

    Attributes:
        group: The name of the entity group.
    """

    def __init__(self, group: str, advice: str) -> None:
        super().__init__(f"shard key of {group!r}: {advice}")
        self.group = group
        self.advice = advice


class ShardMapExistsError(ConfigurationError):
    """A shard map cannot be created here, because something else is here already.

    Attributes:
        place: Where.
    """

    def __init__(self, place: str, advice: str) -> None:
        super().__init__(f"{place}: {advice}")
        self.place = place
        self.advice = advice


class ShardMapMissingError(ConfigurationError):
    """Nobody has decided yet where the buckets of a group lie.

    Attributes:
        group: The name of the group.
    """

    def __init__(self, group: str) -> None:
        super().__init__(
            f"the control database has no map of group {group!r};"
            " create it once with ShardCluster.create_map()"
        )
        self.group = group


class ShardedTableError(ConfigurationError):
    """A table cannot be sharded as it is declared.

    Attributes:
        table: Its name.
    """

    def __init__(self, table: str, advice: str) -> None:
        super().__init__(f"table {table!r}: {advice}")
        self.table = table
        self.advice = advice


class SourceEventError(ConfigurationError):
    """An event of another library's store cannot become one of ours.

    Attributes:
        event: Which one, in the words of its store.
        reason: What is wrong with it.
    """

    def __init__(self, event: str, reason: str) -> None:
        super().__init__(f"{event}: {reason}")
        self.event = event
        self.reason = reason


class StreamArchivedError(ConfigurationError):
    """A stream has ended: it was archived, and takes no more events.

    Attributes:
        stream: The stream.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"{stream} is archived and takes no more events; begin another stream, or restore it"
        )
        self.stream = stream


class StreamCopyError(ConfigurationError):
    """A stream cannot be copied into another, or the copy cannot be gone on with.

    Attributes:
        source: The stream to be copied.
        target: The stream that would hold the copy.
        reason: What is in the way.
    """

    def __init__(self, source: str, target: str, reason: str) -> None:
        super().__init__(f"{source} cannot be copied into {target}: {reason}")
        self.source = source
        self.target = target
        self.reason = reason


class SubjectForgottenError(ConfigurationError):
    """An event holds personal data of somebody who was forgotten.

    Attributes:
        subject: Who it is about.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"{subject!r} was forgotten, so nothing personal can be stored about them any more;"
            " leave the event out, or give the person a new id if they came back"
        )
        self.subject = subject


class SubjectKeyError(ConfigurationError):
    """The key of a person is needed, and this store cannot get it.

    Attributes:
        subject: Who it is about; None if it does not matter.
    """

    def __init__(self, subject: str | None, advice: str) -> None:
        super().__init__(advice if subject is None else f"the key of {subject!r} {advice}")
        self.subject = subject


class TransactionInUseError(ConfigurationError):
    """This needs a transaction that has not written anything yet.

    Whether a snapshot shows its own transaction depends on what others do meanwhile; changes
    made by the transaction that consumes them would be applied twice or never.

    Attributes:
        operation: What was asked for.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation} needs a transaction that has written nothing yet; commit, then begin one"
        )
        self.operation = operation


class UncacheableValueError(ConfigurationError):
    """A loader returned what does not come back from a cache as the same type.

    Attributes:
        value_type: The name of its type.
        reason: What encoding or decoding it said.
    """

    def __init__(self, value_type: str, reason: str) -> None:
        super().__init__(
            f"a value of type {value_type} cannot be cached: {reason}; return a dataclass, a"
            " msgspec.Struct or plain data, and name its type"
        )
        self.value_type = value_type
        self.reason = reason


class UnknownRevisionError(ConfigurationError):
    """The library's tables, or a request, name a revision that this version does not know.

    Attributes:
        revision: The revision that was met.
        newest: The newest revision that is known.
    """

    def __init__(self, revision: str, *, newest: str) -> None:
        super().__init__(
            f"revision {revision!r} is unknown here, the newest is {newest}; if the tables are at"
            " it, a newer datapatterns made them: upgrade the package"
        )
        self.revision = revision
        self.newest = newest


class UnknownRowsError(ConfigurationError):
    """A statement writes rows that cache entries are made from, without saying which.

    Attributes:
        table: The table that it writes.
    """

    def __init__(self, table: str) -> None:
        super().__init__(
            f"this statement writes rows of {table} that a cache watches; say which by"
            " execution_options(cache_keys=[...]), an empty list if none is cached"
        )
        self.table = table


class UnmergeableQueryError(ConfigurationError):
    """The answers of several shards cannot be merged into exactly what one database would say.

    Attributes:
        clause: The part of the statement that stands in the way.
    """

    def __init__(self, clause: str, advice: str) -> None:
        super().__init__(f"{clause} cannot be merged exactly over several shards; {advice}")
        self.clause = clause
        self.advice = advice


class UnroutableStatementError(ConfigurationError):
    """It cannot be told which shards a statement is for.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason
        self.advice = advice


class ViewChangedError(ConfigurationError):
    """The view was created from another definition than the one at hand.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"the definition of view {view!r} has changed since it was created;"
            " drop() it, create() it and populate() it in a migration"
        )
        self.view = view


class ViewDefinitionError(ConfigurationError):
    """No strategy keeps a view of this query exact.

    Attributes:
        view: The view's name.
        clause: What in the query stands in the way.
        advice: The way out.
    """

    def __init__(self, view: str, *, clause: str, advice: str) -> None:
        super().__init__(f"view {view!r} cannot be kept because of {clause}; {advice}")
        self.view = view
        self.clause = clause
        self.advice = advice


class ViewMissingError(ConfigurationError):
    """The view has not been created in this database.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(f"view {view!r} does not exist; create() it in a migration")
        self.view = view


class WrongShardError(ConfigurationError):
    """The server behind a connection string is another shard than the one it is named for.

    Attributes:
        expected: The shard that the configuration names.
        found: The shard that the server says it is; None if it is none yet.
    """

    def __init__(self, *, expected: str, found: str | None) -> None:
        state = "has not been made a shard" if found is None else f"says that it is {found!r}"
        super().__init__(
            f"the server that is configured as shard {expected!r} {state};"
            " check the connection strings, and that ShardCluster.create_map() has run"
        )
        self.expected = expected
        self.found = found


class ConflictError(DataPatternsError):
    """Another writer got there first; reload, decide again."""


class ConditionConflictError(ConflictError):
    """An event that the decision did not know of matches the condition of an append.

    Attributes:
        stream: What was to be appended to.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(
            f"nothing was appended to {stream}: an event that matches the condition was appended"
            " since; read again what the decision is based on, and decide again"
        )
        self.stream = stream


class IndexKeyTakenError(ConflictError):
    """Another row has the key that a unique index table was to take.

    The statement failed, so PostgreSQL accepts nothing more in the transaction: roll it back,
    or back to a savepoint.

    Attributes:
        index: The index table's name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"another row has this key in the unique index table {index!r}; roll back, look it"
            " up and decide again"
        )
        self.index = index


class LeaseHeldError(ConflictError):
    """Another runner is at it.

    Attributes:
        resource: What the lease is for.
        owner: Who holds it; None if that changed meanwhile.
    """

    def __init__(self, resource: str, *, owner: str | None) -> None:
        super().__init__(
            f"{resource} is run by {owner or 'somebody else'}; leave it to them, or try again"
            " when their lease has lapsed"
        )
        self.resource = resource
        self.owner = owner


class LeaseLostError(ConflictError):
    """The lease went to somebody else meanwhile; what was done under it is undone.

    Attributes:
        resource: What the lease is for.
        epoch: Its fencing token.
    """

    def __init__(self, resource: str, *, epoch: int) -> None:
        super().__init__(
            f"the lease on {resource} (epoch {epoch}) is no longer the latest; claim it again"
        )
        self.resource = resource
        self.epoch = epoch


class SnapshotOutdatedError(ConflictError):
    """What this transaction needs has moved on since it took its snapshot.

    Attributes:
        relation: The view that was refreshed, or the table that was truncated or rewritten.
    """

    def __init__(self, relation: str) -> None:
        super().__init__(
            f"{relation} was refreshed, truncated or rewritten after this transaction had taken"
            " its snapshot; begin it again"
        )
        self.relation = relation


class StaleShardMapError(ConflictError):
    """A shard no longer owns what the map says; the map has been read again.

    Attributes:
        shard: The shard that refused.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"shard {shard!r} owns other buckets than the map says;"
            " repeat the whole transaction, which then follows the new map"
        )
        self.shard = shard


class VersionConflictError(ConflictError):
    """The stream is not at the version that the decision was based on.

    Attributes:
        stream: The stream.
        expected: What the caller expected: a version, or ``exists``.
        found: The version that the stream has; 0 if it does not exist.
    """

    def __init__(self, stream: str, *, expected: int | str, found: int) -> None:
        super().__init__(
            f"{stream} is at version {found}, expected {expected}; load it and decide again"
            if found != expected
            else f"{stream} is at version {found}, but the events that the decision was based on"
            " were rolled back and others took their place; load it and decide again"
        )
        self.stream = stream
        self.expected = expected
        self.found = found


class UnavailableError(DataPatternsError):
    """A dependency did not answer; retry with backoff."""


class CacheBusyError(UnavailableError):
    """The database was busy with other loads for as long as this one could wait.

    Attributes:
        waited_seconds: How long it waited.
    """

    def __init__(self, *, waited_seconds: float) -> None:
        super().__init__(
            f"no load could begin within {waited_seconds:g} s; retry later, or raise loads_at_once"
        )
        self.waited_seconds = waited_seconds


class CommitUnansweredError(UnavailableError):
    """The answer to a COMMIT was lost, of an operation that finds out what it has done.

    Attributes:
        attempted: What was to be committed.
        reason: How the answer was lost.
    """

    def __init__(self, attempted: str, *, reason: str) -> None:
        super().__init__(
            f"the COMMIT of {attempted} was not answered ({reason}); run it again: it goes on from"
            " what was committed"
        )
        self.attempted = attempted
        self.reason = reason


class EmbeddedTimeoutError(UnavailableError):
    """An embedded server started but does not answer.

    Attributes:
        server: Which one.
        seconds: How long it was waited for.
    """

    def __init__(self, server: str, *, seconds: float) -> None:
        super().__init__(
            f"{server} did not answer within {seconds:g} s; try again when the machine is less busy"
        )
        self.server = server
        self.seconds = seconds


class IndexNotReadyError(UnavailableError):
    """An index table is still being built, so what it doesn't hold may exist all the same.

    Attributes:
        index: Its name.
        state: The state it is in.
    """

    def __init__(self, index: str, *, state: str) -> None:
        super().__init__(
            f"index table {index!r} is {state}; backfill() and activate() it, or look rows up"
            " with miss='scan' meanwhile"
        )
        self.index = index
        self.state = state


class MigrationBlockedError(UnavailableError):
    """Somebody holds what the migration needs; nothing was changed.

    Attributes:
        holder: Who or what holds it.
        waited_seconds: How long the migration waited for it.
    """

    def __init__(self, holder: str, *, waited_seconds: float) -> None:
        super().__init__(
            f"gave up after {waited_seconds:g} s: {holder}; nothing was changed, try again"
        )
        self.holder = holder
        self.waited_seconds = waited_seconds


class ReadModelBehindError(UnavailableError):
    """A read model has not shown a write in time.

    Attributes:
        projection: Its name.
        position: How far it is; None if it was never run or its data are gone.
        token: How far it should have been.
    """

    def __init__(
        self, projection: str, *, position: int | None, token: int, stopped_by: str | None = None
    ) -> None:
        where = "nowhere yet" if position is None else f"at position {position}"
        cause = f" ({stopped_by})" if stopped_by else ""
        super().__init__(
            f"{projection} is {where}, not at {token}{cause}; wait longer, look whether its runner"
            " runs, or serve what is there with its age"
        )
        self.projection = projection
        self.position = position
        self.token = token
        self.stopped_by = stopped_by


class ReadModelBuildingError(UnavailableError):
    """A read model is being built, so its figures are not whole yet.

    Attributes:
        projection: Its name.
        position: How far the build is; None if it has not begun.
    """

    def __init__(self, projection: str, *, position: int | None) -> None:
        progress = "has not begun" if position is None else f"is at position {position}"
        super().__init__(
            f"{projection} is not whole, its build {progress}; run its projection and read again"
        )
        self.projection = projection
        self.position = position


class ServerUnavailableError(UnavailableError):
    """A server did not answer.

    Attributes:
        server: Which one, without its password.
        reason: What the driver said.
    """

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(
            f"{server} did not answer ({reason}); check address, user, password, and that it runs"
        )
        self.server = server
        self.reason = reason


class ShardUnavailableError(UnavailableError):
    """A shard does not answer.

    Attributes:
        shard: Which one.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"shard {shard!r} does not answer; the others are usable, retry when it is back"
        )
        self.shard = shard


class ViewBehindError(UnavailableError):
    """The view did not contain a write before the deadline.

    Attributes:
        view: The view's name.
        timeout_seconds: How long was waited.
    """

    def __init__(self, view: str, *, timeout_seconds: float) -> None:
        super().__init__(
            f"view {view!r} did not contain the write after {timeout_seconds} s;"
            " refresh it, or read the tables"
        )
        self.view = view
        self.timeout_seconds = timeout_seconds


class ViewNotPopulatedError(UnavailableError):
    """The view has been created, but not filled yet.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"view {view!r} has not been populated; call populate() after create() has committed"
        )
        self.view = view


class CorruptionError(DataPatternsError):
    """Stored data breaks an invariant; stop and look."""


class AnchorError(CorruptionError):
    """What was written down of a hash chain cannot be read, or is not what the database says.

    Attributes:
        anchor: Where it was written down.
        reason: What is wrong.
    """

    def __init__(self, anchor: str, reason: str) -> None:
        super().__init__(f"the anchor {anchor}: {reason}")
        self.anchor = anchor
        self.reason = reason


class CheckpointError(CorruptionError):
    """A reader has got further than the log goes: the log was restored to an earlier state.

    Attributes:
        checkpoint: Where the reader wants to go on.
        drawn: The last position that the log has given out.
    """

    def __init__(self, *, checkpoint: int, drawn: int) -> None:
        super().__init__(
            f"checkpoint {checkpoint} lies beyond the log, which ends at {drawn}; if the database"
            " was restored, rebuild what was derived from the lost events"
        )
        self.checkpoint = checkpoint
        self.drawn = drawn


class EventGapError(CorruptionError):
    """A stream lacks an event between two others.

    Attributes:
        stream: The stream.
        version: The version that is missing.
    """

    def __init__(self, stream: str, *, version: int) -> None:
        super().__init__(f"{stream} lacks version {version}; compare it with a backup")
        self.stream = stream
        self.version = version


class EventOrphanedError(CorruptionError):
    """An event's stream, or its type, is not in the database.

    Attributes:
        position: Where the event stands.
    """

    def __init__(self, *, position: int) -> None:
        super().__init__(
            f"the event at position {position} belongs to a stream, or is of a type, that is not"
            " in the database; was only a part of it restored?"
        )
        self.position = position


class ForeignReadModelError(CorruptionError):
    """What lies in Redis under a read model's keys was not written on behalf of this database.

    Attributes:
        projection: The read model's name.
    """

    def __init__(self, projection: str, detail: str) -> None:
        super().__init__(
            f"{projection} in Redis is not this database's: {detail}; if two databases share"
            " this Redis give each a prefix, if PostgreSQL was restored rebuild the projection"
        )
        self.projection = projection
        self.detail = detail


class IndexDiffersError(CorruptionError):
    """An index table and the rows it was built from do not agree.

    Attributes:
        index: Its name.
        missing: Rows without their index row.
        orphaned: Index rows without their row.
        different: Index rows that carry other values than their row.
    """

    def __init__(self, index: str, *, missing: int, orphaned: int, different: int) -> None:
        super().__init__(
            f"index table {index!r} differs from its table: {missing} missing, {orphaned}"
            f" orphaned, {different} different; repair() it (rows missing from a unique index"
            " after that have a key that another row has: resolve these first)"
        )
        self.index = index
        self.missing = missing
        self.orphaned = orphaned
        self.different = different


class PayloadError(CorruptionError):
    """What a codec once made cannot be read: it was changed, cut, moved, or is too large.

    Attributes:
        codec: The name of the codec.
        reason: What is wrong with it; never what it holds.
    """

    def __init__(self, codec: str, reason: str) -> None:
        super().__init__(
            f"a payload of {codec} cannot be read: {reason}; it is not what was appended, so"
            " compare it with a backup"
        )
        self.codec = codec
        self.reason = reason


class SchemaDriftError(CorruptionError):
    """The library's tables are not what its migrations make.

    Attributes:
        schema: Where the tables live.
        differences: One line for each; ``-`` is missing, ``+`` is extra.
    """

    def __init__(self, schema: str, differences: tuple[str, ...]) -> None:
        shown = "; ".join(differences[:3])
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""  # noqa: PLR2004
        super().__init__(
            f"the tables in schema {schema!r} differ from what the migrations make: {shown}{more};"
            " put back what was changed by hand"
        )
        self.schema = schema
        self.differences = differences


class ShardMapCorruptError(CorruptionError):
    """The stored map does not give each bucket to one shard.

    Attributes:
        group: The name of the group.
    """

    def __init__(self, group: str, advice: str) -> None:
        super().__init__(f"the map of group {group!r} is damaged: {advice}")
        self.group = group
        self.advice = advice


class ViewDiffersError(CorruptionError):
    """A view holds something that its query cannot have produced.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"view {view!r} counts fewer rows than none: it missed changes;"
            " find out how, then rebuild() it"
        )
        self.view = view


class OutcomeUnknownError(DataPatternsError):
    """A COMMIT was sent and its answer was lost: the transaction has happened, or it has not.

    Not an `UnavailableError`: to repeat what has happened may do it twice.

    Attributes:
        attempted: What was to be committed.
        reason: How the answer was lost.
        ids: What makes a repetition recognisable, such as the ids of the events.
        xid: The transaction, if it was traced; `read_outcome` asks what became of it.
        server: In which life of which server ``xid`` means this transaction.
    """

    def __init__(
        self,
        attempted: str,
        *,
        reason: str,
        ids: Iterable[object] = (),
        xid: int | None = None,
        server: str | None = None,
    ) -> None:
        self.attempted = attempted
        self.reason = reason
        self.ids = tuple(ids)
        self.xid = xid
        self.server = server
        advice = "repeat it only if it recognises its repetition, or look for what it wrote"
        if self.ids:
            advice = f"repeat it with the same ids ({', '.join(map(str, self.ids[:3]))})"
        if xid is not None:
            advice += f", or ask read_outcome() about its transaction {xid}"
        super().__init__(
            f"whether {attempted} has been committed is unknown, for the answer was lost"
            f" ({reason}); {advice}"
        )


def _restore(
    cls: type[DataPatternsError], args: tuple[object, ...], state: dict[str, object]
) -> DataPatternsError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error
