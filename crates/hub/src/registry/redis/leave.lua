-- Removes a hub's table and tells everybody, if this start of the hub still has it.
--
-- KEYS[1]  the table, see table.lua
-- ARGV     1 nonce, 2 channel, 3 message

if redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HGET', KEYS[1], '#nonce') == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return 1
