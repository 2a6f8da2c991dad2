"""Serve what Redis holds only while it is certain that Redis has been told of every write."""

import logging
import os
from threading import Lock
from typing import Protocol
from weakref import WeakSet

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.cache_aside.relaying import Relay
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.clock import Clock
from datapatterns.errors import ForeignSnapshotError, MissingRightsError, ReadOnlyServerError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
_TURN_SECONDS = 0.01
_NEVER_CLOSED = 1
_MAY_NOT_RELAY = (MissingRightsError, ReadOnlyServerError)
_UNTOLD = (ForeignSnapshotError, *_MAY_NOT_RELAY)
_UNREACHABLE = (OperationalError, InterfaceError, PoolTimeoutError)


class Doorkeeper(Protocol):
    """Is told of a gate, in order, by whoever opens or closes it."""

    def opened(self, standing: Standing, until: float) -> None:
        """Take note that hits may come from ``standing`` until then, as `monotonic` counts."""
        ...

    def closed(self) -> None:
        """Take note that no hits may be served."""
        ...


class Gate:
    """Open while a relay vouches for the server; whoever finds it closed runs a relay round.

    It closes when Redis was silent, for then an invalidation of this process may be missing
    there; when the server is another one, or another run of it; and when no relay round has
    ended for too long. So the cache works without a relay process, too: then one of its callers
    pays for a round now and then. Whose role may not run one trusts those of others.

    Args:
        relay: What opens the gate.
        clock: The time.
        doorkeeper: Whoever serves hits without asking.
    """

    def __init__(self, relay: Relay, clock: Clock, doorkeeper: Doorkeeper | None = None) -> None:
        self._relay = relay
        self._clock = clock
        self._doorkeeper = doorkeeper
        self._checking = Lock()
        self._state = Lock()
        self._standing: Standing | None = None
        self._last_standing: Standing | None = None
        self._checked_until = 0.0
        self._retry_at = 0.0
        self._closings = _NEVER_CLOSED
        self._closings_mended = 0
        _instances.add(self)
        self._may_not_relay = False
        self._looked: tuple[int, str] | None = None
        self._looked_ms = 0

    def standing(self) -> Standing | None:
        """Return where hits may come from, or None if they must not be served now."""
        return self.unchecked() or self._check()

    def unchecked(self) -> Standing | None:
        """Return what is known without asking anybody; this never blocks."""
        standing = self._standing
        if standing is not None and self._clock.monotonic() < self._checked_until:
            return standing
        return None

    def leave_to_parent(self) -> None:
        """Wait for nobody who looked when this process was forked: he is not here."""
        self._checking = Lock()
        self._state = Lock()

    def close(self) -> None:
        """Serve nothing until a relay round that begins after this has ended."""
        with self._state:
            self._closings += 1
            self._standing = None
            if self._doorkeeper is not None:
                self._doorkeeper.closed()

    def opened_by(self, standing: Standing, *, closings: int) -> None:
        """Open, unless the gate was closed again since ``closings`` was read."""
        with self._state:
            if self._closings == closings:
                self._standing = self._last_standing = standing
                self._checked_until = self._clock.monotonic() + CHECK_SECONDS
                self._closings_mended = closings
                if self._doorkeeper is not None:
                    self._doorkeeper.opened(standing, self._checked_until)

    @property
    def last_standing(self) -> Standing | None:
        """Where hits came from last, open or not: what invalidations must reach."""
        return self._last_standing

    @property
    def closings(self) -> int:
        """How often the gate was closed."""
        return self._closings

    def _check(self) -> Standing | None:
        # Others wait for the one who checks; that takes a round trip, or a relay round.
        if not self._checking.acquire(timeout=CHECK_SECONDS):
            return None
        try:
            now = self._clock.monotonic()
            if self._standing is not None and now < self._checked_until:
                return self._standing
            if now < self._retry_at:
                return None
            self._retry_at = now + CHECK_SECONDS
            standing = self._vouched_for() or self._after_somebodys_round()
            if standing is not None:
                self._retry_at = 0.0
        except CacheSilence:
            return None
        except (*_UNTOLD, *_UNREACHABLE) as error:
            # Who cannot reach the database is about to load from it, and will learn it there. In
            # a copy of it nobody knows what has changed since, nor does who may not look.
            logger.warning("hits are not served: %s", _reason(error), extra=_kind(error))
            return None
        else:
            return standing
        finally:
            self._checking.release()

    def _vouched_for(self) -> Standing | None:
        with self._state:
            closings, standing = self._closings, self._standing
        if standing is None or closings != self._closings_mended:
            return None
        if not self._relay.vouches_for(standing):
            return None
        self.opened_by(standing, closings=closings)
        return standing

    def _after_somebodys_round(self) -> Standing | None:
        if self._may_not_relay and (standing := self._after_anothers_round()) is not None:
            return standing
        try:
            return self._after_a_round()
        except _MAY_NOT_RELAY:
            self._may_not_relay = True
            standing = self._after_anothers_round()
            if standing is None:
                raise
            return standing

    def _after_anothers_round(self) -> Standing | None:
        """Trust a relay elsewhere, if its round has begun since this gate was closed.

        When that was, no clock but Redis' own tells, and it was away. So the first look after the
        closing takes the time, and a round has to begin after that.
        """
        closings = self._closings
        vouched = self._relay.vouched_by_another()
        if vouched is None:
            return None
        standing, mark = vouched
        if closings not in {_NEVER_CLOSED, self._closings_mended}:
            looked = (closings, standing.server)
            if self._looked != looked:
                self._looked, self._looked_ms = looked, mark.now_ms
            if mark.began_ms <= self._looked_ms:
                return None
        self.opened_by(standing, closings=closings)
        return standing

    def _after_a_round(self) -> Standing | None:
        deadline = self._clock.monotonic() + CHECK_SECONDS
        while True:
            closings = self._closings
            _, standing = self._relay.run()
            if standing is not None:
                self.opened_by(standing, closings=closings)
                return standing
            if self._clock.monotonic() > deadline:
                return None
            # Another process is at it; its round may have begun before this gate closed.
            self._clock.sleep(_TURN_SECONDS)


_instances: WeakSet[Gate] = WeakSet()


def _leave_all_to_parent() -> None:
    for gate in _instances:
        gate.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def _reason(error: Exception) -> str:
    # What a driver says may hold values.
    is_own = isinstance(error, _UNTOLD)
    return str(error) if is_own else "the cache relay cannot reach the database"


def _kind(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__}
