"""The Lua scripts of jobs: each is one atomic step, since several processes work at the same time."""

from typing import Final

# A lease ends by itself, and soon. What does not, has nobody who holds it, and shall.
_HOLDER: Final = """
local function holder(key)
  local left = redis.call('pttl', key)
  if left == -1 or left > 600000 then redis.call('pexpire', key, ARGV[2]) end
  return redis.call('get', key)
end
"""

LEASE: Final = (
    _HOLDER
    + """
local held = holder(KEYS[1])
if (held and held ~= ARGV[1]) or not redis.call('zscore', KEYS[2], ARGV[3]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

BEAT: Final = (
    _HOLDER
    + """
local held = holder(KEYS[1])
if held and held ~= ARGV[1] then return 'lost' end
if redis.call('exists', KEYS[2]) == 0 then return 'missing' end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('set', KEYS[3], ARGV[3], 'EX', ARGV[4])
return redis.call('get', KEYS[4]) == '1' and 'cancel' or 'ours'
"""
)

# KEYS: lease, state, documents, files, bytes. ARGV: token, state, seconds, id, size, then field, document, files.
SAVE: Final = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[2], 'EX', ARGV[3])
for i = 6, #ARGV, 3 do
  redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1])
  redis.call('hset', KEYS[4], ARGV[i], ARGV[i + 2])
end
redis.call('expire', KEYS[3], ARGV[3])
redis.call('expire', KEYS[4], ARGV[3])
local counted = redis.pcall('hincrby', KEYS[5], ARGV[4], ARGV[5])
if type(counted) == 'table' and counted.err then redis.call('hset', KEYS[5], ARGV[4], ARGV[5]) end
return 1
"""

# KEYS: spec, state, documents. ARGV: bytes, entries. Gives both, and then entry and document by turns.
LOAD: Final = """
local left = tonumber(ARGV[1])
local function whole(key)
  local long = redis.call('strlen', key)
  if long > left then return '' end
  left = left - long
  return redis.call('get', key) or ''
end
local out = {whole(KEYS[1]), whole(KEYS[2])}
if redis.call('hlen', KEYS[3]) > tonumber(ARGV[2]) then return out end
for _, entry in ipairs(redis.call('hkeys', KEYS[3])) do
  local long = redis.call('hstrlen', KEYS[3], entry)
  out[#out + 1] = entry
  out[#out + 1] = long <= left and redis.call('hget', KEYS[3], entry) or ''
  if long <= left then left = left - long end
end
return out
"""

_SHORT: Final = """
local function short(key, field)
  return redis.call('hstrlen', key, field) <= 64 and redis.call('hget', key, field) or ''
end
"""

# KEYS: unfinished, turns, picture_bytes. ARGV: jobs. Gives each job's id, turn and bytes.
QUEUE: Final = (
    _SHORT
    + """
local out = {}
for _, id in ipairs(redis.call('zrange', KEYS[1], 0, ARGV[1] - 1)) do
  if #id == 32 then
    out[#out + 1] = id
    out[#out + 1] = short(KEYS[2], id)
    out[#out + 1] = short(KEYS[3], id)
  end
end
return out
"""
)

# KEYS: turns. ARGV: ids. Gives each job's turn.
TURNS: Final = (
    _SHORT
    + """
local out = {}
for i, id in ipairs(ARGV) do out[i] = short(KEYS[1], id) end
return out
"""
)

FILES: Final = """
if redis.call('hstrlen', KEYS[1], ARGV[1]) > tonumber(ARGV[2]) then return '' end
return redis.call('hget', KEYS[1], ARGV[1]) or ''
"""

RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end return 1"
