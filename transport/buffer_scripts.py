"""The buffer's writes as Lua scripts: each is atomic, also with concurrent writers.

Keys of every script: the stream, the set of known ids, the hash of counters. A stream entry is {"id", group id,
"group", packed bytes}; its id stays known when it has left the stream.
"""

# By default Redis before 7 logs the script, not its effects; a replayed XADD would create another entry id.
_EFFECTS = "if redis.replicate_commands then redis.replicate_commands() end\n"

APPEND = (
    _EFFECTS
    + """
-- ARGV: group id, capacity, packed group. 1: appended; 0: known already; -1: full
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return -1 end
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'group', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'appended', 1)
redis.call('HINCRBY', KEYS[3], 'bytes', #ARGV[3])
return 1
"""
)

ACKNOWLEDGE = (
    _EFFECTS
    + """
-- ARGV: consumer group, entry ids. Number of entries that were still there
local done = 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if entry then
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('HINCRBY', KEYS[3], 'bytes', -#entry[2][4])
    done = done + 1
  end
end
return done
"""
)

STATS = """
-- ARGV: consumer group. depth, pending, milliseconds of the oldest entry's id, seconds and microseconds now, counters
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])[1]
local now = redis.call('TIME')
local count = redis.call('HMGET', KEYS[3], 'bytes', 'appended')
return {redis.call('XLEN', KEYS[1]), pending, first and first[1] or '', now[1], now[2],
        count[1] or '0', count[2] or '0'}
"""
