#!/usr/bin/env bash
# Runs a real Apache Kafka on this machine, without Docker: KRaft, each broker
# also a controller, loopback only, on free ports.
#
#   kafka.sh start [1|3]   start a new cluster; prints KAFKA_BROKERS and KAFKA_CONTROL
#   kafka.sh kill ID       kill -9 one broker (1, 2 or 3)
#   kafka.sh stop ID       let one broker shut down in order
#   kafka.sh restart ID    start that broker again, on its port and data; waits until it is up
#   kafka.sh logs [LINES]  the last warnings and errors in each broker's log
#   kafka.sh stop          stop the cluster and delete its data
#
# KAFKA_DIR names the directory of a cluster's data, logs and process ids.
# KAFKA_CONTROL is this script bound to that directory: a test runs it with
# kill 2 or restart 2. KAFKA_HEAP sets the heap of each broker. KAFKA_JVM replaces
# the flags of the Java machine, which favour a quick start; to measure
# throughput take KAFKA_JVM=-XX:+UseG1GC.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/lib.sh"

dir=${KAFKA_DIR:-${TMPDIR:-/tmp}/webhooks-kafka-$UID}
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
jars=$root/.cache/kafka-$version
jvm=${KAFKA_JVM:--XX:+UseSerialGC -XX:TieredStopAtLevel=1}
cluster_id=V2ViaG9va3NSZWFsVGVzdA # 16 bytes in base64, as Kafka wants it

# fetch brings Kafka's jars, once.
fetch() {
	[ -d "$jars" ] && return
	need mvn maven
	echo "fetching Apache Kafka $version" >&2
	rm -rf "$jars.part"
	mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$jars.part" >&2 ||
		die "Maven could not fetch Apache Kafka $version, see above."
	mv "$jars.part" "$jars" 2>/dev/null || [ -d "$jars" ] # another may have been quicker
}

check_java() {
	need java default-jre-headless
	local major
	major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
	[ "${major:-0}" -ge 17 ] ||
		die "Kafka $version needs Java 17 or newer, this is ${major:-unknown}: on Debian 12 or newer, apt-get install default-jre-headless"
}

# write_config ID N writes a broker's settings; ports and voters are set.
write_config() {
	local id=$1 n=$2 in_sync=1
	[ "$n" -eq 3 ] && in_sync=2
	cat >"$dir/$id/server.properties" <<-EOF
		process.roles=broker,controller
		node.id=$id
		controller.quorum.voters=$voters
		listeners=PLAINTEXT://127.0.0.1:${port[id]},CONTROLLER://127.0.0.1:${control_port[id]}
		advertised.listeners=PLAINTEXT://127.0.0.1:${port[id]}
		controller.listener.names=CONTROLLER
		listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
		log.dirs=$dir/$id/data
		auto.create.topics.enable=false
		default.replication.factor=$n
		min.insync.replicas=$in_sync
		offsets.topic.replication.factor=$n
		offsets.topic.num.partitions=6
		transaction.state.log.replication.factor=$n
		transaction.state.log.min.isr=$in_sync
		transaction.state.log.num.partitions=6
		share.coordinator.state.topic.replication.factor=$n
		share.coordinator.state.topic.min.isr=$in_sync
		share.coordinator.state.topic.num.partitions=6
		group.initial.rebalance.delay.ms=0
		# A killed broker's partitions move after this, not after nine seconds.
		broker.session.timeout.ms=4000
		broker.heartbeat.interval.ms=500
		# The default takes a quarter of a small heap.
		log.cleaner.dedupe.buffer.size=16777216
	EOF
}

