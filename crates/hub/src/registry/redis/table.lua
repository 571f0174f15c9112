-- Renews a hub's table, changes it, or writes it anew; and tells everybody of a change.
--
-- KEYS[1]  the table, a hash: #nonce which start of the hub wrote it, #version a number that grows
--          with every change, and one field per agent
-- ARGV     1 nonce, 2 the version that the table must have ('' = write anew, '!' = also if a later
--          start of the hub has it), 3 its version from now on, 4 ms that the table lives, 5 channel, 6 message ('' = none),
--          then pairs of agent and entry ('' = none any more)
-- Returns  'ok'; 'stale' when the table is not what the hub wrote last; 'conflict' when a later start
--          of a hub of this name has it. Nothing has changed in those cases.

local key, nonce = KEYS[1], ARGV[1]
local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then
    redis.call('DEL', key)
end
local found = redis.call('HMGET', key, '#nonce', '#version')
local anew = ARGV[2] == '' or ARGV[2] == '!'
if found[1] and found[1] > nonce and ARGV[2] ~= '!' then
    return 'conflict'
end
-- Sent long ago and overtaken by what was written since.
local late = found[1] == nonce and (tonumber(found[2]) or 0) >= tonumber(ARGV[3]) and ARGV[2] ~= ARGV[3]
if late then
    return 'stale'
end
if anew then
    redis.call('DEL', key)
    redis.call('HSET', key, '#nonce', nonce)
elseif found[1] ~= nonce or found[2] ~= ARGV[2] then
    return 'stale'
end
redis.call('HSET', key, '#version', ARGV[3])
for i = 7, #ARGV - 1, 2 do
    if ARGV[i + 1] == '' then
        redis.call('HDEL', key, ARGV[i])
    else
        redis.call('HSET', key, ARGV[i], ARGV[i + 1])
    end
end
redis.call('PEXPIRE', key, ARGV[4])
if ARGV[6] ~= '' then
    redis.call('PUBLISH', ARGV[5], ARGV[6])
end
return 'ok'
