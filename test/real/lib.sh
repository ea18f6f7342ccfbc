# What the scripts here share; sourced, not run.

# die ends the script with one sentence.
die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# need COMMAND PACKAGE ends the script if the command is missing.
need() {
	command -v "$1" >/dev/null || die "$1 is missing: install it, on Debian with: apt-get install $2"
}

# free_port sets REPLY to a port that nothing listens on. It lies below the
# ports that the system hands out to outgoing connections, which could take it
# while a server is being restarted.
free_port() {
	while :; do
		REPLY=$((12000 + RANDOM % 20000))
		case " ${taken-} " in *" $REPLY "*) continue ;; esac
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$REPLY") 2>/dev/null; then
			taken="${taken-} $REPLY"
			return
		fi
	done
}

# pid_of FILE NAME sets REPLY to the process that the file names, if it still
# runs and is a NAME; else it fails.
pid_of() {
	REPLY=$(cat "$1" 2>/dev/null) || return 1
	case $(ps -p "$REPLY" -o stat=,command= 2>/dev/null) in
	Z*) return 1 ;;
	*"$2"*) ;;
	*) return 1 ;;
	esac
}

# gone PID SECONDS waits until the process has ended; it fails if it has not. One
# that nobody has reaped yet has ended too.
gone() {
	local tries=$(($2 * 20))
	while case $(ps -p "$1" -o stat= 2>/dev/null) in '' | Z*) false ;; esac do
		[ $((tries--)) -gt 0 ] || return 1
		sleep 0.05
	done
}

# control DIR SCRIPT VARIABLE writes DIR/control, which runs the script on this
# directory: what a test is given to kill and restart servers with.
control() {
	printf '#!/usr/bin/env bash\nexport %s=%q\nexec %q "$@"\n' "$3" "$1" "$2" >"$1/control"
	chmod +x "$1/control"
}
