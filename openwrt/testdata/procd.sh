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
	open_data close_data add_mdns_service add_reload_trigger add_reload_interface_trigger; do
	eval "procd_$f() { echo $f \"\$@\"; }"
done
chown() { echo "chown $*"; }
chgrp() { echo "chgrp $*"; }
id() { echo "${TEST_UID:-$(command id -u)}"; } # of cloudrest
logger() { echo "logger $*"; }
for f in add_object close_object; do
	eval "json_$f() { echo json_$f \"\$@\"; }"
done
jsonfilter() { # -s JSON -e @.NAME
	printf %s "$2" | sed -n "s/.*\"${4#@.}\": *\"\([^\"]*\)\".*/\1/p"
}

script=$1 config=$2 rundir=$3 what=${4:-start_service}
# shellcheck disable=SC1090 # the script under test
. "$script"
# shellcheck disable=SC2034 # the script reads them
CONFIG=$config RUNDIR=$rundir UMDNS=${TEST_UMDNS:-$UMDNS} PROG=${TEST_PROG:-$PROG} UJAIL=${TEST_UJAIL:-/bin/true} LEDS=${TEST_LEDS:-$LEDS} DEV=${TEST_DEV:-$DEV}
$what
# As rc.common does after the start; here it is waited for.
if [ "$what" = start_service ]; then
	sleep() { :; }
	# shellcheck disable=SC2034 # the script reads it
	initscript=${TEST_RELOAD:-/bin/false}
	service_started
	wait
fi
