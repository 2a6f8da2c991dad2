"""What the sync and the async driver say to Redis or Valkey, said once.

The keys of one entry differ in what comes first, so that a client can watch the values alone; the
braces keep them in one slot of a cluster. Every script may be repeated after a lost reply.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import TypeAlias

from datapatterns.cache_aside.flow import (
    Acquire,
    CacheSilence,
    Fenced,
    Fetch,
    Fill,
    Found,
    Granted,
    Release,
    Taken,
)
from datapatterns.cache_aside.policy import CachePolicy

Command: TypeAlias = tuple[str | bytes | int, ...]
RedisStep: TypeAlias = Fetch | Acquire | Fill | Release


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


# KEYS value, lease, writers, fences. ARGV token, lease in ms, beginning of the value to replace.
# An empty value is nobody's: to report it as found would make the caller ask for ever.
ACQUIRE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local seen, value = ARGV[3], redis.call('GET', KEYS[1])
if value and value ~= '' and (seen == '' or string.sub(value, 1, #seen) ~= seen) then
  return {1, value}
end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
if redis.call('ZCARD', KEYS[4]) > 0 then return {4} end
if redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2], 'NX')
   or redis.call('GET', KEYS[2]) == ARGV[1] then
  return {2}
end
return {3, redis.call('PTTL', KEYS[2])}
""")

# KEYS value, lease, fences. ARGV token, value, its life in ms.
FILL = _script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('ZCARD', KEYS[3]) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return 1
""")

# KEYS lease. ARGV token.
RELEASE = _script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
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

SCRIPTS = {script.sha: script for script in (ACQUIRE, FILL, RELEASE, INVALIDATE)}
_ENTRIES_PER_CALL = 500


def value_key(prefix: str, entry: str) -> str:
    """Return the key under which the value of ``entry`` is kept."""
    return f"{prefix}value:{{{entry}}}"


def server_key(prefix: str) -> str:
    """Return the key by which the relay vouches for a server."""
    return f"{prefix}server"


def command_for(step: RedisStep, *, prefix: str, policy: CachePolicy) -> Command:
    """Return the command that carries ``step`` out."""
    value, lease, writers, fences = _keys(prefix, step.entry)
    match step:
        case Fetch():
            return "GET", value
        case Acquire(_, token, seen):
            lease_ms = milliseconds(policy.lease_seconds)
            return ACQUIRE.by_hash((value, lease, writers, fences), (token, lease_ms, seen))
        case Fill(_, token, raw, ttl_ms):
            return FILL.by_hash((value, lease, fences), (token, raw, ttl_ms))
        case Release(_, token):
            return RELEASE.by_hash((lease,), (token,))


def answer_to(step: RedisStep, reply: object) -> object:
    """Return what the flow expects as the answer to ``step``.

    Raises:
        CacheSilence: The reply is none that the command can have.
    """
    match step, reply:
        case (Fetch(), bytes() | None) | (Release(), int()):
            answer: object = reply
        case Acquire(), [1, bytes(raw)]:
            answer = Found(raw)
        case Acquire(), [2]:
            answer = Granted()
        case Acquire(), [3, int(left_ms)]:
            answer = Taken(left_ms)
        case Acquire(), [4]:
            answer = Fenced()
        case Fill(), int():
            answer = reply == 1
        case _:
            raise CacheSilence(f"an unexpected reply to {type(step).__name__}")
    return answer


def invalidations_of(
    entries: Iterable[str], *, prefix: str, xids: Sequence[str], policy: CachePolicy
) -> list[Command]:
    """Return the commands that forget ``entries`` and void every load of them under way."""
    names = sorted(set(entries))
    arguments: tuple[str | int, ...] = (milliseconds(policy.writers_seconds), *xids)
    return [
        INVALIDATE.by_hash(
            [key for entry in names[start : start + _ENTRIES_PER_CALL]
             for key in _keys(prefix, entry)[:3]],
            arguments,
        )
        for start in range(0, len(names), _ENTRIES_PER_CALL)
    ]  # fmt: skip


def milliseconds(seconds: float) -> int:
    """Return ``seconds`` in milliseconds, at least one: Redis refuses to keep a key for none."""
    return max(1, round(seconds * 1000))


def _keys(prefix: str, entry: str) -> tuple[str, str, str, str]:
    return (
        f"{prefix}value:{{{entry}}}",
        f"{prefix}lease:{{{entry}}}",
        f"{prefix}writers:{{{entry}}}",
        f"{prefix}fences:{{{entry}}}",
    )
