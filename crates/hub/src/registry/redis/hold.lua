-- Lets an agent's record know of an owner whose tunnels live, unless it knows of a later one.
--
-- KEYS[1]  the agent's record, see claim.lua
-- ARGV     1 epoch, 2 instance, 3 ms that the record lives

local key, epoch = KEYS[1], tonumber(ARGV[1])
local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then
    redis.call('DEL', key)
end
local record = redis.call('HMGET', key, 'epoch', 'instance')
local stored = tonumber(record[1]) or 0
if stored < epoch or (stored == epoch and (record[2] or '') < ARGV[2]) then
    redis.call('HSET', key, 'epoch', ARGV[1], 'instance', ARGV[2])
end
redis.call('PEXPIRE', key, ARGV[3])
return 1
