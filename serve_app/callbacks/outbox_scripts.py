"""The Lua scripts of the outbox: each is one atomic step, since several processes work at the same time.

They do what `message_queues.py` does, on sorted sets. KEYS begin with messages, tenants, waiting, and due, which is the
one queue of the version before. ARGV begins with the prefix of all keys of a kind, and the seconds for which they are
kept. Tenants and hosts are given as words (`redis_outbox.py`); NAMELESS is the tenant without keys.
"""

from typing import Final

NAMELESS: Final = "-"

_QUEUES: Final = """
local clock = redis.call('time')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- What is of another type than ours would make every call fail.
local function sorted_set(name)
  local key = ARGV[1] .. name
  local kind = redis.call('type', key).ok
  if kind ~= 'zset' and kind ~= 'none' then redis.call('del', key) end
  return key
end
local function hosts_of(tenant) return sorted_set('hosts:' .. tenant) end
local function queue_of(tenant, host) return sorted_set('queue:' .. tenant .. ':' .. host) end

local function waiting_of(tenant) return tonumber(redis.call('hget', KEYS[3], tenant) or '0') or 0 end
local function count(tenant, change)
  local waiting = waiting_of(tenant) + change
  if waiting > 0 then redis.call('hset', KEYS[3], tenant, waiting) else redis.call('hdel', KEYS[3], tenant) end
end

local function put_earlier(key, member, due)
  local at = redis.call('zscore', key, member)
  if not at or tonumber(at) > due then redis.call('zadd', key, due, member) end
end
local function put(tenant, host, id, due, message)
  local hosts, queue = hosts_of(tenant), queue_of(tenant, host)
  count(tenant, redis.call('zadd', queue, due, id))
  put_earlier(hosts, host, due)
  put_earlier(KEYS[2], tenant, due)
  -- At last: a key of another type ends a script where it is met, and the next one finds that the message is not there.
  redis.call('hset', KEYS[1], id, message)
  for _, key in ipairs({hosts, queue, KEYS[1], KEYS[2], KEYS[3]}) do redis.call('expire', key, ARGV[2]) end
end
local function drop(tenant, host, id)
  count(tenant, -redis.call('zrem', queue_of(tenant, host), id))
  redis.call('hdel', KEYS[1], id)
end
"""

ADD: Final = (
    _QUEUES
    + """
local tenant, most, without = ARGV[3], tonumber(ARGV[4]), {}
for i = 5, #ARGV, 4 do
  local place, host, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('hexists', KEYS[1], id) == 0 and redis.call('hexists', KEYS[5], place) == 0 then
    local free = most - redis.call('hlen', KEYS[1])
    if free > 0 and (tenant == '-' or waiting_of(tenant) < free) then
      put(tenant, host, id, now, ARGV[i + 3])
    else
      without[#without + 1] = id
    end
  end
end
return without
"""
)
"""KEYS: also the job's callbacks. ARGV: tenant, most, then place, host, id and message by turns. Gives the ids of those
without room.
"""

CLAIM: Final = (
    _QUEUES
    + """
local until_, bytes, slots = now + tonumber(ARGV[3]), tonumber(ARGV[4]), cjson.decode(ARGV[5])
local out = {}

-- What a version that knew one queue only has put there, and still may while it is being replaced.
for _, id in ipairs(redis.call('zrangebyscore', KEYS[4], '-inf', now, 'LIMIT', 0, 100)) do
  local read, tenant, host = pcall(function()
    assert(redis.call('hstrlen', KEYS[1], id) <= bytes)
    local message = cjson.decode(string.sub(redis.call('hget', KEYS[1], id), 55)).header
    local host = string.match(message.url, '^%a+://([^/?#]*)')
    return message.tenant == '' and '-' or redis.sha1hex(message.tenant), redis.sha1hex(host)
  end)
  redis.call('zrem', KEYS[4], id)
  if read then put(tenant, host, id, now, redis.call('hget', KEYS[1], id)) else redis.call('hdel', KEYS[1], id) end
end

-- An id without a message, or with one that is larger than ours, is dropped.
local function first_of(tenant, host)
  while true do
    local id = redis.call('zrangebyscore', queue_of(tenant, host), '-inf', now, 'LIMIT', 0, 1)[1]
    local long = id and redis.call('hstrlen', KEYS[1], id)
    if not id or (#id <= 128 and long > 0 and long <= bytes) then return id end
    drop(tenant, host, id)
  end
end

-- Gives `member` its turn when the first in `inner` is due, and not before `from`.
local function line_up(key, member, inner, from)
  local first = tonumber(redis.call('zrange', inner, 0, 0, 'withscores')[2])
  if first then redis.call('zadd', key, math.max(first, from), member) else redis.call('zrem', key, member) end
end

local function claim(tenant, host, id)
  local hosts, queue = hosts_of(tenant), queue_of(tenant, host)
  redis.call('zadd', queue, until_, id)
  line_up(hosts, host, queue, now)
  line_up(KEYS[2], tenant, hosts, now)
  slots.free = slots.free - 1
  slots.tenants[tenant] = (slots.tenants[tenant] or 0) + 1
  slots.hosts[host] = (slots.hosts[host] or 0) + 1
  for _, part in ipairs({tenant, host, id, until_, redis.call('hget', KEYS[1], id)}) do out[#out + 1] = part end
end

-- Claims one of the tenant's messages, unless all that are due wait for their hosts.
local function serve(tenant)
  local hosts, again = hosts_of(tenant), true
  while again do
    again = false
    -- No more than `most` hosts can have all that they may have.
    for _, host in ipairs(redis.call('zrangebyscore', hosts, '-inf', now, 'LIMIT', 0, slots.most + 1)) do
      if (slots.hosts[host] or 0) < slots.per_host then
        local id = first_of(tenant, host)
        if id then
          claim(tenant, host, id)
          return true
        end
        line_up(hosts, host, queue_of(tenant, host), 0)
        again = true
      end
    end
  end
  if not redis.call('zrangebyscore', hosts, '-inf', now, 'LIMIT', 0, 1)[1] then line_up(KEYS[2], tenant, hosts, 0) end
  return false
end

local turns, turn = redis.call('zrangebyscore', KEYS[2], '-inf', now), 1
while turns[turn] and slots.free > 0 do
  local tenant = turns[turn]
  local admitted = tenant == '-' or (slots.tenants[tenant] or 0) < slots.free
  if admitted and serve(tenant) then turns[#turns + 1] = tenant end
  turn = turn + 1
end
return out
"""
)
"""ARGV: milliseconds, bytes, and slots as JSON: `free`, `most`,
`per_host`, and how many `tenants` and `hosts` have. Gives tenant, host, id, end of the claim, and message by turns.
"""

POSTPONE: Final = (
    _QUEUES
    + """
local tenant, host, id = ARGV[3], ARGV[4], ARGV[5]
if tonumber(redis.call('zscore', queue_of(tenant, host), id) or '-1') ~= tonumber(ARGV[6]) then return 0 end
put(tenant, host, id, now + tonumber(ARGV[8]), ARGV[7])
return 1
"""
)
"""ARGV: tenant, host, id, end of the claim, message, milliseconds."""

REMOVE: Final = _QUEUES + "drop(ARGV[3], ARGV[4], ARGV[5]) return 1"
"""ARGV: tenant, host, id."""
