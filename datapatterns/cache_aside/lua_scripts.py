"""What the cache-aside protocol does within Redis or Valkey, each in one step.

The keys of one entry differ in what comes first, so that a client can watch the values alone; the
braces keep them in one slot of a cluster. Every script may be repeated after a lost reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Final, TypeAlias

Command: TypeAlias = tuple[str | bytes | int, ...]

WRITERS_MAX: Final = 1_000
"""More transactions than this that invalidated lately are as good as unknown."""


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


# KEYS value, lease, writers, fences per entry. ARGV token, lease in ms, how many writers to tell
# of, then per entry the beginning of the value to replace. An empty value is nobody's: to report it
# as found would make the caller ask for ever.
ACQUIRE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {}
for i = 1, #KEYS, 4 do
  local seen, value = ARGV[4 + (i - 1) / 4], redis.call('GET', KEYS[i])
  if value and value ~= '' and (seen == '' or string.sub(value, 1, #seen) ~= seen) then
    out[#out + 1] = {1, value}
  else
    redis.call('ZREMRANGEBYSCORE', KEYS[i + 3], '-inf', now)
    if redis.call('ZCARD', KEYS[i + 3]) > 0 then
      out[#out + 1] = {4}
    elseif redis.call('SET', KEYS[i + 1], ARGV[1], 'PX', ARGV[2], 'NX')
           or redis.call('GET', KEYS[i + 1]) == ARGV[1] then
      local writers = ARGV[3] == '0' and {} or redis.call('ZRANGE', KEYS[i + 2], 0, ARGV[3])
      out[#out + 1] = {2, writers}
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

# KEYS stamp, writers, fences per tag. ARGV life of a stamp in ms, twice that of any value, how many
# writers to tell of, then a fresh stamp per tag. A random stamp that was evicted never comes back,
# as a counter's value does. It is seldom prolonged: whoever watches it is told, and takes away what
# depends on the tag.
STAMP = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {}
for i = 1, #KEYS, 3 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 2], '-inf', now)
  if redis.call('ZCARD', KEYS[i + 2]) > 0 then
    out[#out + 1] = false
  else
    local stamp = ARGV[3 + (i - 1) / 3]
    if not redis.call('SET', KEYS[i], stamp, 'PX', ARGV[1], 'NX') then
      if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[1]) / 2 then
        redis.call('PEXPIRE', KEYS[i], ARGV[1])
      end
      stamp = redis.call('GET', KEYS[i])
    end
    out[#out + 1] = {stamp, ARGV[2] == '0' and {} or redis.call('ZRANGE', KEYS[i + 1], 0, ARGV[2])}
  end
end
return out
""")

# KEYS value, lease, writers, fences per entry. ARGV life of a writer's trace in ms, transaction id,
# whether its fence falls. The traces are for loaders with older snapshots.
INVALIDATE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS, 4 do
  redis.call('UNLINK', KEYS[i], KEYS[i + 1])
  redis.call('ZADD', KEYS[i + 2], now, ARGV[2])
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 2], '-inf', '(' .. (now - ARGV[1]))
  redis.call('PEXPIRE', KEYS[i + 2], ARGV[1])
  if ARGV[3] == '1' then redis.call('ZREM', KEYS[i + 3], ARGV[2]) end
end
return #KEYS / 4
""")

# KEYS stamp, writers, fences per tag. ARGV as above. Every value under the old stamp is dead at
# once.
INVALIDATE_TAGS = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS, 3 do
  redis.call('UNLINK', KEYS[i])
  redis.call('ZADD', KEYS[i + 1], now, ARGV[2])
  redis.call('ZREMRANGEBYSCORE', KEYS[i + 1], '-inf', '(' .. (now - ARGV[1]))
  redis.call('PEXPIRE', KEYS[i + 1], ARGV[1])
  if ARGV[3] == '1' then redis.call('ZREM', KEYS[i + 2], ARGV[2]) end
end
return #KEYS / 3
""")

# KEYS value, lease, writers, fences per entry; stamp, stamp, writers, fences per tag. ARGV life of
# a trace in ms, transaction id, life of the fence in ms. The trace is left now already: the writer
# may die after its COMMIT, and an older snapshot does not show it before.
FENCE = _script("""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS, 4 do
  redis.call('UNLINK', KEYS[i], KEYS[i + 1])
  redis.call('ZADD', KEYS[i + 2], now, ARGV[2])
  redis.call('PEXPIRE', KEYS[i + 2], ARGV[1])
  redis.call('ZADD', KEYS[i + 3], now + ARGV[3], ARGV[2])
  if redis.call('PTTL', KEYS[i + 3]) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[i + 3], ARGV[3])
  end
end
return #KEYS / 4
""")

# KEYS fences per entry and tag. ARGV transaction id.
UNFENCE = _script("""
for i = 1, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return #KEYS
""")

# KEYS milestones. ARGV what a new list of them begins with, or nothing to begin none. What is lost
# before that is lost for everybody who sees this beginning.
SURVEY = _script("""
local kept = redis.call('GET', KEYS[1])
if not kept and ARGV[1] ~= '' then
  kept = ARGV[1]
  redis.call('SET', KEYS[1], kept, 'PX', ARGV[2])
end
local function told(section, field)
  return string.match(redis.call('INFO', section), field .. ':(%w+)') or ''
end
local t = redis.call('TIME')
return {
  t[1] * 1000 + math.floor(t[2] / 1000),
  told('server', 'run_id') .. ':' .. told('replication', 'master_replid') .. ':'
    .. told('stats', 'evicted_keys'),
  kept
}
""")

# KEYS milestones. ARGV their beginning, all of them with it, their life in ms. After a flush they
# must not come back: they would say that nothing was lost.
KEEP_MILESTONES = _script("""
local kept = redis.call('GET', KEYS[1])
if not kept or string.sub(kept, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")

SCRIPTS = {
    script.sha: script
    for script in (
        ACQUIRE,
        FILL,
        RELEASE,
        STAMP,
        INVALIDATE,
        INVALIDATE_TAGS,
        FENCE,
        UNFENCE,
        SURVEY,
        KEEP_MILESTONES,
    )
}
