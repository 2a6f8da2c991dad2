"""What the sync and the async driver say to Redis or Valkey, said once."""

from collections.abc import Iterable, Iterator, Sequence
from secrets import token_bytes, token_hex
from typing import TypeAlias

from datapatterns.cache_aside.codec import STAMP_BYTES
from datapatterns.cache_aside.lua_scripts import (
    ACQUIRE,
    FENCE,
    FILL,
    INVALIDATE,
    INVALIDATE_TAGS,
    KEEP_MILESTONES,
    RELEASE,
    STAMP,
    SURVEY,
    UNFENCE,
    WRITERS_MAX,
    Command,
)
from datapatterns.cache_aside.milestones import WRITERS_MS, Milestone, Survey
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.steps import (
    Acquire,
    Answer,
    CacheSilence,
    Fenced,
    Fetch,
    Fetched,
    Fill,
    Found,
    Granted,
    Release,
    Stamp,
    Stamped,
    Taken,
    Wanted,
    Writers,
)
from datapatterns.change_log.snapshots import Snapshot, Xid

RedisStep: TypeAlias = Fetch | Acquire | Stamp | Fill | Release

_ROLES = ("value", "lease", "writers", "fences")
_TAG_ROLES = ("stamp", "writers", "fences")
ENTRIES_PER_CALL = 500
"""More than that would keep other clients of the server waiting."""


def value_key(prefix: str, entry: str) -> str:
    """Return the key under which the value of ``entry`` is kept."""
    return f"{prefix}value:{{{entry}}}"


def stamp_key(prefix: str, tag: str) -> str:
    """Return the key under which the stamp of ``tag`` is kept."""
    return f"{prefix}stamp:{{tag:{tag}}}"


def values_beginning(prefix: str, cache: str) -> str:
    """Return what the keys of all values of one cache begin with."""
    return f"{prefix}value:{{{cache}:"


def stamps_beginning(prefix: str) -> str:
    """Return what the keys of all stamps begin with."""
    return f"{prefix}stamp:{{tag:"


def name_in(key: str) -> tuple[str, str]:
    """Return the entry of a value's key, or the tag of a stamp's; the other is empty."""
    _, _, role, name = key.split(":", 3)
    name = name[1:-1]
    return (name, "") if role == "value" else ("", name.removeprefix("tag:"))


def server_key(prefix: str, tag: str = "") -> str:
    """Return the key by which the relay vouches for a server, that of a ``tag`` in a cluster."""
    return f"{prefix}server{tag}"


def command_for(step: RedisStep, *, prefix: str, policy: CachePolicy) -> Command:
    """Return the command that carries ``step`` out."""
    match step:
        case Fetch(wanted):
            values = [value_key(prefix, each.entry) for each in wanted]
            return "MGET", *values, *(stamp_key(prefix, tag) for tag in _tags_of(step))
        case Acquire(asks, token, with_writers):
            entries = (ask.entry for ask in asks)
            keys = _keys(prefix, entries, *_ROLES)
            arguments = (token, milliseconds(policy.lease_seconds), WRITERS_MAX * with_writers)
            return ACQUIRE.by_hash(keys, (*arguments, *(ask.seen for ask in asks)))
        case Stamp(tags, with_writers):
            keys = _keys(prefix, map(_of_tag, tags), *_TAG_ROLES)
            longest = max(policy.ttl_seconds + policy.stale_seconds, policy.negative_seconds)
            life_ms = milliseconds(4 * longest)
            stamps = (token_bytes(STAMP_BYTES) for _ in tags)
            return STAMP.by_hash(keys, (life_ms, WRITERS_MAX * with_writers, *stamps))
        case Fill(fillings, token):
            keys = _keys(prefix, (each.entry for each in fillings), "value", "lease", "fences")
            return FILL.by_hash(
                keys, (token, *(part for each in fillings for part in (each.raw, each.ttl_ms)))
            )
        case Release(entries, token):
            return RELEASE.by_hash(_keys(prefix, entries, "lease"), (token,))


def glance_at(wanted: Wanted, prefix: str) -> Command:
    """Return the shortest command that reads one entry; see `glimpse_of`."""
    entry, tags = wanted
    if not tags:  # the shortest of all ways: nothing is called that need not be
        return "GET", f"{prefix}value:{{{entry}}}"
    return "MGET", value_key(prefix, entry), *(stamp_key(prefix, tag) for tag in tags)


def glimpse_of(reply: object) -> Fetched:
    """Return what is there, by the reply to `glance_at`."""
    if isinstance(reply, bytes):
        return Fetched(reply)
    match reply:
        case [bytes(raw), *stamps]:
            return Fetched(raw, tuple(s if isinstance(s, bytes) else None for s in stamps))
        case _:
            return Fetched(None)


def answer_to(step: RedisStep, reply: object) -> object:
    """Return what the flow expects as the answer to ``step``.

    Raises:
        CacheSilence: The reply is none that the command can have.
    """
    match step, reply:
        case Release(), int():
            return reply
        case Fetch(wanted), list() if len(reply) == len(wanted) + len(tags := _tags_of(step)):
            stamps = dict(zip(tags, reply[len(wanted) :], strict=True))
            return [
                Fetched(raw, tuple([stamps[tag] for tag in each.tags]))
                for each, raw in zip(wanted, reply, strict=False)
            ]
        case Acquire(asks), list() if len(reply) == len(asks):
            return [_granted(each, step.with_writers) for each in reply]
        case Stamp(tags), list() if len(reply) == len(tags):
            return [each and _stamped(each, step.with_writers) for each in reply]
        case Fill(fillings), list() if len(reply) == len(fillings):
            return [each == 1 for each in reply]
    raise CacheSilence(f"an unexpected reply to {type(step).__name__}")


