#!/bin/sh
# rc.common, functions.sh and procd as far as our init script needs them: settings from the
# UCI file, the user, no new privileges, the environment, the limit of open files, and respawn.
# There is no jail, as on a router without procd-ujail. With a file /tmp/procd/cgroup the daemon
# starts in the memory cgroup that it names.
# shellcheck disable=SC2034,SC2317,SC2329,SC3045 # the init script calls these; ash has ulimit -n
script=$1 action=$2
initscript=$1
run=/tmp/procd/${script##*/}

config_load() { CONFIG_FILE=/etc/config/$1; }
config_get() { # variable, section, option, default
	_value="$(sed -n "s/^[[:space:]]*option[[:space:]]*$3[[:space:]]*'\\(.*\\)'.*/\\1/p" "$CONFIG_FILE")"
	eval "$1=\${_value:-\${4:-}}"
}
config_get_bool() {
	config_get "$@"
	eval "case \$$1 in 1 | on | true | yes | enabled) $1=1 ;; *) $1=0 ;; esac"
}
procd_open_instance() { command='' env='' user=root respawn=''; }
procd_set_param() {
	_name=$1
	shift
	case $_name in
	command) command="$*" ;;
	env) env="$*" ;;
	user) user=$1 ;;
	respawn) respawn=$2 ;;
	term_timeout) echo "$1" >"$run.timeout" ;;
	limits) ulimit -n "${1##* }" ;;
	esac
}
procd_append_param() { [ "$1" != env ] || { shift; env="$env $*"; }; }
procd_add_jail() { :; }
procd_add_jail_mount() { :; }
procd_add_jail_mount_rw() { :; }
procd_close_instance() {
	_mine=$(cat /proc/sys/kernel/random/uuid) # a new instance may begin while this one ends
	echo "$_mine" >"$run.wanted"
	while wanted; do
		sh -c 'echo $$ >"$0.pid"; [ ! -e /tmp/procd/cgroup ] || echo $$ >"$(cat /tmp/procd/cgroup)/cgroup.procs"
			exec setpriv --nnp su -s /bin/sh "$1" -c "$2"' "$run" "$user" "exec env $env $command"
		echo "procd: $command ended with $?"
		rm -f "$run.pid"
		if wanted; then sleep "$respawn"; fi
	done >/dev/console 2>&1 &
}

wanted() { [ "$(cat "$run.wanted" 2>/dev/null)" = "$_mine" ]; }

service_started() { :; }
start() {
	start_service && service_started
}
stop() {
	rm -f "$run.wanted"
	_pid=$(cat "$run.pid" 2>/dev/null) || return 0
	kill -TERM "$_pid" 2>/dev/null
	_left=$(($(cat "$run.timeout") * 10))
	while [ -e "$run.pid" ]; do
		[ $_left -gt 0 ] || kill -KILL "$_pid" 2>/dev/null
		_left=$((_left - 1))
		usleep 100000
	done
}
restart() {
	stop
	start
}
# shellcheck disable=SC1090 # the script under test
. "$script"
$action
