-- Notes that a proof of possession was accepted, unless one was before.
--
-- KEYS[1]  a share of the proofs, a sorted set: hashes by the time at which they came, in ms, and
--            #since   the negative of the time from which on nothing was forgotten
-- ARGV     1 the hash of a proof, 2 ms for which it is remembered, 3 ms that the set lives
-- Returns  'new' | 'known' | 'young', when proofs of before the set was begun may still be good

local key, proof, memory = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local clock = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number)
    return string.format('%.0f', number)
end

local kind = redis.call('TYPE', key).ok
if kind ~= 'zset' and kind ~= 'none' then
    redis.call('DEL', key)
end
local since = -tonumber(redis.call('ZSCORE', key, '#since') or 0)
if since <= 0 or since > clock then
    since = clock
    redis.call('ZADD', key, text(-clock), '#since')
end
redis.call('ZREMRANGEBYSCORE', key, 0, text(clock - memory))
redis.call('PEXPIRE', key, ARGV[3])
if redis.call('ZADD', key, 'NX', text(clock), proof) == 0 then
    return 'known'
end
return clock - since < memory and 'young' or 'new'
