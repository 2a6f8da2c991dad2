"""However readers, writers, expiry and failures interleave, no stale value stays behind."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flow import (
    Acquire,
    AnyStep,
    CacheSilence,
    Fetch,
    Fill,
    Flow,
    Found,
    Granted,
    Load,
    Loaded,
    Look,
    Outcome,
    Release,
    Taken,
    read_through,
)
from datapatterns.cache_aside.policy import CachePolicy

READERS = 4
CODEC: Codec[int] = Codec(int)
POLICY = CachePolicy(
    ttl_seconds=1, stale_seconds=10, jitter=0, wait_seconds=0.01, negative_seconds=0
)
events = [
    "commit",
    "invalidate",
    "lease expires",
    "evict",
    "time passes",
    "cache goes down",
    "cache is up",
    "foreign bytes",
    "reader again",
]
actions = st.integers(0, READERS - 1) | st.sampled_from(events)
# Long enough that a reader often loads in the middle of one: tried with the guard taken out.
schedules = st.lists(actions, min_size=15, max_size=60)
thoroughly = settings(max_examples=6 * settings().max_examples)


@dataclass
class World:
    """One row, one cache entry, and whoever reads and writes them."""

    row: int = 0
    now_ms: int = 0
    stored: bytes | None = None
    lease: str | None = None
    is_up: bool = True
    uninvalidated: int = 0
    served: list[tuple[int, int, int]] = field(default_factory=list)
    readers: list["Reader"] = field(default_factory=list)
    calls: int = 0

    def act(self, action: int | str) -> None:  # noqa: C901 -- one line for each event
        match action:
            case int():
                self.readers[action].advance(self)
            case "commit":
                self.row += 1
                self.uninvalidated += 1
            case "invalidate" if self.uninvalidated and self.is_up:
                self.stored = self.lease = None
                self.uninvalidated = 0
            case "lease expires":
                self.lease = None
            case "evict":
                self.stored = None
            case "time passes":
                self.now_ms += 600
            case "cache goes down":
                self.is_up = False
            case "cache is up":
                self.is_up = True
            case "foreign bytes":
                self.stored = b"written by somebody else"
            case "reader again":
                self.readers = [
                    self.reader() if reader.step is None else reader for reader in self.readers
                ]
            case _:
                pass  # nothing to invalidate, or nobody to tell

    def reader(self) -> "Reader":
        self.calls += 1
        token = f"call {self.calls}"
        return Reader(
            read_through("price", codec=CODEC, policy=POLICY, token=token), oldest=self.settled
        )

    @property
    def settled(self) -> int:
        """The newest row that a reader who asks now must not be served anything older than."""
        return self.row - self.uninvalidated

    def perform(self, step: AnyStep) -> object:
        match step:
            case Load():
                return self.load()
            case Look():
                return float(self.now_ms), 0.5
            case Fetch() | Acquire() | Fill() | Release():
                if not self.is_up:
                    raise CacheSilence
                return self.answer(step)
            case _:
                return None

    def load(self) -> Loaded[int]:
        _, payload = CODEC.canonical(self.row)
        packed = CODEC.pack(
            self.row, payload, took_ms=0, now_ms=self.now_ms, policy=POLICY, jitter=0
        )
        assert packed is not None
        return Loaded(self.row, packed.raw, packed.ttl_ms)

    def answer(self, step: Fetch | Acquire | Fill | Release) -> object:  # noqa: PLR0911 -- as the scripts do
        """Do what the server does."""
        match step:
            case Fetch():
                return self.stored
            case Acquire(_, _, seen) if self.stored and not (seen and self.stored.startswith(seen)):
                return Found(self.stored)
            case Acquire(_, token) if self.lease in {None, token}:
                self.lease = token
                return Granted()
            case Acquire():
                return Taken(3)
            case Fill(_, token, raw) if self.lease == token:
                self.stored, self.lease = raw, None
                return True
            case Release(_, token) if self.lease == token:
                self.lease = None
                return 1
            case _:
                return 0


class Reader:
    """Performs one step each time it is its turn; other things happen in between."""

    def __init__(self, flow: Flow[Outcome[int]], *, oldest: int) -> None:
        self.flow = flow
        self.oldest = oldest
        self.step: AnyStep | None = next(flow)

    def advance(self, world: World) -> None:
        if self.step is None:
            return
        try:
            self.step = self._resume(world, self.step)
        except StopIteration as done:
            self.step = None
            world.served.append((self.oldest, done.value.value, world.row))

    def _resume(self, world: World, step: AnyStep) -> AnyStep:
        try:
            answer: Any = world.perform(step)
        except CacheSilence as error:
            return self.flow.throw(error)
        return self.flow.send(answer)


def play(schedule: list[int | str]) -> World:
    """Run the schedule, then let everybody finish."""
    world = World()
    world.readers = [world.reader() for _ in range(READERS)]
    for action in schedule:
        world.act(action)
    for action in ("cache is up", "invalidate"):
        world.act(action)
    for reader in world.readers:
        while reader.step is not None:
            reader.advance(world)
    return world


@thoroughly
@given(schedule=schedules)
def test_what_stays_in_the_cache_is_what_the_row_says(schedule: list[int | str]) -> None:
    world = play(schedule)

    stored = CODEC.parse(world.stored) if world.stored else None
    assert stored is None or stored.value == world.row


@thoroughly
@given(schedule=schedules)
def test_nobody_gets_what_was_forgotten_before_he_asked(schedule: list[int | str]) -> None:
    world = play(schedule)

    assert all(oldest <= value <= newest for oldest, value, newest in world.served)


@thoroughly
@given(schedule=schedules)
def test_no_lease_is_left_behind_that_nobody_holds(schedule: list[int | str]) -> None:
    world = play([action for action in schedule if action != "cache goes down"])

    assert world.lease is None
