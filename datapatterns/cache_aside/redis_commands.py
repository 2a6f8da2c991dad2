"""What the sync and the async driver say to Redis or Valkey, said once.

The keys of one entry differ in what comes first, so that a client can watch the values alone; the
braces keep them in one slot of a cluster. Every script may be repeated after a lost reply.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from secrets import token_bytes
from typing import TypeAlias

from datapatterns.cache_aside.codec import STAMP_BYTES
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
    Taken,
    Wanted,
)

Command: TypeAlias = tuple[str | bytes | int, ...]
RedisStep: TypeAlias = Fetch | Acquire | Stamp | Fill | Release


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, sent by its hash first and in full if the server does not know it."""

    source: str
    sha: str

    def by_hash(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        """Return the call that any server which has seen the script understands."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


def _script(source: str) -> Script:
    # Redis names scripts by SHA-1; nothing is protected by it.
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


# KEYS value, lease, fences per entry. ARGV token, lease in ms, then per entry the beginning of the
# value to replace. An empty value is nobody's: to report it as found would make the caller ask for
# ever.
ACQUIRE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {}
for i = 1, #KEYS, 3 do
  local seen, value = ARGV[3 + (i - 1) / 3], redis.call('GET', KEYS[i])
  if value and value ~= '' and (seen == '' or string.sub(value, 1, #seen) ~= seen) then
    out[#out + 1] = {1, value}
  else
    redis.call('ZREMRANGEBYSCORE', KEYS[i + 2], '-inf', now)
    if redis.call('ZCARD', KEYS[i + 2]) > 0 then
      out[#out + 1] = {4}
    elseif redis.call('SET', KEYS[i + 1], ARGV[1], 'PX', ARGV[2], 'NX')
           or redis.call('GET', KEYS[i + 1]) == ARGV[1] then
      out[#out + 1] = {2}
    else
      out[#out + 1] = {3, redis.call('PTTL', KEYS[i + 1])}
    end
  end
end
return out
""")

# KEYS value, lease, fences per entry. ARGV token, then value and its life in ms per entry. A lease
# that was lost loses its entry, not the others.
FILL = _script("""
local out, j = {}, 2
for i = 1, #KEYS, 3 do
  if redis.call('GET', KEYS[i + 1]) == ARGV[1] and redis.call('ZCARD', KEYS[i + 2]) == 0 then
    redis.call('SET', KEYS[i], ARGV[j], 'PX', ARGV[j + 1])
    redis.call('DEL', KEYS[i + 1])
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
  j = j + 2
end
return out
""")

# KEYS lease per entry. ARGV token.
RELEASE = _script("""
local n = 0
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then n = n + redis.call('DEL', KEYS[i]) end
end
return n
""")

# KEYS stamp, fences per tag. ARGV life of a stamp in ms, twice that of any value, then a fresh
# stamp per tag. A random stamp that was evicted never comes back, as a counter's value does. It is
# seldom prolonged: whoever watches it is told, and takes away what depends on the tag.
STAMP = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {}
for i = 1, #KEYS, 2 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 1], '-inf', now)
  if redis.call('ZCARD', KEYS[i + 1]) > 0 then
    out[#out + 1] = false
  elseif redis.call('SET', KEYS[i], ARGV[2 + (i - 1) / 2], 'PX', ARGV[1], 'NX') then
    out[#out + 1] = ARGV[2 + (i - 1) / 2]
  else
    if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[1]) / 2 then
      redis.call('PEXPIRE', KEYS[i], ARGV[1])
    end
    out[#out + 1] = redis.call('GET', KEYS[i])
  end
end
return out
""")

# KEYS value, lease, writers per entry. ARGV life of a writer's trace in ms, then transaction ids.
# The traces are for loaders with older snapshots: they must not store what these did not write.
INVALIDATE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS, 3 do
  redis.call('UNLINK', KEYS[i], KEYS[i + 1])
  for j = 2, #ARGV do redis.call('ZADD', KEYS[i + 2], now, ARGV[j]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 2], '-inf', '(' .. (now - ARGV[1]))
  redis.call('PEXPIRE', KEYS[i + 2], ARGV[1])
end
return #KEYS / 3
""")

# KEYS stamp, writers per tag. ARGV as above. Every value under the old stamp is dead at once.
INVALIDATE_TAGS = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS, 2 do
  redis.call('UNLINK', KEYS[i])
  for j = 2, #ARGV do redis.call('ZADD', KEYS[i + 1], now, ARGV[j]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 1], '-inf', '(' .. (now - ARGV[1]))
  redis.call('PEXPIRE', KEYS[i + 1], ARGV[1])
end
return #KEYS / 2
""")

SCRIPTS = {
    script.sha: script for script in (ACQUIRE, FILL, RELEASE, STAMP, INVALIDATE, INVALIDATE_TAGS)
}
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


def server_key(prefix: str) -> str:
    """Return the key by which the relay vouches for a server."""
    return f"{prefix}server"


def command_for(step: RedisStep, *, prefix: str, policy: CachePolicy) -> Command:
    """Return the command that carries ``step`` out."""
    match step:
        case Fetch(wanted):
            values = [value_key(prefix, each.entry) for each in wanted]
            return "MGET", *values, *(stamp_key(prefix, tag) for tag in _tags_of(step))
        case Acquire(asks, token):
            keys = _keys(prefix, (ask.entry for ask in asks), "value", "lease", "fences")
            lease_ms = milliseconds(policy.lease_seconds)
            return ACQUIRE.by_hash(keys, (token, lease_ms, *(ask.seen for ask in asks)))
        case Stamp(tags):
            keys = _keys(prefix, map(_of_tag, tags), "stamp", "fences")
            life_ms = milliseconds(4 * (policy.ttl_seconds + policy.stale_seconds))
            return STAMP.by_hash(keys, (life_ms, *(token_bytes(STAMP_BYTES) for _ in tags)))
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
            return [_granted(each) for each in reply]
        case Stamp(tags), list() if len(reply) == len(tags):
            return reply
        case Fill(fillings), list() if len(reply) == len(fillings):
            return [each == 1 for each in reply]
    raise CacheSilence(f"an unexpected reply to {type(step).__name__}")


def invalidations_of(
    entries: Iterable[str],
    tags: Iterable[str],
    *,
    prefix: str,
    xids: Sequence[str],
    policy: CachePolicy,
) -> list[Command]:
    """Return the commands that forget ``entries`` and void every load of them under way.

    The same for each value that depends on one of ``tags``.
    """
    arguments: tuple[str | int, ...] = (milliseconds(policy.writers_seconds), *xids)
    return [
        *(
            INVALIDATE.by_hash(_keys(prefix, names, "value", "lease", "writers"), arguments)
            for names in _portions(entries)
        ),
        *(
            INVALIDATE_TAGS.by_hash(
                _keys(prefix, map(_of_tag, names), "stamp", "writers"), arguments
            )
            for names in _portions(tags)
        ),
    ]


def milliseconds(seconds: float) -> int:
    """Return ``seconds`` in milliseconds, at least one: Redis refuses to keep a key for none."""
    return max(1, round(seconds * 1000))


def _granted(reply: object) -> Answer:
    match reply:
        case [1, bytes(raw)]:
            return Found(raw)
        case [2]:
            return Granted()
        case [3, int(left_ms)]:
            return Taken(left_ms)
        case [4]:
            return Fenced()
        case _:
            raise CacheSilence("an unexpected reply to Acquire")


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
