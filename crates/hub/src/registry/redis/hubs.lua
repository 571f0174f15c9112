-- Signs a hub in, sweeps those that have not for long, and tells who is there.
--
-- KEYS[1]  hubs by the time of their last sign of life, a sorted set
-- ARGV     1 hub ('' = only look), 2 ms after which a hub is forgotten, 3 most that are told
-- Returns  the hubs

local key = KEYS[1]
local time = redis.call('TIME')
local clock = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local kind = redis.call('TYPE', key).ok
if kind ~= 'zset' and kind ~= 'none' then
    redis.call('DEL', key)
end
if ARGV[1] ~= '' then
    redis.call('ZADD', key, clock, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', key, '-inf', clock - tonumber(ARGV[2]))
return redis.call('ZREVRANGE', key, 0, tonumber(ARGV[3]) - 1)
