"""Statements of a session for whole shards, whatever keys they name: one shard, or all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Delete,
    Result,
    Select,
    Update,
    and_,
    true,
)
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import (
    PartialAnswerError,
    SettingsError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding.maps.elsewhere import not_elsewhere
from datapatterns.sharding.maps.ownership import agrees_with_map, claim_shard
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.options import AllShards
from datapatterns.sharding.reaching.results import ShardResult
from datapatterns.sharding.routing.footprint import Footprint
from datapatterns.sharding.routing.guarded import with_guard
from datapatterns.sharding.routing.key_conditions import Leaf
from datapatterns.sharding.sessions.asking import Asking
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.statements import all_sets

_DIFFERS: Final = {
    *("now", "transaction_timestamp", "statement_timestamp", "current_timestamp", "localtimestamp"),
    *("current_date", "current_time", "localtime", "nextval", "txid_current"),
}
"""Functions of which one statement has one value, and two servers have two; or one sequence."""


@dataclass(frozen=True, slots=True)
class WholeShards:
    """Reads and changes rows of whole shards for a session.

    Attributes:
        work: The session's transaction.
    """

    work: ShardWork

    def read(
        self, state: ORMExecuteState, statement: SelectBase, footprint: Footprint, shard: str
    ) -> Result[Any]:
        """Read what one shard owns, which must be what the map says.

        Raises:
            SettingsError: There is no such shard.
            UnmergeableQueryError: A subquery would see rows of a bucket that is moving.
        """
        self._check(shard)
        shard_map = self.work.access.router.map_of(footprint.group)
        if not footprint.plain and shard_map.elsewhere(shard):
            raise UnmergeableQueryError(
                f"a subquery on the whole of {shard!r} while buckets move there",
                "name the shard key, or wait until they have moved",
            )
        locks = not isinstance(statement, Select) or statement._for_update_arg is not None  # noqa: SLF001
        if locks or footprint.early:
            self._claim(self.work.connection_to(shard), shard_map, shard)
        if isinstance(statement, Select):
            # Also where rows are locked: only what the shard owns is held, and more may arrive.
            leaves = [leaf for block in footprint.blocks for leaf in block.leaves]
            statement = with_guard(statement, self._guard(shard_map, shard, leaves))
        return self.work.run(state, statement, shard)

    def run_text(self, state: ORMExecuteState, shard: str) -> Result[Any]:
        """Execute SQL text on one shard, which keeps all that it owns until the transaction ends.

        It sees whatever the shard holds, also rows of a bucket that is moving.

        Raises:
            SettingsError: There is no such shard.
        """
        self._check(shard)
        conn = self.work.connection_to(shard)
        for shard_map in self.work.access.router.maps():
            self._claim(conn, shard_map, shard)
        return self.work.run(state, state.statement, shard)

    def change(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        footprint: Footprint,
        *,
        shards: Sequence[str],
        policy: AllShards,
    ) -> Result[Any]:
        """Change rows on whole shards; those of a bucket that is moving at its owner's only.

        Objects of the class that are in the session are read again when they are used.

        Raises:
            PartialAnswerError: It is to happen on those shards only that answer.
            SettingsError: There is no such shard.
            UnroutableStatementError: The session is not atomic, or it would mean something else on
                each shard.
        """
        for shard in shards:
            self._check(shard)
        self._refuse(state, statement, footprint, several=len(shards) > 1, policy=policy)
        state.session.flush()
        for shard in shards:
            self.work.become_writer(shard)
        shard_map = self.work.access.router.map_of(footprint.group)
        leaves = [leaf for block in footprint.blocks for leaf in block.leaves]
        state.update_execution_options(synchronize_session=False)
        statements = {
            shard: statement.where(self._elsewhere(shard_map, shard, leaves)) for shard in shards
        }

        def change(conn: Connection, shard: str) -> "_Changed":
            self._claim(conn, shard_map, shard)
            found = self.work.run(state, statements[shard], shard)
            if not statement._returning:  # noqa: SLF001 -- there is no public name
                return _Changed((), (), cast("CursorResult[Any]", found).rowcount)
            names, rows = tuple(found.keys()), found.all()
            return _Changed(names, rows, len(rows))

        answers = Asking(self.work, policy).in_turns(state, shards, change)
        self._expire(state)
        return _merged(answers.given)

    def _refuse(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        footprint: Footprint,
        *,
        several: bool,
        policy: AllShards,
    ) -> None:
        if policy.partial != "raise":
            raise PartialAnswerError("an UPDATE or DELETE", "change rows by their keys")
        if several and not self.work.atomic:
            raise UnroutableStatementError(
                "a change of all shards has to happen on all of them or on none",
                "use session(atomic=True), or name the shard key",
            )
        if len(all_sets(state)) > 1:
            raise UnroutableStatementError("it has several sets of parameters", "pass one set")
        if not footprint.plain:
            raise UnroutableStatementError(
                "a subquery would see one shard only", "name the shard key, or read it before"
            )
        names = [
            part.name.lower()
            for part in visitors.iterate(statement)
            if isinstance(part, FunctionElement) and hasattr(part, "name")
        ]
        if several and (found := sorted(_DIFFERS.intersection(names))):
            raise UnroutableStatementError(
                f"{found[0]}() is another one on each shard", "pass its value"
            )

    def _check(self, shard: str) -> None:
        if shard not in self.work.access.engines:
            known = ", ".join(sorted(self.work.access.engines))
            raise SettingsError("shard", f"there is no {shard!r}; there are {known}")

    def _guard(
        self, shard_map: ShardMap, shard: str, leaves: Sequence[Leaf]
    ) -> ColumnElement[bool]:
        if shard in self.work.access.citus:
            self.work.claim_citus(shard, shard_map)
            return self._elsewhere(shard_map, shard, leaves)
        agrees = agrees_with_map(shard_map, shard, schema=self.work.access.schema)
        return agrees & self._elsewhere(shard_map, shard, leaves)

    def _elsewhere(
        self, shard_map: ShardMap, shard: str, leaves: Sequence[Leaf]
    ) -> ColumnElement[bool]:
        schema = self.work.access.schema
        # There is no leaf where only tables are read that every shard holds.
        return and_(
            true(), *(not_elsewhere(one, shard_map, shard, schema=schema) for one in leaves)
        )

    def _claim(self, conn: Connection, shard_map: ShardMap, shard: str) -> None:
        if shard in self.work.access.citus:
            self.work.claim_citus(shard, shard_map)
            return
        self.work.hold(shard)
        with self.work.access.asking(shard):
            claim_shard(conn, shard_map, shard, schema=self.work.access.schema)

    @staticmethod
    def _expire(state: ORMExecuteState) -> None:
        if (mapper := state.bind_mapper) is None:
            return
        for instance in state.session:
            if isinstance(instance, mapper.class_):
                state.session.expire(instance)


@dataclass(frozen=True, slots=True)
class _Changed:
    names: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    count: int


def _merged(changed: Mapping[str, _Changed]) -> ShardResult:
    names = next(iter(changed.values())).names
    rows = [row for each in changed.values() for row in each.rows]
    counted = sum(each.count for each in changed.values())
    return ShardResult(SimpleResultMetaData(names), rows, rowcount=counted)
