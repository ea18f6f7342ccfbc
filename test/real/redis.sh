#!/usr/bin/env bash
# Runs a real Redis on this machine: loopback only, on a free port, never
# evicting.
#
#   redis.sh start     start a new one; prints REDIS_URL and REDIS_CONTROL
#   redis.sh kill      kill -9 it
#   redis.sh restart   start it again on its port; empty, unless it persists
#   redis.sh logs      the end of its log
#   redis.sh stop      stop it and delete its data
#
# REDIS_PERSIST=1 at the start makes it append every write to disk and keep it
# over a restart. REDIS_DIR names its directory. REDIS_CONTROL is this script
# bound to that directory: a test runs it with kill or restart.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

dir=${REDIS_DIR:-${TMPDIR:-/tmp}/webhooks-redis-$UID}

launch() {
	local port from tries=400
	port=$(cat "$dir/port")
	touch "$dir/log"
	from=$(wc -c <"$dir/log")
	set -m # its own process group: Ctrl-C is for the tests
	redis-server "$dir/redis.conf" </dev/null >>"$dir/log" 2>&1 &
	echo $! >"$dir/pid"
	disown
	set +m
	until tail -c "+$((from + 1))" "$dir/log" | grep -q 'Ready to accept connections'; do
		if ! pid_of "$dir/pid" redis-server || [ $((tries--)) -le 0 ]; then
			tail -n 40 "$dir/log" >&2
			die "Redis did not come up on port $port, see above."
		fi
		sleep 0.05
	done
}

start() {
	need redis-server redis-server
	pid_of "$dir/pid" redis-server && die "one runs in $dir: stop it first with: redis.sh stop"
	rm -rf "$dir"
	mkdir -p "$dir"
	free_port
	echo "$REPLY" >"$dir/port"
	local append=no
	[ "${REDIS_PERSIST-}" = 1 ] && append=yes
	cat >"$dir/redis.conf" <<-EOF
		bind 127.0.0.1
		port $REPLY
		dir $dir
		maxmemory-policy noeviction
		save ""
		appendonly $append
		appendfsync always
	EOF
	control "$dir" "$here/redis.sh" REDIS_DIR
	launch
	echo "REDIS_URL=redis://127.0.0.1:$(cat "$dir/port")"
	echo "REDIS_CONTROL=$dir/control"
}

end() {
	pid_of "$dir/pid" redis-server || return 0
	kill "-$1" "$REPLY"
	gone "$REPLY" 10 || die "Redis did not end"
}

command=${1-}
case $command in
start) start ;;
kill)
	pid_of "$dir/pid" redis-server || die "Redis does not run"
	end KILL
	;;
restart)
	[ -f "$dir/redis.conf" ] || die "there is no Redis in $dir"
	end TERM
	launch
	;;
logs) tail -n "${2:-40}" "$dir/log" ;;
stop)
	end KILL
	rm -rf "$dir"
	;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
	;;
esac
