-- Grants a claim on an agent's id; see the rules in owner.rs, which judge the same without Redis.
--
-- KEYS[1]  the agent's record, a hash:
--            epoch, instance   the latest owner that was granted
--            at, by            when, by this server's clock in ms, and through which hub
--            rivals            when living owners were displaced of late, or could not be any more, in
--                              ms, separated by spaces
-- ARGV     1 instance, 2 epoch held ('' = does not say), 3 epoch seen by the agent,
--          4 epoch of it seen by the hub, 5 and 6 epoch and instance of the owner whose tunnels
--          the hub knows of ('' = none), 7 ms that the record lives, 8 ms above the clock that an
--          agent's word is believed, 9 and 10 displacements in so many ms that are tolerated,
--          11 this hub, 12 ms for which an owner that came through another hub counts as living
--          although this one has not heard of it
-- Returns  {'joined' | 'granted' | 'conflict', epoch}

local MAX = 2 ^ 53 - 2 ^ 32
local function epoch_of(text)
    local epoch = tonumber(text)
    return epoch and epoch > 0 and epoch < MAX and epoch or nil
end

local key, me = KEYS[1], ARGV[1]
local held = ARGV[2] ~= '' and tonumber(ARGV[2]) or nil
local time = redis.call('TIME')
local clock = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local believable = clock + tonumber(ARGV[8])

local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then
    redis.call('DEL', key)
end
local record = redis.call('HMGET', key, 'epoch', 'instance', 'at', 'rivals', 'by')
local epoch, instance = epoch_of(record[1]), record[2]
local age = clock - (tonumber(record[3]) or 0)
local living = epoch and record[5] ~= ARGV[11] and age >= 0 and age < tonumber(ARGV[12])

local known_epoch, known = epoch_of(ARGV[5]), ARGV[6]
local mine = known_epoch and known == me and known_epoch
if known_epoch and (not epoch or known_epoch > epoch or (known_epoch == epoch and known >= instance)) then
    epoch, instance, living = known_epoch, known, true
end

local function grant(answer, new, rivals)
    redis.call('HSET', key, 'epoch', string.format('%.0f', math.max(new, epoch or 0)),
        'instance', me, 'at', string.format('%.0f', clock), 'by', ARGV[11])
    if rivals then
        redis.call('HSET', key, 'rivals', rivals)
    end
    redis.call('PEXPIRE', key, ARGV[7])
    return { answer, string.format('%.0f', new) }
end

if epoch and instance == me then
    -- Tunnels that live count for more than a grant of which nobody has heard.
    if mine and (not held or held == mine) then
        return grant('joined', mine)
    end
    if not held or held == epoch then
        return grant('joined', epoch)
    end
    if held > (mine or 0) and held < epoch then
        return grant('joined', held)
    end
end
if held and held > (epoch or 0) and held <= believable then
    return grant('joined', held)
end

local rivals
if living and instance ~= me then
    local recent = {}
    for text in string.gmatch(record[4] or '', '%d+') do
        local since = clock - tonumber(text)
        if since >= 0 and since < tonumber(ARGV[10]) then
            recent[#recent + 1] = text
        end
    end
    if #recent >= tonumber(ARGV[9]) then
        -- The incumbent stays for as long as the other keeps trying.
        local again = string.rep(string.format('%.0f ', clock), #recent)
        redis.call('HSET', key, 'rivals', again)
        return { 'conflict', string.format('%.0f', epoch) }
    end
    recent[#recent + 1] = string.format('%.0f', clock)
    rivals = table.concat(recent, ' ')
end
local seen = math.min(tonumber(ARGV[3]), believable)
local new = math.max(clock, seen + 1, tonumber(ARGV[4]) + 1, (epoch or 0) + 1)
return grant('granted', new, rivals)
