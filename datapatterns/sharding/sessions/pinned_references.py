"""What a session on one shard cannot write: rows that refer to others, on whatever shard."""

from typing import Any

from sqlalchemy import Connection, Delete, Insert, Update, inspect
from sqlalchemy.orm import ORMExecuteState, UOWTransaction

from datapatterns.errors import ReferenceWriteError
from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.declared import PlacedReference, References
from datapatterns.sharding.references.objects import FlushedObjects
from datapatterns.sharding.references.statements import effect_of
from datapatterns.sharding.routing.write_keys import updates_by_primary_key
from datapatterns.sharding.sessions.statements import all_sets


class PinnedReferences:
    """Refuses what would have to be checked on other shards.

    Args:
        references: Those that are checked.
    """

    def __init__(self, references: References) -> None:
        self._references = references
        self._objects = FlushedObjects(references)

    def flushes(self, instance: object | None, conn: Connection) -> None:
        """Take note of an object that is about to be written."""
        if self._references and instance is not None:
            self._objects.writes(inspect(instance), conn)

    def flushed(self, context: UOWTransaction) -> None:
        """Refuse what the running flush has written, if others refer to it or it to others.

        Raises:
            ReferenceWriteError: It does; the flush is rolled back.
        """
        if self._objects:
            changes: Changes = self._objects.changes(lambda state: context.states[state][0])
            self._refuse([*changes.wanted, *changes.gone])

    def end_flush(self) -> None:
        """Forget the flush."""
        self._objects.end()

    def refuse(self, state: ORMExecuteState) -> None:
        """Refuse a statement that makes rows refer to others, or takes those that are referred to.

        Raises:
            ReferenceWriteError: It does.
        """
        statement: Any = state.statement
        if not self._references or not isinstance(statement, Insert | Update | Delete):
            return
        effect = effect_of(
            statement,
            all_sets(state),
            state.bind_mapper,
            self._references,
            by_primary_key=updates_by_primary_key(state),
        )
        self._refuse([*effect.refers, *effect.rereads, *effect.gives_up])

    @staticmethod
    def _refuse(touched: list[PlacedReference]) -> None:
        for reference in touched:
            raise ReferenceWriteError(
                reference.name,
                "a session that is pinned to one shard cannot look at others",
                "write in ShardCluster.session(atomic=True)",
            )