def invalidations_of(
    entries: Iterable[str],
    tags: Iterable[str],
    *,
    prefix: str,
    xid: Xid,
    takes_down: bool = True,
) -> list[Command]:
    """Return the commands that forget ``entries`` and void every load of them under way.

    The same for each value that depends on one of ``tags``. The fences of transaction ``xid``
    fall, unless it may yet commit.
    """
    arguments = (WRITERS_MS, str(xid), int(takes_down))
    return [
        *(
            INVALIDATE.by_hash(
                _keys(prefix, names, "value", "lease", "writers", "fences"), arguments
            )
            for names in _portions(entries)
        ),
        *(
            INVALIDATE_TAGS.by_hash(_keys(prefix, map(_of_tag, names), *_TAG_ROLES), arguments)
            for names in _portions(tags)
        ),
    ]


def fences_around(
    entries: Iterable[str], tags: Iterable[str], *, prefix: str, xid: Xid, life_ms: int
) -> list[Command]:
    """Return the commands that forget the same, and let nobody store it while ``xid`` commits."""
    arguments = (WRITERS_MS, str(xid), life_ms)
    return [
        *(FENCE.by_hash(_keys(prefix, names, *_ROLES), arguments) for names in _portions(entries)),
        *(
            FENCE.by_hash(_keys(prefix, map(_of_tag, names), "stamp", *_TAG_ROLES), arguments)
            for names in _portions(tags)
        ),
    ]


def without_fences_around(
    entries: Iterable[str], tags: Iterable[str], *, prefix: str, xid: Xid
) -> list[Command]:
    """Return the commands that take the fences of ``xid`` down again."""
    return [
        UNFENCE.by_hash(_keys(prefix, names, "fences"), (str(xid),))
        for names in _portions((*entries, *map(_of_tag, tags)))
    ]


def survey_of(prefix: str, *, begins: bool = False) -> Command:
    """Return the command that asks what Redis may have lost; see `survey_in`.

    Args:
        prefix: What the keys begin with.
        begins: Whether to begin a list of milestones if there is none.
    """
    beginning = token_hex(8) if begins else ""
    return SURVEY.by_hash([f"{prefix}milestones"], (beginning, WRITERS_MS))


def survey_in(reply: object) -> Survey:
    """Return what the reply to `survey_of` says.

    Raises:
        CacheSilence: It is none that the command can have.
    """
    match reply:
        case [int(server_ms), bytes(losses), bytes(kept)]:
            beginning, *lines = kept.decode(errors="replace").split("\n")
        case [int(server_ms), bytes(losses), None]:
            # Nobody knows since when; so this is equal to no other survey.
            beginning, lines = "", []
        case _:
            raise CacheSilence("an unexpected reply to a survey")
    try:
        milestones = tuple(map(Milestone.parse, lines))
    except ValueError as error:
        raise CacheSilence("milestones that nobody of us has written") from error
    return Survey(server_ms, f"{losses.decode(errors='replace')}:{beginning}", milestones)


def milestone_at(prefix: str, survey: Survey, snapshot: Snapshot) -> Command:
    """Return the command that keeps a milestone: ``snapshot`` was taken after ``survey``."""
    beginning = survey.losses.rpartition(":")[2]
    lines = [beginning, *map(str, survey.with_milestone(snapshot))]
    return KEEP_MILESTONES.by_hash(
        [f"{prefix}milestones"], (beginning, "\n".join(lines), WRITERS_MS)
    )


def milliseconds(seconds: float) -> int:
    """Return ``seconds`` in milliseconds, at least one: Redis refuses to keep a key for none."""
    return max(1, round(seconds * 1000))


def _granted(reply: object, with_writers: bool) -> Answer:  # noqa: FBT001 -- as it was asked
    match reply:
        case [1, bytes(raw)]:
            return Found(raw)
        case [2, list(writers)]:
            return Granted(_writers_in(writers) if with_writers else None)
        case [3, int(left_ms)]:
            return Taken(left_ms)
        case [4]:
            return Fenced()
        case _:
            raise CacheSilence("an unexpected reply to Acquire")


def _stamped(reply: object, with_writers: bool) -> Stamped:  # noqa: FBT001 -- as it was asked
    match reply:
        case [bytes(stamp), list(writers)]:
            return Stamped(stamp, _writers_in(writers) if with_writers else None)
        case _:
            raise CacheSilence("an unexpected reply to Stamp")


def _writers_in(members: Sequence[object]) -> Writers:
    if len(members) > WRITERS_MAX:
        return None
    try:
        return frozenset(Xid(int(member)) for member in members if isinstance(member, bytes))
    except ValueError as error:
        raise CacheSilence("a writer that nobody of us has named") from error


def _tags_of(step: Fetch) -> list[str]:
    return [*dict.fromkeys(tag for each in step.wanted for tag in each.tags)]


def _of_tag(tag: str) -> str:
    return f"tag:{tag}"


def _keys(prefix: str, names: Iterable[str], *roles: str) -> list[str]:
    return [f"{prefix}{role}:{{{name}}}" for name in names for role in roles]


def _portions(names: Iterable[str]) -> Iterator[Sequence[str]]:
    distinct = sorted(set(names))
    for start in range(0, len(distinct), ENTRIES_PER_CALL):
        yield distinct[start : start + ENTRIES_PER_CALL]
