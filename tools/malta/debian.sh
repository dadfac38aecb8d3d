#!/bin/sh
# Fetches what the emulated board runs besides our own programs, from Debian 12, the last
# release for 32-bit MIPS: its kernel with modules, and a static busybox. apt checks the
# signatures. It works in a state directory of its own: neither the architectures nor the
# package lists of this machine change, and nothing is installed.
#
#   tools/malta/debian.sh DIRECTORY     does nothing, fast, when DIRECTORY has it all
#   MIRROR=URL                          another Debian mirror than the one that apt uses here
set -eu

dir=${1:?which directory}
# shellcheck disable=SC2016 # apt-get fills it in
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1)}
keys=/usr/share/keyrings/debian-archive-keyring.gpg

mkdir -p "$dir"
dir=$(realpath "$dir")
[ ! -e "$dir/complete" ] || exit 0
if [ ! -e $keys ]; then
	echo "malta: $keys is missing: install debian-archive-keyring" >&2
	exit 1
fi

unobtainable() {
	echo "malta: Debian 12 for mipsel cannot be had from ${mirror:-any mirror that apt uses here}: $1" >&2
	echo "malta: set MIRROR to the address of another Debian mirror, or of Debian's archive" >&2
	exit 1
}
[ -n "$mirror" ] || unobtainable 'apt names none'

state=$dir/apt
rm -rf "$state" "$dir/root"
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs"
echo "deb [signed-by=$keys] $mirror bookworm main" >"$state/sources.list"
: >"$state/status"
for o in APT::Architecture=mipsel APT::Architectures=mipsel Dir::State="$state" Dir::State::lists="$state/lists" \
	Dir::State::status="$state/status" Dir::Cache="$state/cache" Dir::Etc::sourcelist="$state/sources.list" \
	Dir::Etc::sourceparts=- APT::Sandbox::User=root Acquire::Languages=none Acquire::Retries=2 Acquire::http::Timeout=30 \
	Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false; do
	set -- "$@" -o "$o"
done
shift
echo "malta: fetching Debian's MIPS kernel and busybox (about 55 MB)"
apt-get -qq "$@" update || unobtainable 'no package lists'
# The package of that name only names the newest kernel.
kernel=$(apt-cache "$@" depends linux-image-4kc-malta | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
[ -n "$kernel" ] || unobtainable 'no kernel for the board'
(cd "$state/debs" && apt-get -qq "$@" download "$kernel" busybox-static) || unobtainable 'no packages'
for p in "$state"/debs/*.deb; do
	dpkg-deb -x "$p" "$dir/root"
done
rm -rf "$state"
echo "$kernel" >"$dir/complete"
echo "malta: $kernel is in $dir"
