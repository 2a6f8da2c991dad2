"""A session over all shards: routed where the key is known, merged exactly where it is not."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import (
    Connection,
    Delete,
    Insert,
    Result,
    Select,
    TextClause,
    Update,
    event,
    inspect,
)
from sqlalchemy.orm import (
    FromStatement,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
)
from sqlalchemy.sql.selectable import SelectBase, TextualSelect

from datapatterns.errors import SettingsError, UnroutableStatementError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.reaching.options import asked_for
from datapatterns.sharding.reaching.tokens import ShardToken
from datapatterns.sharding.routing.instances import declared_key
from datapatterns.sharding.sessions.broadcast_writing import BroadcastWriting
from datapatterns.sharding.sessions.flushing import Flushing
from datapatterns.sharding.sessions.getting import load_by_key
from datapatterns.sharding.sessions.reading import Reading
from datapatterns.sharding.sessions.reference_writing import ReferenceWriting
from datapatterns.sharding.sessions.row_moves import move_object
from datapatterns.sharding.sessions.settled_values import settle_values
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.split_writing import SplitWriting
from datapatterns.sharding.sessions.statements import refuse_other_schemas
from datapatterns.sharding.sessions.whole_shards import WholeShards
from datapatterns.sharding.sessions.writing import Writing
from datapatterns.sharding.strategies.strategy import Key

T = TypeVar("T")


class ShardSession(Session):
    """A `Session` that finds the shard of each object and statement by the shard key.

    A statement whose WHERE says the key goes to one shard. One that does not is refused unless it
    carries ``execution_options(scatter=True)``; then all shards are asked, and their answers merged
    into what one database would say, or the statement is refused with the clause in the way.

    A transaction may read from many shards and write to one: that one commits or does not. An
    ``atomic`` session's may write to several, and happens on all of them or on none. Between shards
    there is no common snapshot. Rows are written with the same guard that reads carry: a shard
    answers only for what it owns.

    Objects are found, refreshed and written by their primary key, which holds the shard key.
    """

    def __init__(
        self,
        access: ShardAccess,
        *,
        scatter: bool = False,
        atomic: bool = False,
        replicas: bool = False,
        after: ShardToken | str | None = None,
        wait_seconds: float = 0.0,
        **options: Any,  # noqa: ANN401 -- what Session takes
    ) -> None:
        if options.get("twophase"):
            # SQLAlchemy prepares readers, too, and leaves branches behind after a crash.
            raise SettingsError("twophase", "leave it out; atomic=True is for several shards")
        refuse_other_schemas(options.get("execution_options") or {})
        # Commits are up to the parts: only they know which comes first.
        super().__init__(join_transaction_mode="rollback_only", **options)
        self._work = ShardWork(self, access, atomic=atomic)
        self._broadcasting = BroadcastWriting(self, self._work)
        self._reading = Reading(self._work, self._broadcasting, scatter)
        self._writing = Writing(self._work, self._broadcasting, SplitWriting(self._work))
        self._referring = ReferenceWriting(self, self._work)
        self._flushing_to_shards = Flushing(self, self._work, self._broadcasting, self._referring)
        if replicas:
            self._work.replica_seconds = wait_seconds
        if after is not None:
            self._work.token = after if isinstance(after, ShardToken) else ShardToken.parse(after)
        self.left_to_recovery: tuple[str, ...] = ()
        """After a commit: the shards that show it only when recovery has been there."""

    @property
    def shard_access(self) -> ShardAccess:
        """The way to the shards; for what is kept beside their rows, not for applications."""
        return self._work.access

    @property
    def written_parts(self) -> dict[str, Connection]:
        """The connections of the running transaction to shards that it has written to, by shard."""
        opened = {shard: self._work.parts.opened(shard) for shard in sorted(self._work.written)}
        return {shard: conn for shard, conn in opened.items() if conn is not None}

    @property
    def only_key(self) -> Key | None:
        """None: it sees the rows of all keys."""
        return None

    @property
    def token(self) -> ShardToken:
        """What a replica has to show to whoever comes after this session.

        What it was given as ``after``, and what it has committed since on shards that have
        replicas.
        """
        return self._work.token

    @property
    def missing_shards(self) -> tuple[str, ...]:
        """The shards without which the last statement of all shards, or `AllShards`, was answered.

        As its result says; but ``scalars()`` gives none.
        """
        return self._work.missing

    def get_bind(
        self,
        *_args: Any,  # noqa: ANN401 -- as in Session
        shard_id: str | None = None,
        asks_only: bool = False,
        **_named: Any,  # noqa: ANN401 -- as in Session
    ) -> Connection:
        """Return the transaction's connection to the shard that the running statement is for.

        Raises:
            UnroutableStatementError: No statement is running, so nothing says which shard.
        """
        return self._work.bind(shard_id, asks_only=asks_only)

    def connection(self, *arguments: Any, **named: Any) -> Connection:  # noqa: ANN401 -- as in Session
        """Return the transaction's connection to a shard, as ``bind_arguments`` name it."""
        self._work.is_lent = True
        return super().connection(*arguments, **named)

    def close(self) -> None:
        """End the transaction without a commit, and give all connections back."""
        super().close()
        self._work.parts.close()  # of statements that failed before the transaction began

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Write what has changed, to one shard, or to several if the session is ``atomic``.

        Raises:
            MultiShardWriteError: It belongs to several; nothing of it was sent then.
            ShardUnavailableError: A shard does not answer.
            ShardTransactionEndedError: A listener changed it after the commit.
        """
        self._work.refuse_after_commit()
        if not self._flushing and self._is_clean():
            return
        self._flushing_to_shards.check_pending()
        self.connection_callable = self._flushing_to_shards.connection_for
        try:
            with self._work.flushing():
                super().flush(objects)
        finally:
            self.connection_callable = None
            self._broadcasting.end_flush()
            self._referring.end_flush()

    def move_row(self, instance: T, *, with_children: bool = False, **new_key: Key) -> T:
        """Give a stored object another shard key, as in ``move_row(basket, household_id=7)``.

        Its row is moved to that key's shard in this transaction, which then happens on both shards
        or on none. All columns stay as they are but for the key, also those that a server has
        computed. Objects of moved rows leave the session, also if it is rolled back.

        Args:
            instance: The object; what is pending is flushed before.
            with_children: Whether rows that refer to it by foreign keys move along.
            new_key: The shard key, by its column.

        Returns:
            The object of the row as it is now.

        Raises:
            IntegrityError: Another row is in the way there, or what the row refers to is missing.
            ParentInUseError: Rows of other shards refer to it.
            RowHasDependantsError: Others refer to it, and are not to move along.
            RowMissingError: The row is gone.
        """
        group = declared_key(inspect(instance).mapper, self._work.access.placements).group
        key = group.key_from(new_key)
        return move_object(
            self, self._work, self._referring, instance, key, with_children=with_children
        )

    def _execute_internal(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- as in Session
        # Each statement passes here, once more if `_route` has executed it itself.
        return self._work.executing(partial(super()._execute_internal, *arguments, **named))

    def _get_impl(
        self,
        entity: Any,  # noqa: ANN401 -- as in Session
        primary_key_identity: Any,  # noqa: ANN401
        db_load_fn: Callable[..., Any],
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        load = load_by_key(self._work, db_load_fn)
        return super()._get_impl(entity, primary_key_identity, load, **options)

    def _route(self, state: ORMExecuteState) -> Result[Any] | None:
        if "shard_id" in state.bind_arguments:
            return None
        refuse_other_schemas(state.execution_options)
        settle_values(state)
        statement = state.statement
        if isinstance(statement, SelectBase):
            return self._reading.read(state, statement)
        if isinstance(statement, FromStatement) and isinstance(statement.element, Select):
            return self._reading.read_objects(state, statement, statement.element)
        if isinstance(statement, Insert):
            return self._referring.around(state, statement, self._writing.insert)
        if isinstance(statement, Update | Delete):
            return self._referring.around(state, statement, self._writing.change)
        asked = asked_for(state.execution_options, scatter=False)
        source = statement.element if isinstance(statement, FromStatement) else statement
        if isinstance(source, TextClause | TextualSelect) and asked.one is not None:
            return WholeShards(self._work).run_text(state, asked.one)
        raise UnroutableStatementError(
            f"nobody can look into a {type(statement).__name__}",
            "write it in expressions, or work on one shard with ShardCluster.on(), or with"
            " execution_options(shard=...)",
        )

    def _before_commit(self) -> None:
        self.flush()
        if not self.in_nested_transaction():
            self.left_to_recovery = self._work.commit()


@event.listens_for(ShardSession, "do_orm_execute", retval=True)
def _on_execute(state: ORMExecuteState) -> Result[Any] | None:
    return cast("ShardSession", state.session)._route(state)  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "after_flush")
def _on_flush(session: Session, context: UOWTransaction) -> None:
    cast("ShardSession", session)._broadcasting.copy_flushed()  # noqa: SLF001 -- of this module
    cast("ShardSession", session)._referring.flushed(context)  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "before_commit")
def _on_commit(session: Session) -> None:
    cast("ShardSession", session)._before_commit()  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "after_transaction_create")
def _on_begin(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:  # it is going to write
        cast("ShardSession", session)._work.parts.leave_replicas()  # noqa: SLF001 -- of this module


@event.listens_for(ShardSession, "after_transaction_end")
def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        cast("ShardSession", session)._broadcasting.end()  # noqa: SLF001 -- of this module
        cast("ShardSession", session)._referring.end()  # noqa: SLF001 -- of this module
        cast("ShardSession", session)._work.end()  # noqa: SLF001 -- of this module
