package status

import (
	"context"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// merge writes what a batch of one partition's records says, and the partition's
// position behind it, unless Redis is behind where the batch begins.
//
// It merges by taking the least time of creation, the greatest rank and the
// greatest text of an attempt, so that neither order nor repetition matters. It
// answers with the position that Redis had, "" if it had none.
//
// KEYS: the position. ARGV: the prefix of all other keys, the position that is
// expected, the one after the batch, how long a delivery is kept, when figures
// begin to be too old, how long those are kept (times in ms), then the entries.
var merge = redis.NewScript(`
local had = redis.call('get', KEYS[1])
local at = tonumber(had or '0')
if at < tonumber(ARGV[2]) or at >= tonumber(ARGV[3]) then
	return had or ''
end
local prefix, keep, oldest, figures = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local counts, ends = {}, {}

local function add(key, ending, field, n)
	local fields = counts[key]
	if not fields then
		fields = {}
		counts[key], ends[key] = fields, ending
	end
	fields[field] = (fields[field] or 0) + n
end

local function count(sub, attempt, n)
	local began = tonumber(string.sub(attempt, 4, 16))
	if began < oldest then
		return
	end
	local field = string.sub(attempt, 1, 2)
	local minute, hour = math.floor(began / 60000), math.floor(began / 3600000)
	add(prefix .. 'm:' .. string.format('%.0f', minute) .. sub, (minute + 1) * 60000 + figures, field, n)
	add(prefix .. 'h:' .. string.format('%.0f', hour) .. sub, (hour + 1) * 3600000 + figures, field, n)
end

for i = 7, #ARGV, 9 do
	local sub, id, event, position, origin, created, number, attempt, answer = unpack(ARGV, i, i + 8)
	local key = prefix .. 'd:' .. id
	local known = redis.call('hmget', key, 'c', 't', number)
	local first, rank, was = known[1], tonumber(known[2] or '0'), known[3]
	if first and first < created then
		created = first
	end
	local to = 1
	if number ~= '' then
		to = tonumber(string.sub(attempt, 1, 1))
	end
	if to < rank then
		to = rank
	end
	local fresh = number ~= '' and (not was or was < attempt)
	local moved = first ~= created or rank ~= to
	if moved then
		if first then
			redis.call('zrem', prefix .. 'i:' .. rank .. sub, string.sub(first, 2) .. id)
		end
		redis.call('zadd', prefix .. 'i:' .. to .. sub, 0, string.sub(created, 2) .. id)
	end
	if moved or fresh then
		local values = {'c', created, 't', to}
		if not first then
			values[5], values[6], values[7], values[8] = 's', sub, 'e', event
			if position ~= '' then
				values[#values + 1], values[#values + 2] = 'p', position
			end
			if origin ~= '' then
				values[#values + 1], values[#values + 2] = 'o', origin
			end
		end
		if fresh then
			values[#values + 1], values[#values + 2] = number, attempt
		end
		redis.call('hset', key, unpack(values))
	end
	if fresh then
		count(sub, attempt, 1)
		if was then
			count(sub, was, -1)
		end
		if answer ~= '' then
			redis.call('hset', prefix .. 'a:' .. id, number, answer)
		elseif was then
			redis.call('hdel', prefix .. 'a:' .. id, number)
		end
	end
	if first ~= created or answer ~= '' then
		local ending = string.format('%.0f', tonumber(string.sub(created, 2)) + keep)
		redis.call('pexpireat', key, ending)
		if first or answer ~= '' then
			redis.call('pexpireat', prefix .. 'a:' .. id, ending)
		end
	end
end
for key, fields in pairs(counts) do
	for field, n in pairs(fields) do
		redis.call('hincrby', key, field, n)
	end
	redis.call('pexpireat', key, string.format('%.0f', ends[key]))
end
redis.call('set', KEYS[1], ARGV[3])
return had or ''
`)

// write merges entries of a partition, which reach from one position to another.
// It reports false if Redis is behind the first, and has lost what was written.
// An error is ErrUnavailable, or errRefused.
func (p *Projection) write(ctx context.Context, key string, from, to int64, entries []entry) (bool, error) {
	const before = 6 // the entries
	args := make([]any, 0, before+len(entries)*fields)
	args = append(args, p.cfg.Prefix, from, to, p.cfg.Retention.Milliseconds(), p.cfg.Now().Add(-figuresKept).UnixMilli(), figuresKept.Milliseconds())
	for i := range entries {
		args = entries[i].appendTo(args)
	}
	had, err := merge.Run(ctx, p.redis, []string{key}, args...).Text()
	if refused(err) {
		return false, fmt.Errorf("write the status of deliveries: %w: %w", errRefused, err)
	}
	if err != nil {
		return false, unavailable("write the status of deliveries", err)
	}
	at := int64(0)
	if had != "" {
		if at, err = strconv.ParseInt(had, 10, 64); err != nil {
			return false, unavailable("read a position of the status", err)
		}
	}
	return at >= from, nil
}

// positionKey names where the position of a partition is kept.
func (p *Projection) positionKey(topic string, partition int32) string {
	return p.cfg.Prefix + "p:" + topic + ":" + strconv.Itoa(int(partition))
}

// Keys beside positions, after the prefix:
//
//	d:<delivery>            what is known of it
//	a:<delivery>            the answers to its failed attempts
//	i:<rank><subscription>  its deliveries in that state, by time
//	m:<minute><subscription>, h:<hour><subscription>  its figures
func (p *Projection) deliveryKey(id string) string { return p.cfg.Prefix + "d:" + id }
func (p *Projection) answersKey(id string) string  { return p.cfg.Prefix + "a:" + id }
func (p *Projection) indexKey(rank int, sub string) string {
	return p.cfg.Prefix + "i:" + strconv.Itoa(rank) + sub
}
