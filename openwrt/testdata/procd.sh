#!/bin/sh
# What OpenWrt's rc.common, functions.sh and procd.sh do for an init script, as far as ours
# needs it: reads one UCI file, prints every procd call on one line, changes no owner.
# Run as:  busybox ash procd.sh INIT-SCRIPT CONFIG RUNDIR [start_service|service_triggers]
config_load() { :; }
config_get() { # variable, section, option, default
	_value="$(sed -n "s/^[[:space:]]*option[[:space:]]*$3[[:space:]]*'\\(.*\\)'.*/\\1/p" "$CONFIG")"
	eval "$1=\${_value:-\${4:-}}"
}
config_get_bool() {
	config_get "$@"
	eval "case \$$1 in 1 | on | true | yes | enabled) $1=1 ;; *) $1=0 ;; esac"
}
for f in open_instance close_instance set_param append_param add_jail add_jail_mount add_jail_mount_rw \
	add_mdns add_reload_trigger add_reload_interface_trigger; do
	eval "procd_$f() { echo $f \"\$@\"; }"
done
chown() { echo "chown $*"; }
chgrp() { echo "chgrp $*"; }
jsonfilter() { sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' "$2"; }

script=$1 config=$2 rundir=$3 what=${4:-start_service}
# shellcheck disable=SC1090 # the script under test
. "$script"
# shellcheck disable=SC2034 # the script reads them
CONFIG=$config RUNDIR=$rundir UMDNS=${TEST_UMDNS:-$UMDNS}
$what
