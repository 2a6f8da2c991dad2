"""What must happen in Redis at once: each script compares before it writes, and runs alone.

Many clients send a command again whose reply was lost, ``Redis(host=...)`` ten times. So each
script recognises what it has done under the same lease, and says so again.
"""

from typing import Final

ADOPT: Final = """
local c = redis.call('HMGET', KEYS[1], 'build', 'epoch', 'position', 'clearing', 'torn', 'witness')
if (tonumber(c[2] or 0) or 0) > tonumber(ARGV[2]) then return 'later' end
if c[1] ~= ARGV[1] or c[4] or c[5] then return 'reset' end
if not c[3] or (c[3] ~= '0' and not c[6]) then return 'reset' end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
return {c[3], c[6] or ''}
"""

APPLY: Final = """
local c = redis.call('HMGET', KEYS[1], 'build', 'epoch', 'position', 'clearing', 'torn', 'target',
  'structures')
if c[1] ~= ARGV[1] or c[2] ~= ARGV[2] or c[4] or c[5] then return 0 end
if c[3] ~= ARGV[3] then return c[3] == ARGV[4] and 1 or 0 end
local function counted(found)
  if type(found) == 'number' then return found end
  if not string.find(found['err'], 'WRONGTYPE', 1, true) then error(found['err']) end
  return -1
end
local function size(i)
  local scored = string.sub(ARGV[i + 3], 1, 5) == 'zset:'
  return counted(redis.pcall(scored and 'ZCARD' or 'HLEN', KEYS[i]))
end
local damaged = counted(redis.pcall('HLEN', KEYS[2])) ~= (tonumber(c[7] or 0) or 0)
for i = 3, #KEYS do
  if damaged then break end
  damaged = size(i) ~= (tonumber(redis.call('HGET', KEYS[2], ARGV[i + 3]) or 0) or 0)
end
redis.call('HSET', KEYS[1], 'torn', '1')
if damaged then return -1 end
for i = #KEYS + 4, #ARGV, 4 do
  local command, key = ARGV[i], KEYS[tonumber(ARGV[i + 1])]
  if command == 'HSET' or command == 'ZADD' then
    redis.call(command, key, ARGV[i + 2], ARGV[i + 3])
  elseif command == 'UNLINK' then
    redis.call(command, key)
  else
    redis.call(command, key, ARGV[i + 2])
  end
end
for i = 3, #KEYS do
  local now = size(i)
  if now > 0 then
    redis.call('HSET', KEYS[2], ARGV[i + 3], now)
  else
    redis.call('HDEL', KEYS[2], ARGV[i + 3])
  end
end
redis.call('HSET', KEYS[1], 'position', ARGV[4], 'witness', ARGV[5],
  'structures', redis.call('HLEN', KEYS[2]))
redis.call('HDEL', KEYS[1], 'torn')
local reached = tonumber(ARGV[4]) >= (tonumber(c[6] or 0) or 0)
if reached then redis.call('HDEL', KEYS[1], 'target') end
return 1
"""

BEGIN_CLEARING: Final = """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if (tonumber(epoch or 0) or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'build', ARGV[1], 'epoch', ARGV[2], 'position', '0', 'clearing', '1')
if ARGV[3] ~= '0' then redis.call('HSET', KEYS[1], 'target', ARGV[3]) end
return 1
"""

CLEAR: Final = """
local c = redis.call('HMGET', KEYS[1], 'build', 'epoch', 'clearing')
if not c[1] then return -1 end
if c[1] ~= ARGV[1] or c[2] ~= ARGV[2] then return 0 end
if not c[3] then return ARGV[3] == 'build' and 1 or -1 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
if ARGV[3] == 'build' then redis.call('HDEL', KEYS[1], 'clearing') end
if ARGV[3] == 'forget' then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
