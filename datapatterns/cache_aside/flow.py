"""The cache-aside protocol without I/O: what to do next, given the answers so far.

A flow yields steps; a driver carries each out and sends its answer back, or throws `CacheSilence`
if Redis did not answer. There is a driver for threads, one for asyncio and, in the tests, one
that plays any interleaving.
"""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from datapatterns.cache_aside.codec import HEADER_BYTES, Codec, Stored, is_due
from datapatterns.cache_aside.policy import CachePolicy

T = TypeVar("T")

_PAUSE_MS_FIRST, _PAUSE_MS_MAX = 5.0, 50.0
_ACQUIRE_AT_MOST = 1_000


class CacheSilence(Exception):  # noqa: N818 -- an answer within the protocol; no caller sees it
    """Redis did not answer, or not with what the protocol knows."""


class Step(Generic[T]):
    """Something that a driver does for a flow and answers with a ``T``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fetch(Step[bytes | None]):
    """Read the stored bytes, if there are any."""

    entry: str


@dataclass(frozen=True, slots=True)
class Look(Step[tuple[float, float]]):
    """Tell the time in milliseconds since 1970, and draw a number above 0, at most 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """Somebody has stored a value in the meantime."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is ours: what we load may be stored, unless somebody invalidates before."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else holds the lease for at most this long."""

    left_ms: float


@dataclass(frozen=True, slots=True)
class Fenced:
    """A writer is about to commit; nothing may be stored."""


@dataclass(frozen=True, slots=True)
class Acquire(Step[Found | Granted | Taken | Fenced]):
    """Become the one caller that may store a value, unless another is.

    Attributes:
        entry: The entry.
        token: A name for this call that no other call has.
        seen: The beginning of the value that is there and shall be replaced; empty for none.
    """

    entry: str
    token: str
    seen: bytes


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
class Load(Step[Loaded[Any]]):
    """Compute the value from the truth, by statements that begin now.

    Attributes:
        leased: Whether the caller is the only one; others share a limited number of places.
    """

    leased: bool


@dataclass(frozen=True, slots=True)
class Fill(Step[bool]):
    """Store the value and give the lease back, if ``token`` still holds it."""

    entry: str
    token: str
    raw: bytes
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Release(Step[int]):
    """Give the lease back without storing anything."""

    entry: str
    token: str


@dataclass(frozen=True, slots=True)
class Pause(Step[None]):
    """Let some time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Note(Step[None]):
    """Count that something happened."""

    what: str


AnyStep: TypeAlias = Fetch | Look | Acquire | Load | Fill | Release | Pause | Note
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


def read_through(
    entry: str, *, codec: Codec[T], policy: CachePolicy, token: str
) -> Flow[Outcome[T]]:
    """Return the stored value, or load it and store it for others.

    A value that was loaded before an invalidation is never stored after it: invalidating takes
    the lease away, and only its holder can store. The price: while one caller loads, the others
    wait, at most ``policy.wait_seconds``.

    Source: Nishtala et al., "Scaling Memcache at Facebook" (2013), section 3.2.1.

    Args:
        entry: The entry.
        codec: What tells a value from what others left there.
        policy: The times to live by.
        token: A name for this call that no other call has.
    """
    granted = False
    with suppress(CacheSilence):
        found = yield from _value_or_lease(entry, codec=codec, policy=policy, token=token)
        if isinstance(found, Outcome):
            return found
        granted = found
    if granted:
        return (yield from _load_and_fill(entry, token=token))
    # Redis is silent, fenced, or whoever holds the lease is slow or dead. Each may cost the
    # caller time, but never the answer; what is loaded without a lease is not stored.
    loaded = yield from _ask(Load(leased=False))
    return Outcome(loaded.value, "loaded")


def _value_or_lease(
    entry: str, *, codec: Codec[T], policy: CachePolicy, token: str
) -> Flow[Outcome[T] | bool]:
    """Return a value, True for the lease, or False for neither."""
    waited_ms, pause_ms = 0.0, _PAUSE_MS_FIRST
    raw = yield from _ask(Fetch(entry))
    for _ in range(_ACQUIRE_AT_MOST):
        stored = codec.parse(raw) if raw else None
        if stored is not None and not (yield from _is_due(stored, policy)):
            return Outcome(stored.value, "hit")
        if raw and stored is None:
            yield from _ask(Note("foreign"))
        answer = yield from _ask(Acquire(entry, token, (raw or b"")[:HEADER_BYTES]))
        match answer:
            case Found(raw):
                continue
            case Granted():
                return True
            case Taken() if stored is not None:
                return Outcome(stored.value, "stale")
            case Taken(left_ms) if waited_ms < policy.wait_seconds * 1000:
                pause_ms = max(1.0, min(left_ms, pause_ms))
                yield from _ask(Note("waits"))
                yield from _ask(Pause(pause_ms / 1000))
                waited_ms += pause_ms
                pause_ms = min(pause_ms * 2, _PAUSE_MS_MAX)
                raw = yield from _ask(Fetch(entry))
            case _:
                return False
    return False


def _is_due(stored: Stored[Any], policy: CachePolicy) -> Flow[bool]:
    now_ms, uniform = yield from _ask(Look())
    return is_due(
        stored.soft_expiry_ms,
        stored.took_ms,
        now_ms=now_ms,
        early_refresh=policy.early_refresh,
        uniform=uniform,
    )


def _load_and_fill(entry: str, *, token: str) -> Flow[Outcome[Any]]:
    try:
        loaded = yield from _ask(Load(leased=True))
    except GeneratorExit:
        raise
    except BaseException:
        # Whoever waits for the lease need not wait it out.
        with suppress(CacheSilence):
            yield from _ask(Release(entry, token))
        raise
    filled = False
    with suppress(CacheSilence):  # stored or not, it is right for this caller
        if loaded.raw is None:
            yield from _ask(Release(entry, token))
        else:
            filled = yield from _ask(Fill(entry, token, loaded.raw, loaded.ttl_ms))
            if not filled:
                yield from _ask(Note("refused"))
    return Outcome(loaded.value, "filled" if filled else "loaded")


def _ask(step: Step[T]) -> Generator[Any, Any, T]:
    # Ties the answer's type to the step's: mypy cannot know what a driver sends.
    answer: T = yield step
    return answer
