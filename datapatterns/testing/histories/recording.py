"""Write down what clients begin, what they see, and how it ends."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from os import PathLike
from threading import Lock
from types import TracebackType
from typing import Generic, Self, TypeVar, cast, overload

from datapatterns.testing.histories.events import EventType, HistoryEvent, Key, ListOperation, Value
from datapatterns.testing.histories.files import dump_history
from datapatterns.testing.histories.outcomes import outcome_of

T_co = TypeVar("T_co", covariant=True)


class Recorder:
    """Keeps one history of many clients, in threads or in tasks.

    >>> recorder = Recorder()
    >>> client = recorder.client()
    >>> with client.transaction() as txn:
    ...     txn.append("x", 1)
    >>> [(event.type, event.value) for event in recorder.history()]
    [('invoke', []), ('ok', [('append', 'x', 1)])]

    Args:
        now_nanoseconds: What goes into the events as their time. Their order comes from the
            recorder, not from a clock.
    """

    def __init__(self, *, now_nanoseconds: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_nanoseconds = now_nanoseconds
        self._events: list[HistoryEvent] = []
        self._processes = 0
        self._lock = Lock()

    def client(self) -> "RecordedClient":
        """Return a new client: one session, which does one thing after the other."""
        return RecordedClient(self)

    def history(self) -> list[HistoryEvent]:
        """Return what has been recorded so far."""
        with self._lock:
            return list(self._events)

    def dump(self, path: str | PathLike[str]) -> None:
        """Write the history as JSON lines that ``load_history``, and Elle, can read."""
        dump_history(self.history(), path)

    def new_process(self) -> int:
        """Return a number that no client has had."""
        with self._lock:
            self._processes += 1
            return self._processes - 1

    def record(
        self, process: int, event_type: EventType, operations: Iterable[ListOperation]
    ) -> None:
        """Add the next event."""
        copied = list(operations)
        with self._lock:  # the place in the list is the order of the history
            self._events.append(
                HistoryEvent(
                    len(self._events), process, event_type, copied, self._now_nanoseconds()
                )
            )


class RecordedClient:
    """One session. After an outcome that nobody knows it goes on under a new number.

    Attributes:
        process: Its number at present.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._is_busy = False
        self.process = recorder.new_process()

    @overload
    def transaction(
        self, *, planned: Sequence[ListOperation] = ()
    ) -> "RecordedTransaction[None]": ...
    @overload
    def transaction(
        self,
        inner: AbstractContextManager[T_co] | AbstractAsyncContextManager[T_co],
        *,
        planned: Sequence[ListOperation] = (),
    ) -> "RecordedTransaction[T_co]": ...
    def transaction(
        self,
        inner: AbstractContextManager[T_co] | AbstractAsyncContextManager[T_co] | None = None,
        *,
        planned: Sequence[ListOperation] = (),
    ) -> "RecordedTransaction[T_co] | RecordedTransaction[None]":
        """Return a context manager that records one transaction, and how it ended.

        Give it the context manager that commits, such as ``engine.begin()``: then it knows
        whether an error came before the COMMIT (nothing has happened) or from it (nobody knows,
        unless the server has said). Without one every error may have come from a COMMIT. Errors
        are never swallowed.

        Args:
            inner: Commits at its end, or rolls back if there was an error.
            planned: The operations to come, if they are known. They are what may have happened
                if nobody knows; otherwise what was said to ``append`` so far is.
        """
        return RecordedTransaction(self, inner, planned)

    def begin(self, planned: Sequence[ListOperation]) -> None:
        """Record that a transaction begins.

        Raises:
            ValueError: The one before has not ended.
        """
        if self._is_busy:
            raise ValueError("a client is one session; take another one to do two things at once")
        self._is_busy = True
        self._recorder.record(self.process, "invoke", planned)

    def end(self, how: EventType, operations: Sequence[ListOperation]) -> None:
        """Record how the transaction ended."""
        self._recorder.record(self.process, how, operations)
        self._is_busy = False
        if how == "info":
            self.process = self._recorder.new_process()


