"""What the cache-aside protocol asks for, and what it may be told.

A flow yields steps; a driver carries each out and sends its answer back, or throws `CacheSilence`
if Redis did not answer.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from datapatterns.change_log.snapshots import Xid

T = TypeVar("T")


class CacheSilence(Exception):  # noqa: N818 -- an answer within the protocol; no caller sees it
    """Redis did not answer, or not with what the protocol knows."""


class Wanted(NamedTuple):
    """An entry to read, and the tags that its value depends on."""

    entry: str
    tags: tuple[str, ...] = ()


class Fetched(NamedTuple):
    """What is stored for an entry, and the stamps that its tags carry now.

    Attributes:
        raw: The bytes; None for nothing.
        stamps: One for each tag, in order; None for a tag without one.
    """

    raw: bytes | None
    stamps: tuple[bytes | None, ...] = ()


class Step(Generic[T]):
    """Something that a driver does for a flow and answers with a ``T``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fetch(Step[Sequence[Fetched]]):
    """Read what is stored, and the stamps of the tags."""

    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Look(Step[tuple[float, float]]):
    """Tell the time in milliseconds since 1970, and draw a number above 0, at most 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """Somebody has stored a value in the meantime."""

    raw: bytes


Writers: TypeAlias = frozenset[Xid] | None
"""Transactions that have invalidated lately; None if they are too many, or were not asked for."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is ours: what we load may be stored, unless somebody invalidates before.

    Attributes:
        writers: Whose writes an older snapshot must show.
    """

    writers: Writers = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else holds the lease for at most this long."""

    left_ms: float


@dataclass(frozen=True, slots=True)
class Fenced:
    """A writer is about to commit; nothing may be stored."""


Answer: TypeAlias = Found | Granted | Taken | Fenced


class Ask(NamedTuple):
    """An entry whose lease is asked for.

    Attributes:
        entry: The entry.
        seen: The beginning of the value that is there and shall be replaced; empty for none.
    """

    entry: str
    seen: bytes = b""


@dataclass(frozen=True, slots=True)
class Acquire(Step[Sequence[Answer]]):
    """Become the one caller that may store a value for each entry, unless another is.

    Attributes:
        asks: The entries.
        token: A name for this call that no other call has.
        with_writers: Whether to say who has invalidated them lately.
    """

    asks: tuple[Ask, ...]
    token: str
    with_writers: bool = False


class Stamped(NamedTuple):
    """A tag's stamp, and whose writes an older snapshot must show."""

    stamp: bytes
    writers: Writers = None


@dataclass(frozen=True, slots=True)
class Stamp(Step[Sequence[Stamped | None]]):
    """Read the stamp of each tag before loading, and draw one for a tag that has none.

    The answer has None for a tag that a writer who is about to commit has fenced.
    """

    tags: tuple[str, ...]
    with_writers: bool = False


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """What the truth says, and how to store it.

    Attributes:
        value: What was loaded.
        raw: Its bytes, or None if it is not to be stored.
        ttl_ms: How long to keep them.
    """

    value: T
    raw: bytes | None
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Load(Step[Sequence[Loaded[Any]]]):
    """Compute values from the truth, by statements that begin now.

    Attributes:
        places: Which of the wanted entries, by their numbers.
        stamps: Those of each one's tags, to be stored with it; None if it is not to be stored.
        leased: Whether the caller is the only one; others share a limited number of places.
        writers: Whose writes must show in what is loaded from an older snapshot and stored.
    """

    places: tuple[int, ...]
    stamps: tuple[tuple[bytes, ...] | None, ...]
    leased: bool
    writers: Writers = None


class Filling(NamedTuple):
    """A value to store under an entry."""

    entry: str
    raw: bytes
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Fill(Step[Sequence[bool]]):
    """Store each value and give its lease back, if ``token`` still holds that."""

    fillings: tuple[Filling, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Release(Step[int]):
    """Give leases back without storing anything."""

    entries: tuple[str, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Pause(Step[None]):
    """Let some time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Note(Step[None]):
    """Count that something happened."""

    what: str
    amount: int = 1


AnyStep: TypeAlias = Fetch | Look | Acquire | Stamp | Load | Fill | Release | Pause | Note
Flow: TypeAlias = Generator[AnyStep, Any, T]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The value, and how it was come by.

    Attributes:
        value: The value.
        source: ``hit``, ``stale`` (served while another loads anew), ``filled`` (loaded and
            stored) or ``loaded`` (not stored: it may be older than a write by now).
    """

    value: T
    source: str

    @property
    def may_be_shared(self) -> bool:
        """Whether callers may have it that asked while it was being loaded."""
        return self.source != "loaded"


def ask(step: Step[T]) -> Generator[Any, Any, T]:
    """Return the answer to ``step``, of the type that belongs to it.

    mypy cannot know what a driver sends.
    """
    answer: T = yield step
    return answer
