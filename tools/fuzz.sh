#!/bin/sh
# Runs every fuzz target of the module in turn, each for the time given (20s).
#
#   tools/fuzz.sh [time] [package pattern...]
set -eu
time=${1:-20s}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- ./...

# "go test -list" prints names, then "ok <package>" for each package.
targets=$(go test -list '^Fuzz' "$@") || {
	printf '%s\n' "$targets" >&2
	exit 1
}
targets=$(printf '%s\n' "$targets" | awk '/^Fuzz/ { names = names " " $1 } /^ok/ { n = split(names, a, " "); for (i = 1; i <= n; i++) print $2, a[i]; names = "" }')
[ -n "$targets" ] || {
	echo "fuzz: no targets" >&2
	exit 1
}
failed=
while read -r package name; do
	echo "== $name in $package, $time"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package" </dev/null || failed="$failed $package:$name"
done <<END
$targets
END
if [ -n "$failed" ]; then
	echo "fuzz: failed:$failed" >&2
	exit 1
fi