class RecordedTransaction(Generic[T_co]):
    """One transaction; use it by ``with`` or ``async with``.

    Attributes:
        conn: What the inner context manager gave; None if there is none.
    """

    conn: T_co

    def __init__(
        self,
        client: RecordedClient,
        inner: AbstractContextManager[T_co] | AbstractAsyncContextManager[T_co] | None,
        planned: Sequence[ListOperation],
    ) -> None:
        self._client = client
        self._inner = inner
        self._planned = planned
        self._done: list[ListOperation] = []
        self._has_begun = False
        self._commit_sent = inner is None

    def append(self, key: Key, value: Value) -> None:
        """Say that ``value`` is about to be appended; say it before it is sent.

        Raises:
            TypeError: The key or the value is neither an integer nor a string.
        """
        _refuse_what_no_file_can_hold(key, value)
        self._done.append(("append", key, value))

    def read(self, key: Key, values: Iterable[Value] | None) -> list[Value]:
        """Say what was read, from the oldest value to the youngest; return it as a list.

        Raises:
            TypeError: The key is neither an integer nor a string.
        """
        _refuse_what_no_file_can_hold(key)
        found = list(values or ())
        self._done.append(("r", key, found))
        return list(found)  # the caller's own: who changes what he read must not change history

    def committing(self) -> None:
        """Say that from here on the transaction may have happened, if it commits by itself."""
        self._commit_sent = True

    def __enter__(self) -> Self:
        inner = cast("AbstractContextManager[T_co] | None", self._inner)
        self._begin()
        if inner is None:
            self.conn = cast("T_co", None)
        else:
            try:
                self.conn = inner.__enter__()
            except BaseException:
                self._end("fail")
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        inner = cast("AbstractContextManager[T_co] | None", self._inner)
        swallowed = None
        try:
            if inner is not None:
                swallowed = inner.__exit__(kind, error, trace)
        except BaseException as last:
            self._note(error, last)
            raise
        self._note(error, None, swallowed=bool(swallowed))
        return swallowed

    async def __aenter__(self) -> Self:
        inner = cast("AbstractAsyncContextManager[T_co] | None", self._inner)
        self._begin()
        if inner is None:
            self.conn = cast("T_co", None)
        else:
            try:
                self.conn = await inner.__aenter__()
            except BaseException:
                self._end("fail")
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        inner = cast("AbstractAsyncContextManager[T_co] | None", self._inner)
        swallowed = None
        try:
            if inner is not None:
                swallowed = await inner.__aexit__(kind, error, trace)
        except BaseException as last:
            self._note(error, last)
            raise
        self._note(error, None, swallowed=bool(swallowed))
        return swallowed

    def _begin(self) -> None:
        if self._has_begun:
            raise ValueError("a transaction is recorded once; ask the client for another one")
        self._client.begin(self._planned)
        self._has_begun = True

    def _note(
        self, error: BaseException | None, last: BaseException | None, *, swallowed: bool = False
    ) -> None:
        """Record the outcome.

        Args:
            error: What came out of the block.
            last: What the inner context manager raised at its end: while it committed if there
                was no ``error``, else while it rolled back.
            swallowed: Whether it raised nothing although there was an ``error``: who knows what
                it did instead.
        """
        final = last or error
        if final is None:
            self._end("ok")
        else:
            commit_sent = error is None or swallowed or self._commit_sent
            self._end(outcome_of(final, commit_sent=commit_sent))

    def _end(self, how: EventType) -> None:
        # What was rolled back or is unknown counts whole: any of it may be found.
        operations = self._done if how == "ok" else self._planned or self._done
        self._client.end(how, operations)


def _refuse_what_no_file_can_hold(*parts: object) -> None:
    for part in parts:
        if not isinstance(part, int | str) or isinstance(part, bool):
            raise TypeError(f"a key or a value is an integer or a string, not {part!r}")