# launch ID starts a broker's process.
launch() {
	local id=$1
	# Its own process group: Ctrl-C is for the tests, which may need the broker
	# to end in order.
	set -m
	# shellcheck disable=SC2086 # flags, to be split
	java "-Xms${heap}" "-Xmx${heap}" $jvm -Djava.awt.headless=true \
		-Dorg.slf4j.simpleLogger.logFile=System.out -Dorg.slf4j.simpleLogger.showDateTime=true \
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS" -Dorg.slf4j.simpleLogger.showThreadName=false \
		-Dorg.slf4j.simpleLogger.log.state.change.logger=warn \
		-cp "$jars/*" kafka.Kafka "$dir/$id/server.properties" </dev/null >>"$dir/$id/log" 2>&1 &
	echo $! >"$dir/$id/pid"
	disown
	set +m
}

# await ID FROM waits until the broker has written, after byte FROM of its log,
# that it serves: it does so once the controller has let it in and its ports are
# open.
await() {
	local id=$1 from=$2 tries=1200
	until tail -c "+$((from + 1))" "$dir/$id/log" | grep -q 'Kafka Server started'; do
		pid_of "$dir/$id/pid" kafka.Kafka || {
			tail -n 40 "$dir/$id/log" >&2
			die "broker $id ended while starting, see above."
		}
		[ $((tries--)) -gt 0 ] || {
			tail -n 40 "$dir/$id/log" >&2
			die "broker $id was not up after a minute, see above."
		}
		sleep 0.05
	done
}

start() {
	local n=${1:-1} id
	case $n in 1 | 3) ;; *) die "start takes 1 or 3 brokers, not $n" ;; esac
	check_java
	fetch
	for id in 1 2 3; do
		pid_of "$dir/$id/pid" kafka.Kafka && die "a cluster runs in $dir: stop it first with: kafka.sh stop"
	done
	rm -rf "$dir"
	mkdir -p "$dir"
	if [ "$n" -eq 1 ]; then heap=${KAFKA_HEAP:-1g}; else heap=${KAFKA_HEAP:-512m}; fi
	echo "$heap" >"$dir/heap"
	control "$dir" "$here/kafka.sh" KAFKA_DIR

	port=() control_port=() voters='' brokers=''
	for ((id = 1; id <= n; id++)); do
		free_port && port[id]=$REPLY
		free_port && control_port[id]=$REPLY
		voters+=${voters:+,}$id@127.0.0.1:${control_port[id]}
		brokers+=${brokers:+,}127.0.0.1:${port[id]}
	done
	local formats=()
	for ((id = 1; id <= n; id++)); do
		mkdir "$dir/$id"
		write_config "$id" "$n"
		java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$jars/*" kafka.tools.StorageTool format \
			--cluster-id "$cluster_id" --config "$dir/$id/server.properties" >"$dir/$id/log" 2>&1 &
		formats+=($!)
	done
	for ((id = 1; id <= n; id++)); do
		wait "${formats[id - 1]}" || {
			cat "$dir/$id/log" >&2
			die "the storage of broker $id could not be formatted, see above."
		}
	done
	for ((id = 1; id <= n; id++)); do launch "$id"; done
	for ((id = 1; id <= n; id++)); do await "$id" 0; done
	echo "KAFKA_BROKERS=$brokers"
	echo "KAFKA_CONTROL=$dir/control"
}

# broker ID ends the script if there is no such broker.
broker() {
	[ -n "${1-}" ] && [ -f "$dir/$1/server.properties" ] || die "there is no broker '${1-}' in $dir"
}

kill_one() {
	broker "${1-}"
	pid_of "$dir/$1/pid" kafka.Kafka || die "broker $1 does not run"
	kill -9 "$REPLY"
	gone "$REPLY" 10 || die "broker $1 did not end"
}

stop_one() {
	broker "$1"
	pid_of "$dir/$1/pid" kafka.Kafka || die "broker $1 does not run"
	kill -TERM "$REPLY"
	gone "$REPLY" 30 && return
	echo "kafka.sh: broker $1 did not shut down in 30 s, it is killed" >&2
	kill -9 "$REPLY"
	gone "$REPLY" 10
}

restart_one() {
	broker "${1-}"
	if pid_of "$dir/$1/pid" kafka.Kafka; then stop_one "$1"; fi
	local from
	from=$(wc -c <"$dir/$1/log")
	heap=$(cat "$dir/heap")
	launch "$1"
	await "$1" "$from"
}

# stop_all kills: the data is thrown away, and brokers that stop together wait
# for a quorum that is no more.
stop_all() {
	local id pid pids=()
	for id in 1 2 3; do
		if pid_of "$dir/$id/pid" kafka.Kafka; then
			kill -9 "$REPLY"
			pids+=("$REPLY")
		fi
	done
	for pid in ${pids[@]+"${pids[@]}"}; do
		gone "$pid" 30 || die "process $pid did not end"
	done
	rm -rf "$dir"
}

logs() {
	local id
	for id in 1 2 3; do
		[ -f "$dir/$id/log" ] || continue
		echo "--- broker $id: warnings and errors"
		grep -E '^[0-9:.]+ (WARN|ERROR|FATAL) ' "$dir/$id/log" | tail -n "${1:-20}" | cut -c 1-300 || true
	done
}

command=${1-}
[ $# -gt 0 ] && shift
case $command in
start) start "$@" ;;
kill) kill_one "$@" ;;
restart) restart_one "$@" ;;
logs) logs "$@" ;;
stop) if [ $# -gt 0 ]; then stop_one "$@"; else stop_all; fi ;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
	;;
esac
