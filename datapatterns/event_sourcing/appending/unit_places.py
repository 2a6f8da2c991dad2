"""Where units live: in an ORM session, up to its COMMIT, or in a block on a connection."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from datapatterns.event_sourcing.appending.flushing import Work
from datapatterns.event_sourcing.appending.pending import NOTHING, Mark
from datapatterns.event_sourcing.appending.unit import Unit

if TYPE_CHECKING:
    from datapatterns.event_sourcing.store import EventStore

_NAMED_WITHIN: Final = 200
"""Of longer statements none is about savepoints."""


def unit_of_session(session: Session, store: "EventStore", bind: Engine | None) -> Unit:
    """Return the session's unit for this store; there is one."""
    place = ("datapatterns.unit", store, bind)
    unit = session.info.get(place)
    if not isinstance(unit, Unit):
        arguments: Any = {} if bind is None else {"bind_arguments": {"bind": bind}}

        def begin() -> None:
            if not session.in_transaction():
                session.begin()

        work = Work(store, lambda: session.connection(**arguments), begin)
        SessionEnd(session, work)
        unit = session.info[place] = Unit(work)
    return unit


class SessionEnd:
    """Flushes after the ORM's own flush, just before the COMMIT or the PREPARE."""

    def __init__(self, session: Session, work: Work) -> None:
        self._work = work
        self._marks: dict[SessionTransaction, Mark] = {}
        self._committed: set[SessionTransaction | None] = set()
        self._commits: Counter[SessionTransaction] = Counter()
        self._commits_around = 0
        open_ = session.get_nested_transaction()
        while open_ is not None:  # the unit may be made in a savepoint
            if open_.nested:
                self._marks[open_] = NOTHING
            open_ = open_.parent
        event.listen(session, "after_transaction_create", self._begun)
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._ended)

    def _begun(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            self._marks[transaction] = self._work.pending.mark()

    def _before_commit(self, session: Session) -> None:
        # Savepoints come here, too. So does a transaction that commits while a savepoint in it is
        # open, before that savepoint does, and then no more.
        innermost = session.get_nested_transaction()
        if innermost is None:
            self._flush(session)
        else:
            self._commits[innermost] += 1

    def _flush(self, session: Session) -> None:
        if self._work.pending:
            session.flush()
            self._work.flush(self._work.connection())

    def _after_commit(self, session: Session) -> None:
        self._committed.add(session.get_nested_transaction())

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        # Not by the events of a rollback: a session that is closed tells of none.
        if transaction.nested:
            mark = self._marks.pop(transaction, None)
            if transaction in self._committed:
                self._committed.discard(transaction)
                self._commits_around += self._commits.pop(transaction, 0) - 1
                if self._commits_around > 0 and not session.in_nested_transaction():
                    self._commits_around = 0
                    self._flush(session)
                return
            self._commits.clear()
            self._commits_around = 0
            if mark is not None:
                self._work.pending.back_to(mark)
        elif transaction.parent is None:
            self._work.end(well=None in self._committed)
            self._committed.clear()
            self._commits.clear()
            self._commits_around = 0
            self._marks.clear()


@contextmanager
def unit_in_block(conn: Connection, store: "EventStore") -> Iterator[Unit]:
    """Give a unit that is flushed at the end of the block, if it ends well."""
    is_over = False

    def place() -> Connection:
        if is_over:  # nobody would send it
            raise ValueError("the block of this unit has ended; begin another one")
        return conn

    def begin() -> None:
        if not place().in_transaction():
            conn.begin()

    work = Work(store, place, begin)
    try:
        with BlockEnd(work).listening(conn):
            yield Unit(work)
    finally:
        is_over = True
    if work.pending:
        work.flush(conn)
    work.end(well=True)


class BlockEnd:
    """Follows savepoints, and what ends the transaction inside the block."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._savepoints: list[tuple[str, Mark]] = []

    @contextmanager
    def listening(self, conn: Connection) -> Iterator[None]:
        """Follow what ``conn`` does."""
        listeners: dict[str, Callable[..., None]] = {
            "before_cursor_execute": self._about_to_execute,
            "rollback": self._rolled_back,
            "rollback_twophase": self._rolled_back,
            "commit": self._about_to_commit,
            "prepare_twophase": self._about_to_commit,
        }
        with ExitStack() as stack:
            for name, listener in listeners.items():
                event.listen(conn, name, listener)
                stack.callback(event.remove, conn, name, listener)
            yield

    def _about_to_execute(
        self, _conn: Connection, _cursor: object, statement: str, *_: object
    ) -> None:
        # SQLAlchemy's own events of savepoints come before these have names.
        match statement[:_NAMED_WITHIN].upper().rstrip("; \n").split():
            case ["SAVEPOINT", name]:
                self._savepoints.append((name, self._work.pending.mark()))
            case ["ROLLBACK", "TO", "SAVEPOINT", name] | ["ROLLBACK", "TO", name]:
                self._end_those_after(name)
                # Without one, it began before the block.
                began = self._savepoints[-1][1] if self._savepoints else NOTHING
                self._work.pending.back_to(began)
            case ["RELEASE", "SAVEPOINT", name] | ["RELEASE", name]:
                self._end_those_after(name)
                self._savepoints = self._savepoints[:-1]
            case _:
                pass

    def _end_those_after(self, name: str) -> None:
        while self._savepoints and self._savepoints[-1][0] != name:
            self._savepoints.pop()

    def _rolled_back(self, *_: object) -> None:
        self._savepoints.clear()
        self._work.end(well=False)

    def _about_to_commit(self, conn: Connection, *_: object) -> None:
        # A COMMIT inside the block: what was collected until now belongs to it.
        self._savepoints.clear()
        if self._work.pending:
            self._work.flush(conn)
