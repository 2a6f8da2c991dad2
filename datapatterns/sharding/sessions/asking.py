"""What a session asks several shards at once, also without those that do not answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Result
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import ORMExecuteState

from datapatterns.errors import ShardUnavailableError, UnmergeableQueryError
from datapatterns.sharding.reaching.asking import Answers, ask_connected
from datapatterns.sharding.reaching.options import AllShards
from datapatterns.sharding.reaching.results import ShardResult
from datapatterns.sharding.reaching.time_limits import time_limit
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.scatter.selected import AnySelect, selects_only_columns
from datapatterns.sharding.sessions.shard_work import ShardWork

T = TypeVar("T")
Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks for a session.

    Attributes:
        work: The session's transaction.
        policy: What to do about shards that do not answer.
    """

    work: ShardWork
    policy: AllShards

    def apart(
        self, statements: Mapping[str, AnySelect], ask: Callable[[Connection, AnySelect], T]
    ) -> Answers[T]:
        """Ask each shard for its statement at once, past the session.

        Raises:
            ShardUnavailableError: One does not answer, and must not be missing.
        """
        return self._ask(statements, lambda conn, shard: ask(conn, statements[shard]))

    def for_rows(
        self,
        state: ORMExecuteState,
        statements: Mapping[str, AnySelect],
        parameters: Parameters,
        take: Callable[[Result[Any]], T],
    ) -> Answers[T]:
        """Execute a statement on each shard at once; give what ``take`` makes of the results.

        Entities load into the one session, as if it had asked one shard after the other. Columns
        alone need no session, so that nobody waits for the turn to use it.

        Raises:
            ShardUnavailableError: One does not answer, and must not be missing.
        """
        listened = state._remaining_events()  # noqa: SLF001 -- there is no public name
        if listened or not selects_only_columns(next(iter(statements.values()))):
            return self.together(state, statements, take)
        values, options = dict(parameters), state.local_execution_options

        def execute(conn: Connection, statement: AnySelect) -> T:
            return take(conn.execute(statement, values, execution_options=options))

        return self.apart(statements, execute)

    def together(
        self,
        state: ORMExecuteState,
        statements: Mapping[str, AnySelect],
        take: Callable[[Result[Any]], T],
    ) -> Answers[T]:
        """Execute a statement on each shard at once.

        All load into the one session, as if it had asked one shard after the other.

        Raises:
            ShardUnavailableError: One does not answer, and must not be missing.
        """

        def execute(_conn: Connection, shard: str) -> T:
            return take(self.work.run(state, statements[shard], shard))

        return self.in_turns(state, statements, execute)

    def in_turns(
        self, state: ORMExecuteState, shards: Iterable[str], ask: Callable[[Connection, str], T]
    ) -> Answers[T]:
        """Ask each shard something that concerns the session, at once.

        Raises:
            ShardUnavailableError: One does not answer, and must not be missing.
        """
        # A flush would come in between, on connections that are in use.
        with state.session.no_autoflush:
            return self._ask(shards, ask, in_turns=True)

    def _ask(
        self,
        shards: Iterable[str],
        ask: Callable[[Connection, str], T],
        *,
        in_turns: bool = False,
    ) -> Answers[T]:
        missing = self._open(shards)
        # Now, while nothing else is at work.
        connections = {s: self.work.connection_to(s) for s in shards if s not in missing}
        with self.work.access.learning():
            answers = ask_connected(
                self.work.access.fan_out,
                {s: (conn, partial(ask, conn, s)) for s, conn in connections.items()},
                seconds=self.policy.timeout_seconds,
                tolerate=self._tolerates,
                in_turns=in_turns,
            )
        for shard, error in answers.missing.items():
            self.work.lose(shard, error)
        answers.missing |= missing
        self.work.missing = answers.names_missing
        return answers

    def on_one(
        self, shard: str, read: Callable[[], Result[Any]], names: Sequence[str]
    ) -> Result[Any]:
        """Read from the only shard that a statement is for.

        Args:
            shard: Which one.
            read: Reads there.
            names: What the columns are called.

        Raises:
            ShardUnavailableError: It does not answer, and must not be missing.
        """
        missing = self._open([shard])
        if not missing:
            conn = self.work.connection_to(shard)
            try:
                with self._bounded(conn, shard):
                    return self._told(read())
            except ShardUnavailableError as error:
                if not self._tolerates:
                    raise
                self.work.lose(shard, error)
        self.work.missing = (shard,)
        return ShardResult(SimpleResultMetaData(names), [], self.work.missing)

    def _told(self, result: Result[Any]) -> Result[Any]:
        self.work.missing = ()
        # What the ORM returns can do more than what could be built from its rows.
        result.missing_shards = ()  # type: ignore[attr-defined] # as ShardResult has it
        return result

    @contextmanager
    def _bounded(self, conn: Connection, shard: str) -> Iterator[None]:
        with (
            self.work.access.asking(shard),
            time_limit(conn, shard, self.policy.timeout_seconds),
        ):
            yield

    @property
    def _tolerates(self) -> bool:
        return self.policy.partial == "allow"

    def _open(self, shards: Iterable[str]) -> dict[str, ShardUnavailableError]:
        for shard in shards:
            self.work.read_on_replica(shard)
        failed = self.work.parts.open_some(shards, seconds=self.policy.timeout_seconds)
        for shard, error in failed.items():
            if not self._tolerates:
                raise error
            self.work.lose(shard, error)
        return failed


def all_rows(result: Result[Any]) -> Rows:
    """Return the rows of a result, of which none is made of several."""
    try:
        return result.all()
    except InvalidRequestError as error:
        raise UnmergeableQueryError(
            "a joined eager load of a collection", "use selectinload(), or name the shard key"
        ) from error
