#!/usr/bin/env bash
# Runs a command with a real Kafka and a real Redis:
#
#   with.sh [--brokers 1|3] [--] COMMAND [ARGUMENT…]
#
# Starts both, on free ports, unless KAFKA_BROKERS or REDIS_URL name others;
# exports KAFKA_BROKERS and REDIS_URL, and, for those that it started,
# KAFKA_CONTROL and REDIS_CONTROL (see kafka.sh and redis.sh). It stops them
# when the command has ended, however it ended, and exits as the command did.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/lib.sh"

usage() {
	sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
}

brokers=1
while [ $# -gt 0 ]; do
	case $1 in
	--brokers)
		[ $# -gt 1 ] || usage
		brokers=$2
		shift 2
		;;
	--)
		shift
		break
		;;
	-*) usage ;;
	*) break ;;
	esac
done
[ $# -gt 0 ] || usage

own_kafka='' own_redis='' running=''
state=$(mktemp -d "${TMPDIR:-/tmp}/webhooks-real.XXXXXX")

finish() {
	local status=$?
	trap - EXIT
	trap '' INT TERM HUP # the servers go first
	set +e
	if [ "$status" -ne 0 ] && [ -n "$running" ]; then
		echo "with.sh: the command failed with $status; the end of the logs:" >&2
		[ -z "$own_kafka" ] || "$here/kafka.sh" logs 20 >&2
		[ -z "$own_redis" ] || { echo "--- redis" && "$here/redis.sh" logs 5; } >&2
	fi
	[ -z "$own_kafka" ] || "$here/kafka.sh" stop
	[ -z "$own_redis" ] || "$here/redis.sh" stop
	rm -rf "$state"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

export KAFKA_DIR=$state/kafka REDIS_DIR=$state/redis
if [ -z "${KAFKA_BROKERS-}" ]; then
	own_kafka=yes
	said=$("$here/kafka.sh" start "$brokers")
	KAFKA_BROKERS=$(sed -n 's/^KAFKA_BROKERS=//p' <<<"$said")
	KAFKA_CONTROL=$(sed -n 's/^KAFKA_CONTROL=//p' <<<"$said")
	export KAFKA_BROKERS KAFKA_CONTROL
	echo "Kafka is up after $SECONDS s: $KAFKA_BROKERS" >&2
fi
if [ -z "${REDIS_URL-}" ]; then
	own_redis=yes
	said=$("$here/redis.sh" start)
	REDIS_URL=$(sed -n 's/^REDIS_URL=//p' <<<"$said")
	REDIS_CONTROL=$(sed -n 's/^REDIS_CONTROL=//p' <<<"$said")
	export REDIS_URL REDIS_CONTROL
	echo "Redis is up: $REDIS_URL" >&2
fi

running=yes
"$@"
