"""However readers, writers, expiry and failures interleave, no stale value stays behind."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from datapatterns.cache_aside.codec import Codec
from datapatterns.cache_aside.flow import read_in_snapshot, read_through
from datapatterns.cache_aside.milestones import Milestone, Survey
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import (
    Acquire,
    Answer,
    AnyStep,
    Ask,
    CacheSilence,
    Fetch,
    Fetched,
    Fill,
    Filling,
    Flow,
    Found,
    Granted,
    Load,
    Loaded,
    Look,
    Outcome,
    Release,
    Stamp,
    Stamped,
    Taken,
    Wanted,
    Writers,
)
from datapatterns.change_log.snapshots import Snapshot, Xid

READERS = 4
CODEC: Codec[list[int]] = Codec(list[int])
POLICY = CachePolicy(
    ttl_seconds=1, stale_seconds=10, jitter=0, wait_seconds=0.01, negative_seconds=0
)
PRICE, STOCK = 0, 1
"""Two rows. Whoever writes the price forgets entries, whoever writes the stock forgets a tag."""

ROWS_OF = {"price": [PRICE], "stock": [STOCK], "page": [PRICE, STOCK]}
WANTED = {
    "price": Wanted("price"),
    "stock": Wanted("stock", ("stocks",)),
    "page": Wanted("page", ("stocks", "all")),
}
wishes = st.lists(st.sampled_from(sorted(WANTED)), min_size=1, max_size=3, unique=True)
events = [
    "commit price",
    "commit stock",
    "invalidate price",
    "invalidate stock",
    "lease expires",
    "evict",
    "evict stamp",
    "time passes",
    "cache goes down",
    "cache is up",
    "foreign bytes",
    "reader again",
    "somebody refreshes",
]
actions = st.integers(0, 2 * READERS - 1) | st.sampled_from(events)
# Long enough that a reader often loads in the middle of one: tried without the lease, and without
# comparing stamps.
schedules = st.lists(actions, min_size=15, max_size=60)
casts = st.lists(wishes, min_size=READERS, max_size=READERS)
thoroughly = settings(max_examples=6 * settings().max_examples)
# Fewer events and fewer readers, so that more of what they lead to is drawn: tried without the
# writers, and without a look at what was lost.
with_snapshots = st.lists(
    st.integers(READERS - 1, READERS + 1)
    | st.sampled_from(["early xid", "early commits price", "milestone", "evict writers"])
    | st.sampled_from(["commit price", "invalidate price", "commit stock", "invalidate stock"]),
    min_size=10,
    max_size=25,
)


@dataclass
class World:
    """Two rows, three entries made of them, and whoever reads and writes them."""

    cast: list[list[str]]
    has_snapshots: bool = False
    rows: list[int] = field(default_factory=lambda: [0, 0])
    uninvalidated: list[set[Xid]] = field(default_factory=lambda: [set(), set()])
    now_ms: int = 0
    stored: dict[str, bytes] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, bytes] = field(default_factory=dict)
    is_up: bool = True
    served: list["Served"] = field(default_factory=list)
    readers: list["Reader"] = field(default_factory=list)
    drawn: int = 0
    next_xid: int = 10
    early: Xid | None = None
    writers: dict[str, set[Xid]] = field(default_factory=dict)
    evicted: int = 0
    milestones: list[Milestone] = field(default_factory=list)

    def act(self, action: int | str) -> None:  # noqa: C901, PLR0912, PLR0915 -- a line per event
        match action:
            case int() if action < READERS:
                self.readers[action].advance(self)
            case int():
                self.readers[action - READERS].finish(self)
                self.replace_readers()
            case "commit price":
                self.commit(PRICE)
            case "commit stock":
                self.commit(STOCK)
            case "early commits price" if self.early is not None:
                # Others have drawn their ids later, and committed meanwhile.
                early, self.early = self.early, None
                self.commit(PRICE, early)
            case "invalidate price" | "invalidate stock" if self.is_up:
                self.invalidate(PRICE if action == "invalidate price" else STOCK)
            case "lease expires":
                self.leases.clear()
            case "evict":
                self.stored.clear()
            case "evict stamp":
                self.stamps.pop("stocks", None)
            case "time passes":
                self.now_ms += 600
            case "cache goes down":
                self.is_up = False
            case "cache is up":
                self.is_up = True
            case "foreign bytes":
                self.stored["page"] = b"written by somebody else"
            case "reader again" | "somebody refreshes":
                self.replace_readers(anew=action == "somebody refreshes")
            case "early xid" if self.early is None:
                self.early = self.xid()
            case "milestone":
                self.milestones.append(Milestone(0, str(self.evicted), self.snapshot()))
            case "evict writers":
                self.writers.clear()
                self.evicted += 1
            case _:
                pass  # nobody to tell

    def commit(self, row: int, early: Xid | None = None) -> None:
        self.rows[row] += 1
        self.uninvalidated[row].add(early or self.xid())

    def xid(self) -> Xid:
        self.next_xid += 1
        return Xid(self.next_xid - 1)

    def snapshot(self) -> Snapshot:
        running = () if self.early is None else (self.early,)
        return Snapshot(min((*running, Xid(self.next_xid))), Xid(self.next_xid), running)

    def invalidate(self, row: int) -> None:
        if row == STOCK:
            self.stamps.pop("stocks", None)
        for entry in ("price", "page") if row == PRICE else ():
            self.stored.pop(entry, None)
            self.leases.pop(entry, None)
        for name in ("price", "page") if row == PRICE else ("stocks",):
            self.writers.setdefault(name, set()).update(self.uninvalidated[row])
        self.uninvalidated[row] = set()

    def replace_readers(self, *, anew: bool = False) -> None:
        for number, reader in enumerate(self.readers):
            if reader.step is None:
                self.readers[number] = self.reader(number, anew=anew)

    def reader_in_snapshot(self, number: int) -> "Reader":
        wanted = WANTED[self.cast[number][0]]
        token = f"call {self.draw()}"
        flow = read_in_snapshot(
            wanted, codec=CODEC, policy=POLICY, token=token, may_hit=number > READERS / 2
        )
        view = View(self.snapshot(), [*self.rows])
        return Reader(flow, [wanted], oldest=self.settled(), view=view)

    def settled(self) -> list[int]:
        return [row - len(new) for row, new in zip(self.rows, self.uninvalidated, strict=True)]

    def reader(self, number: int, *, anew: bool = False) -> "Reader":
        if self.has_snapshots and number > 0:
            return self.reader_in_snapshot(number)
        wishes = [WANTED[name] for name in self.cast[number]]
        flow = read_through(
            wishes, codec=CODEC, policy=POLICY, token=f"call {self.draw()}", anew=anew
        )
        return Reader(flow, wishes, oldest=self.settled())

    def draw(self) -> int:
        self.drawn += 1
        return self.drawn

    def perform(self, step: AnyStep, wishes: list[Wanted], view: "View | None") -> object:
        match step:
            case Load(places, stamps):
                return [
                    self.load(wishes[place].entry, of_tags, step, view)
                    for place, of_tags in zip(places, stamps, strict=True)
                ]
            case Look():
                return float(self.now_ms), 0.5
            case Fetch() | Acquire() | Stamp() | Fill() | Release():
                if not self.is_up:
                    raise CacheSilence
                return self.answer(step)
            case _:
                return None

    def value(self, entry: str) -> list[int]:
        return [self.rows[row] for row in ROWS_OF[entry]]

    def load(
        self, entry: str, stamps: tuple[bytes, ...] | None, step: Load, view: "View | None"
    ) -> Loaded[list[int]]:
        value = self.value(entry)
        if view is not None:
            value = [view.rows[row] for row in ROWS_OF[entry]]
            survey = Survey(0, str(self.evicted), tuple(self.milestones))
            if not step.leased or not survey.admits(view.snapshot, step.writers):
                return Loaded(value, None, 0)
        _, payload = CODEC.canonical(value)
        packed = CODEC.pack(
            value, payload, took_ms=0, now_ms=self.now_ms, policy=POLICY, jitter=0,
            stamps=stamps or (),
        )  # fmt: skip
        assert packed is not None
        return Loaded(value, packed.raw, packed.ttl_ms)

    def answer(self, step: Fetch | Acquire | Stamp | Fill | Release) -> object:
        """Do what the server does."""
        match step:
            case Fetch(wanted):
                return [
                    Fetched(self.stored.get(each.entry), tuple(map(self.stamps.get, each.tags)))
                    for each in wanted
                ]
            case Acquire(asks, token):
                return [self.grant(ask, token) for ask in asks]
            case Stamp(tags):
                return [
                    Stamped(
                        self.stamps.setdefault(tag, self.draw().to_bytes(8)), self.writers_of(tag)
                    )
                    for tag in tags
                ]
            case Fill(fillings, token):
                return [self.fill(filling, token) for filling in fillings]
            case Release(entries, token):
                held = [entry for entry in entries if self.leases.get(entry) == token]
                for entry in held:
                    del self.leases[entry]
                return len(held)

    def grant(self, ask: Ask, token: str) -> Answer:
        there = self.stored.get(ask.entry)
        if there and not (ask.seen and there.startswith(ask.seen)):
            return Found(there)
        if self.leases.setdefault(ask.entry, token) != token:
            return Taken(3)
        return Granted(self.writers_of(ask.entry))

    def writers_of(self, name: str) -> Writers:
        return frozenset(self.writers.get(name, ()))

    def fill(self, filling: Filling, token: str) -> bool:
        if self.leases.get(filling.entry) != token:
            return False
        self.stored[filling.entry] = filling.raw
        del self.leases[filling.entry]
        return True


@dataclass
class Served:
    """What a reader got, and what it had to be between."""

    oldest: list[int]
    value: list[int]
    newest: list[int]


@dataclass(frozen=True)
class View:
    """The one moment that a transaction sees."""

    snapshot: Snapshot
    rows: list[int]


class Reader:
    """Performs one step each time it is its turn; other things happen in between."""

    def __init__(
        self,
        flow: Flow[list[Outcome[list[int]]]],
        wishes: list[Wanted],
        *,
        oldest: list[int],
        view: View | None = None,
    ) -> None:
        self.flow = flow
        self.view = view
        self.wishes = wishes
        self.oldest = oldest
        self.step: AnyStep | None = next(flow)

    def advance(self, world: World) -> None:
        if self.step is None:
            return
        try:
            self.step = self._resume(world, self.step)
        except StopIteration as done:
            self.step = None
            for wanted, outcome in zip(self.wishes, done.value, strict=True):
                oldest = [self.oldest[row] for row in ROWS_OF[wanted.entry]]
                world.served.append(Served(oldest, outcome.value, world.value(wanted.entry)))

    def finish(self, world: World) -> None:
        while self.step is not None:
            self.advance(world)

    def _resume(self, world: World, step: AnyStep) -> AnyStep:
        try:
            answer: Any = world.perform(step, self.wishes, self.view)
        except CacheSilence as error:
            return self.flow.throw(error)
        return self.flow.send(answer)


def play(schedule: list[int | str], cast: list[list[str]], *, has_snapshots: bool = False) -> World:
    """Run the schedule, then let everybody finish."""
    world = World(cast, has_snapshots)
    world.readers = [world.reader(number) for number in range(READERS)]
    for action in schedule:
        world.act(action)
    for action in ("cache is up", "invalidate price", "invalidate stock"):
        world.act(action)
    for reader in world.readers:
        reader.finish(world)
    return world


@thoroughly
@given(schedule=schedules, cast=casts)
def test_what_stays_in_the_cache_is_what_the_rows_say(
    schedule: list[int | str], cast: list[list[str]]
) -> None:
    is_absent_or_equal(play(schedule, cast))


@thoroughly
@given(schedule=with_snapshots, cast=casts)
def test_also_where_readers_see_one_moment_that_may_be_older_than_their_lease(
    schedule: list[int | str], cast: list[list[str]]
) -> None:
    is_absent_or_equal(play(schedule, cast, has_snapshots=True))


def is_absent_or_equal(world: World) -> None:
    for entry, raw in world.stored.items():
        stored = CODEC.parse(raw)
        stamps = tuple(world.stamps.get(tag) for tag in WANTED[entry].tags)
        assert stored is None or stored.stamps != stamps or stored.value == world.value(entry)


@thoroughly
@given(schedule=schedules, cast=casts)
def test_nobody_gets_what_was_forgotten_before_he_asked(
    schedule: list[int | str], cast: list[list[str]]
) -> None:
    world = play(schedule, cast)

    for served in world.served:
        bounds = zip(served.oldest, served.value, served.newest, strict=True)
        assert all(oldest <= value <= newest for oldest, value, newest in bounds), served


@thoroughly
@given(schedule=schedules, cast=casts)
def test_no_lease_is_left_behind_that_nobody_holds(
    schedule: list[int | str], cast: list[list[str]]
) -> None:
    world = play([action for action in schedule if action != "cache goes down"], cast)

    assert world.leases == {}
