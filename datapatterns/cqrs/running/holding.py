"""The segments that one worker holds, shared by its threads: which is next, and when."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Condition

from datapatterns.clock import Clock
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.pacing import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN, next_pause
from datapatterns.cqrs.running.runners import Runner
from datapatterns.cqrs.running.sharing import SegmentKey
from datapatterns.event_sourcing.log.following_flow import Life


@dataclass(slots=True, eq=False)
class Held:
    """A segment with its lease.

    Attributes:
        runner: Moves it on.
        due: When it is to be looked at.
        begun: Whether the runner has found out how far it really is.
        working: Whether a thread is at it.
        leaving: Whether it is another worker's share, so to be given back.
        since: When the thread began.
        persisted: When its checkpoint was written last.
        pause: How long to pause next time.
    """

    lease: Lease
    runner: Runner
    due: float
    begun: bool = False
    working: bool = False
    leaving: bool = False
    since: float = 0.0
    persisted: float = field(default=float("-inf"))
    pause: float = PAUSE_SECONDS_MIN

    @property
    def key(self) -> SegmentKey:
        """Which segment it is."""
        return SegmentKey(self.lease.name, self.lease.version, self.lease.segment.shard)


class Holdings:
    """What a worker holds; safe to be used by several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = Condition()
        self._held: dict[SegmentKey, Held] = {}
        self._life: Life | None = None

    @property
    def life(self) -> Life | None:
        """In which life of the server pages were read last."""
        return self._life

    def add(self, lease: Lease, runner: Runner) -> None:
        """Hold another segment, which is due at once."""
        held = Held(lease, runner, due=self._clock.monotonic())
        with self._changed:
            self._held[held.key] = held
            self._changed.notify_all()

    def drop(self, key: SegmentKey) -> None:
        """Hold it no more."""
        with self._changed:
            self._held.pop(key, None)

    def all(self) -> list[Held]:
        """Return what is held now."""
        with self._changed:
            return list(self._held.values())

    def take_due(self) -> Held | None:
        """Return the segment that has been due for longest, for this thread alone; None if none is.

        So each gets a page in its turn, however much there is to do for another.
        """
        now = self._clock.monotonic()
        with self._changed:
            due = [held for held in self._held.values() if not held.working and held.due <= now]
            if not due:
                return None
            held = min(due, key=lambda one: one.due)
            held.working, held.since = True, now
            return held

    def put_back(self, held: Held, lease: Lease, *, moved: bool, more: bool) -> bool:
        """Let others have it again; return whether it should be given back instead.

        Args:
            held: What `take_due` gave.
            lease: Its latest lease.
            moved: Events were applied.
            more: There is more to do at once.
        """
        now = self._clock.monotonic()
        with self._changed:
            held.begun, held.working = True, False
            if lease.position != held.lease.position:
                held.persisted = now
            held.lease = lease
            held.pause = next_pause(held.pause, moved=moved)
            held.due = now if more else now + held.pause
            self._changed.notify()
            return held.leaving

    def lives(self, life: Life) -> bool:
        """Return whether the server lives as it did; otherwise all is dropped.

        What was seen and not written down may have been lost in a crash, and is another event now.
        """
        with self._changed:
            known, self._life = self._life, life
            if known in {None, life}:
                return True
            self._held.clear()
            return False

    def sort_out(
        self,
        lost: Callable[[Held], bool],
        mine: Mapping[SegmentKey, object],
    ) -> list[Held]:
        """Drop what is lost, and return what is another's share, which is dropped, too.

        What a thread is at stays until it is done: its page finds out itself whether it is lost.
        """
        with self._changed:
            surplus = []
            for key, held in list(self._held.items()):
                held.leaving = key not in mine
                if held.working:
                    continue
                if lost(held):
                    del self._held[key]
                elif held.leaving:
                    del self._held[key]
                    surplus.append(held)
            return surplus

    def wake(self) -> None:
        """Let all be looked at now: there may be something for them."""
        now = self._clock.monotonic()
        with self._changed:
            for held in self._held.values():
                held.pause = PAUSE_SECONDS_MIN
                held.due = min(held.due, now)
            self._changed.notify_all()

    def seconds_until_due(self) -> float:
        """Return when to look again, unless something comes up before."""
        now = self._clock.monotonic()
        with self._changed:
            return self._seconds_until_due(now)

    def wait(self, seconds_max: float) -> None:
        """Block until something is due, or so long."""
        now = self._clock.monotonic()
        with self._changed:
            seconds = min(self._seconds_until_due(now), seconds_max)
            if seconds > 0:
                self._changed.wait(seconds)

    def notify(self) -> None:
        """End all waits."""
        with self._changed:
            self._changed.notify_all()

    def _seconds_until_due(self, now: float) -> float:
        waiting = [held.due - now for held in self._held.values() if not held.working]
        return max(0.0, min(waiting, default=PAUSE_SECONDS_MAX))
