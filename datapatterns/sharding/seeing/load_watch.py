"""Count in a process what its statements are for, and write it down now and then."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Lock, Thread
from weakref import WeakSet

from sqlalchemy import Connection, Engine, func, select

from datapatterns.sharding.seeing.load_counts import LoadCounts
from datapatterns.sharding.seeing.recording import forget_load, record_load
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.transactions import transaction

logger = logging.getLogger(__name__)

_PATIENCE = {"lock_timeout": "2s", "statement_timeout": "10s", "synchronous_commit": "off"}
_CLOSING_SECONDS = 5.0


class LoadWatch:
    """The counters of one process, for all threads.

    A thread of its own writes them to the control database. If that does not answer, what was
    counted is lost, and nothing else.

    Args:
        control: The control database.
        flush_seconds: How often they are written down.
        kept: How long what was written down is kept.
        schema: Where the library's tables live.
    """

    def __init__(
        self,
        control: Engine,
        *,
        flush_seconds: float = 10.0,
        kept: timedelta = timedelta(days=1),
        schema: str = DEFAULT_SCHEMA,
    ) -> None:
        self.lost_hits = 0
        """What was counted and could not be written down."""
        self._control = control
        self._flush_seconds = flush_seconds
        self._kept = kept
        self._schema = schema
        self.begin_anew()
        _instances.add(self)

    def begin_anew(self) -> None:
        """Count from nothing: a child that went on would write down its parent's counts again."""
        self._lock = Lock()
        self._flushing = Lock()
        self._counts: dict[int, LoadCounts] = {}
        self._closing = Event()
        self._thread: Thread | None = None

    @property
    def pending_hits(self) -> int:
        """What was counted and is not written down yet."""
        with self._lock:
            return sum(counts.hits for counts in self._counts.values())

    def add(
        self,
        group_id: int,
        buckets: Collection[int],
        keys: Collection[Key],
        *,
        writes: bool,
        busy_us: int = 0,
    ) -> None:
        """Count one statement."""
        with self._lock:
            counts = self._counts.get(group_id)
            if counts is None:
                counts = self._counts[group_id] = LoadCounts()
                if self._thread is None and not self._closing.is_set():
                    self._start()
            counts.add(buckets, keys, writes=writes, busy_us=busy_us)

    def flush(self) -> None:
        """Write down what was counted; if that fails, say so in the log and go on."""
        with self._flushing:
            with self._lock:
                counted, self._counts = self._counts, {}
            if not counted:
                return
            try:
                with self._patiently() as conn:
                    record_load(conn, counted, schema=self._schema)
            except Exception as error:  # noqa: BLE001 -- whatever it is, no statement may suffer
                self.lost_hits += sum(counts.hits for counts in counted.values())
                self._warn("could not be written down", error)
                return
            try:
                with self._patiently() as conn:
                    forget_load(conn, kept=self._kept, schema=self._schema)
            except Exception as error:  # noqa: BLE001 -- the next round does it
                self._warn("and is old could not be deleted", error)

    def close(self) -> None:
        """Write down the rest; give up after a few seconds if the control database is silent."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSING_SECONDS)

    @contextmanager
    def _patiently(self) -> Iterator[Connection]:
        with transaction(self._control, attempted="statistics of shards") as conn:
            conn.execute(select(*(func.set_config(*each, True) for each in _PATIENCE.items())))
            yield conn

    def _warn(self, what: str, error: Exception) -> None:
        logger.warning(
            "what shards were asked %s",
            what,
            extra={"reason": type(error).__name__, "lost_hits": self.lost_hits},
        )

    def _start(self) -> None:
        thread = Thread(target=self._run, name="datapatterns-load", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no threads left, or the interpreter is shutting down
            self._warn("could not be written down", error)
            return
        self._thread = thread

    def _run(self) -> None:
        closing = self._closing
        while not closing.wait(self._flush_seconds):
            self.flush()
        self.flush()


_instances: WeakSet[LoadWatch] = WeakSet()


def _count_anew() -> None:
    for watch in _instances:
        watch.begin_anew()


os.register_at_fork(after_in_child=_count_anew)
