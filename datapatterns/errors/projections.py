"""Projections and the read models that they build."""

from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    UnavailableError,
)


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


class MessageRefusedError(ConfigurationError):
    """A message that a projection emits cannot be sent as it is.

    Attributes:
        projection: Its name.
    """

    def __init__(self, projection: str, detail: str) -> None:
        super().__init__(
            f"projection {projection} emits what cannot be sent: {detail}; send what is small and"
            " plain, such as where to find the rest"
        )
        self.projection = projection
        self.detail = detail


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


class InlineKeyError(ConfigurationError):
    """A key of a projection that is kept inline depends on what the append is still to find out.

    Attributes:
        attribute: What of the event was asked for.
        event_type: Which event.
    """

    def __init__(self, attribute: str, *, event_type: str) -> None:
        super().__init__(
            f"the {attribute} of {event_type} is not known before it is appended, and a projection"
            " that is kept inline needs its keys by then; let key= depend on the event, its stream"
            " and its metadata, or make the projection async"
        )
        self.attribute = attribute
        self.event_type = event_type


class InlineProjectionError(ConfigurationError):
    """A projection that is kept inline refuses an event, so nothing was appended.

    Attributes:
        projection: Its name.
        reason: What was raised.
    """

    def __init__(self, projection: str, *, reason: str) -> None:
        super().__init__(
            f"projection {projection} is kept inline and refuses what is to be appended: {reason};"
            " mend the projection or the event, or make the projection async"
        )
        self.projection = projection
        self.reason = reason


class ProjectionModeError(ConfigurationError):
    """This cannot be done to a projection that is kept inline, or only to one that is.

    Attributes:
        projection: Its name.
        mode: How it is kept: ``inline`` or ``async``.
    """

    def __init__(self, projection: str, *, mode: str, advice: str) -> None:
        super().__init__(f"projection {projection} is kept {mode}; {advice}")
        self.projection = projection
        self.mode = mode


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


class ReadModelDocumentError(ConfigurationError):
    """A document of a read model is not of the type that it was asked for as.

    Attributes:
        documents: What the documents are called.
        document_type: The type's name.
    """

    def __init__(self, documents: str, document_type: str, detail: str) -> None:
        super().__init__(
            f"one of the documents {documents} is no {document_type}: {detail}; read it as what its"
            " projection puts, or raise the projection's version"
        )
        self.documents = documents
        self.document_type = document_type
        self.detail = detail


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


class TokenError(ConfigurationError):
    """What was sent as a token is none; it is not quoted, for anybody may have sent it.

    Attributes:
        detail: What is wrong with it.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"that is no token: {detail}; send back what a write has returned, unchanged"
        )
        self.detail = detail


class ForeignTokenError(ConfigurationError):
    """A token is of a log that is not this one, so no read model will ever show it.

    Attributes:
        position: Where it points to.
        detail: How that is known.
    """

    def __init__(self, position: int, detail: str) -> None:
        super().__init__(
            f"the token of position {position} is of another log: {detail}; forget it and read"
            " without one"
        )
        self.position = position
        self.detail = detail


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


class ReadModelMovedError(ConflictError):
    """A read model became another one while it was read, so the answer would be of no moment.

    Attributes:
        projection: Its name.
        detail: What has happened.
    """

    def __init__(self, projection: str, detail: str) -> None:
        super().__init__(f"{projection} {detail}; begin the reading again")
        self.projection = projection
        self.detail = detail


class WritersInTheWayError(UnavailableError):
    """A moment in which nobody appends did not come in time, so nothing was changed.

    Attributes:
        projection: What was to be switched.
    """

    def __init__(self, projection: str, *, seconds: float) -> None:
        super().__init__(
            f"projection {projection} was not switched within {seconds:g} seconds: some transaction"
            " that appends, or reads its table under a lock, stays open; see who with"
            " EventStore.blockers, and try again"
        )
        self.projection = projection
        self.seconds = seconds


class ReadModelBehindError(UnavailableError):
    """A read model has not shown a write in time, or is older than it may be.

    Attributes:
        projection: Its name.
        position: How far it is; None if it was never run or its data are gone.
        token: How far it should have been.
        stopped_by: What keeps it from going on, in words; None if it is only late.
        reason: The same in a word: ``late``, ``idle`` (nobody runs it), ``building``,
            ``stopped`` (by an event), ``version`` (another one is live) or ``snapshot`` (the
            caller's is older).
    """

    def __init__(
        self,
        projection: str,
        *,
        position: int | None,
        token: int,
        stopped_by: str | None = None,
        reason: str = "late",
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
        self.reason = reason


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


class ReadModelDamagedError(UnavailableError):
    """Something of a read model in Redis was removed, or changed, by somebody else.

    Attributes:
        projection: Its name.
        structure: Which of its structures is not as its runner left it.
    """

    def __init__(self, projection: str, *, structure: str) -> None:
        super().__init__(
            f"{projection} is not as it was written: {structure} has lost something, or got"
            " something else; its runner builds it anew when it comes there, rebuild does at once"
        )
        self.projection = projection
        self.structure = structure


class LogChangedError(CorruptionError):
    """The log is not the one that a read model elsewhere has followed.

    Its server lost the end of it, in a crash or because a backup was restored, and has drawn the
    same positions again.

    Attributes:
        projection: The read model's name.
        position: How far it had followed the log that was.
    """

    def __init__(self, projection: str, *, position: int) -> None:
        super().__init__(
            f"{projection} shows events up to position {position} that the log does not hold any"
            " more, or holds others in their place; find out what was lost, and rebuild it"
        )
        self.projection = projection
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
