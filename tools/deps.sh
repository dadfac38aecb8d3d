#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use; does nothing, fast,
# when they are there. Daemons that come with them are neither started nor set to start
# at boot: the tests run their own copies in private network namespaces.
#
#   tools/deps.sh [test] [bench] [lint] [build]  what is needed for these jobs (default: these)
#   tools/deps.sh image                          for the Raspberry Pi image and its test
#   tools/deps.sh malta                          for the OpenWrt package on an emulated MIPS board
#   tools/deps.sh packages                       for the Debian packages on a booted Debian
#   tools/deps.sh --check [job...]               only say what is missing; exit 1 if anything is
set -eu

# job, package, what proves that it is there (a command, or a file), what it is for
list() {
	cat <<-'END'
		test  gcc               gcc                  the race detector
		test  libc6-dev         /usr/include/stdio.h the race detector
		test  iproute2          ip                   network namespaces with emulated links
		test  util-linux        unshare              network namespaces without root
		test  dbus              dbus-daemon          runs avahi in a namespace
		test  avahi-daemon      avahi-daemon         the mDNS peer we must agree with
		test  avahi-utils       avahi-browse         the mDNS peer we must agree with
		test  qemu-user-static  qemu-mipsel-static   runs the router build on this machine
		test  nodejs            node                 the tether client in another language
		test  npm               npm                  fetches its WebSocket package, pinned
		test  chromium          chromium             shows the device's page
		test  fonts-dejavu-core /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf what chromium writes with
		test  zbar-tools        zbarimg              reads the QR codes we draw
		test  curl              curl                 an HTTP/2 client of another make
		test  openssl           openssl              checks our certificates and signatures
		test  busybox           busybox              the shell of OpenWrt, for its init script
		test  dpkg              dpkg-deb             unpacks our packages
		test  podman            podman               runs the images of relay and gateway
		test  runc              runc                 what podman starts them with
		packages mmdebstrap     mmdebstrap           fetches the Debian that the packages are installed on
		packages systemd-container systemd-nspawn    boots it
		packages util-linux     nsenter              looks into it
		build xz-utils          xz                   measures what the router build takes on flash
		build zopfli            zopfli               packs for OpenWrt as small as it goes
		build squashfs-tools    mksquashfs           measures what an image with it takes on flash
		build iproute2          ip                   a network of its own for the measured gateway
		build e2fsprogs         mkfs.ext4            the writable partition of the Raspberry Pi images
		build mtools            mformat              the boot partition of the Raspberry Pi Zero W image
		build dpkg              dpkg-deb             unpacks its kernel
		build debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg checks where the kernel comes from
		bench iproute2          ip                   network namespaces with emulated links
		bench nginx             nginx                what the gateway is measured against
		lint  shellcheck        shellcheck           checks the shell scripts
		image e2fsprogs         mkfs.ext4            the writable partition of the Raspberry Pi image
		image mtools            mformat              the boot partition of the Raspberry Pi Zero W image
		image dpkg              dpkg-deb             unpacks its kernel
		image debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg checks where the kernel comes from
		image xz-utils          xz                   packs the images
		image qemu-system-arm   qemu-system-aarch64  boots the Raspberry Pi images
		malta qemu-system-mips  qemu-system-mipsel   runs the OpenWrt package on a MIPS board
		malta squashfs-tools    mksquashfs           the programs of that board
		malta dpkg              dpkg-deb             unpacks the kernel of that board
		malta debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg who signs that kernel
	END
}

check=no
jobs=
for arg; do
	case $arg in
	--check) check=yes ;;
	-h | --help)
		sed -n '2,10s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	test | bench | lint | build | image | malta | packages) jobs="$jobs $arg" ;;
	*)
		echo "deps: unknown argument \"$arg\": want --check, test, bench, lint, build, image, malta or packages" >&2
		exit 2
		;;
	esac
done
[ -n "$jobs" ] || jobs="test bench lint build"

PATH=$PATH:/usr/sbin:/sbin
present() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null 2>&1 ;;
	esac
}

missing=
while read -r job package proof why; do
	case " $jobs " in *" $job "*) ;; *) continue ;; esac
	case " $missing " in *" $package "*) continue ;; esac
	if ! present "$proof"; then
		echo "deps: $package is missing ($why)"
		missing="$missing $package"
	fi
done <<END
$(list)
END
[ -n "$missing" ] || exit 0

if [ $check = yes ]; then
	exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: this is not a Debian system: install them as your system does." >&2
	echo "deps: going on without: tests that need them are skipped and say so." >&2
	exit 0
fi

as_root=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "deps: run as root:  apt-get install -y --no-install-recommends$missing" >&2
		echo "deps: or go on without them, skipping what needs them:  make test DEPS=off" >&2
		exit 1
	fi
	as_root=sudo
	[ -t 0 ] || as_root="sudo -n" # nobody is there to type a password
	echo "deps: sudo is asked for, to install:$missing"
fi

# While this script runs, and only then, Debian's own switch (/usr/sbin/policy-rc.d)
# tells the packages not to start daemons. The file looks for this process, so even one
# left behind by a power cut forbids nothing.
policy=/usr/sbin/policy-rc.d
ours=no
cleanup() {
	[ $ours = no ] || $as_root rm -f $policy
}
trap cleanup EXIT
trap 'exit 130' INT TERM
if [ ! -e $policy ]; then
	ours=yes
	printf '#!/bin/sh\n# made by CloudREST deps.sh: no daemons while it installs\n[ -d /proc/%s ] && exit 101\nexit 0\n' $$ | $as_root tee $policy >/dev/null
	$as_root chmod 755 $policy
fi

install() {
	# Another package manager may be at work: wait for its lock instead of failing.
	# shellcheck disable=SC2086 # words are wanted
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
		-o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing </dev/null
}
# The package lists are often fresh enough; fetch them only when they are not.
install || {
	$as_root apt-get -qq -o DPkg::Lock::Timeout=300 update </dev/null
	install
}

for daemon in avahi-daemon nginx podman; do
	case " $missing " in *" $daemon "*) ;; *) continue ;; esac
	for unit in $daemon.service $daemon.socket; do
		if [ -e /lib/systemd/system/"$unit" ] && command -v deb-systemd-helper >/dev/null 2>&1; then
			$as_root deb-systemd-helper disable "$unit" >/dev/null 2>&1 || true
		fi
	done
	$as_root update-rc.d $daemon disable >/dev/null 2>&1 || true
	echo "deps: $daemon is installed, but is not running and will not start at boot"
done
echo "deps: installed:$missing"
