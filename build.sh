#!/bin/sh
# Builds CloudREST: static programs, and packages of them.
#
#   ./build.sh                     everything, into dist/, with dist/SHA256SUMS
#   ./build.sh --only mipsle       only names that match: a target, a program, or a pattern
#   ./build.sh --only '*.ipk'      only these packages, and the programs in them
#   ./build.sh --only img          only the images for SD cards of a Raspberry Pi (tools/cmd/piimage/README.md)
#   ./build.sh --no-images         everything but these, which need 220 MB from the network the first time
#   ./build.sh --host              for this machine only, all programs, into bin/
#   ./build.sh --list              print the names and stop
#   ./build.sh --profile full      cloudrestd for MIPS, faster; the default (router) has all features too, but is
#                                  smaller: it fits beside OpenWrt in 16 MB of flash
#   ./build.sh --profile tiny      for the smallest flash: the LAN alone, and slower TLS (openwrt/README.md)
#   ./build.sh --tags A,B          Go build tags (openwrt/README.md lists ours with their sizes)
#   ./build.sh --sizes             print what each profile and tag is worth on MIPS, as the table of openwrt/README.md
#   ./build.sh --best              for a release: .ipk files 6 % smaller, 20 s longer each (zopfli)
#   ./build.sh --key FILE          sign dist/manifest.json: openssl genpkey -algorithm ed25519; with it, devices
#                                  that run an image take updates, and only those signed with this key
#
# The same commit and the same Go give the same bytes. VERSION=v1.2.3 names the version
# instead of git; SOURCE_DATE_EPOCH the time.
set -eu
cd "$(dirname "$0")"

# program, its package, the targets it is not for
programs='cloudrestd ./firmware/cmd/cloudrestd -
cloudrelay ./cloud/cmd/cloudrelay linux-mips,linux-mipsle,linux-armv7sf
cloudrest ./tools/cmd/cloudrest linux-armv7sf'

# target, GOARCH, its variant. Routers have no floating-point unit.
targets='linux-mips mips GOMIPS=softfloat
linux-mipsle mipsle GOMIPS=softfloat
linux-armv6 arm GOARM=6
linux-armv7 arm GOARM=7
linux-armv7sf arm GOARM=7,softfloat
linux-arm64 arm64 GOARM64=v8.0
linux-amd64 amd64 GOAMD64=v1'

# package, the program in it. OpenWrt names architectures by processor, and the names of
# processors without a floating-point unit do not say so. Debian's armhf runs on a Raspberry
# Pi Zero only with the ARMv6 program.
packages="$(for a in mips_24kc:linux-mips mipsel_24kc:linux-mipsle arm_arm1176jzf-s_vfp:linux-armv6 \
	arm_cortex-a7:linux-armv7sf arm_cortex-a7_neon-vfpv4:linux-armv7 aarch64_cortex-a53:linux-arm64 \
	aarch64_cortex-a72:linux-arm64 aarch64_generic:linux-arm64 x86_64:linux-amd64; do
	echo "cloudrest_${a%:*}.ipk cloudrestd-${a#*:}"
	echo "cloudrest_${a%:*}.apk cloudrestd-${a#*:}"
done
echo 'luci-app-cloudrest_all.ipk -' # the page: no program, every architecture
echo 'luci-app-cloudrest_noarch.apk -'
for p in cloudrestd cloudrelay cloudrest; do
	for a in armhf:linux-armv6 arm64:linux-arm64 amd64:linux-amd64; do
		echo "${p}_${a%:*}.deb $p-${a#*:}"
	done
done
for a in armv7 arm64 amd64; do
	echo "cloudrelay_$a.oci.tar cloudrelay-linux-$a"
	echo "cloudrestd_$a.oci.tar cloudrestd-linux-$a"
done)"

# image, the board that it is for
images='cloudrest-pi-arm64.img.xz pi
cloudrest-pi-zero-w.img.xz zero-w'

# The gateway shares 16 MB of flash with OpenWrt, which keeps it compressed with xz.
gate_name=cloudrestd-linux-mipsle
gate_bytes=10200000
gate_xz=2250000
gate_ipk_name=cloudrest_mipsel_24kc.ipk
gate_ipk=3300000
# Aims, not limits.
tiny_bytes=8600000
tiny_xz=1800000

usage() { sed -n '2,21s/^# \{0,1\}//p' "$0"; }

only=
mode=dist
with_images=yes
profile=router
tags=
key=
best=
need() { # arguments left, flag, what it takes
	[ "$1" -gt 1 ] || {
		echo "build: $2 needs $3" >&2
		exit 2
	}
}
while [ $# -gt 0 ]; do
	case $1 in
	--only)
		need $# "$1" 'a name, such as mipsle or cloudrestd'
		only=$2
		shift
		;;
	--only=*) only=${1#*=} ;;
	--profile)
		need $# "$1" 'full, router or tiny'
		profile=$2
		shift
		;;
	--tags)
		need $# "$1" 'Go build tags, separated by commas'
		tags=$2
		shift
		;;
	--best) best=-best ;;
	--key)
		need $# "$1" 'a file with an Ed25519 key'
		key=$(realpath -- "$2")
		shift
		;;
	--no-images) with_images=no ;;
	--host) mode=host ;;
	--memory) mode=memory ;;
	--sizes) mode=sizes ;;
	--list) mode=list ;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		echo "build: unknown argument \"$1\"; see ./build.sh --help" >&2
		exit 2
		;;
	esac
	shift
done

case $profile in
full | router) ;;
tiny) ;;
*)
	echo "build: unknown profile \"$profile\": want full, router or tiny" >&2
	exit 2
	;;
esac

# The version: what the caller says, else git, else a plain word (a source archive).
commit=
seconds=${SOURCE_DATE_EPOCH:-}
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
	VERSION=${VERSION:-$(git describe --tags --always --dirty --match 'v*')}
	commit=$(git rev-parse HEAD)
	seconds=${seconds:-$(git log -1 --format=%ct)}
fi
VERSION=${VERSION:-unversioned}
info=github.com/cloudrest/cloudrest/tether/buildinfo
ldflags="-s -w -buildid= -X $info.version=$VERSION -X $info.commit=$commit -X $info.seconds=$seconds"

# Routers have little flash: for MIPS nothing is inlined but what the processor spends its
# time in: the runtime, the arithmetic of TLS, and the tiny packages both are made of.
# Measured on an earlier, smaller cloudrestd for mipsle (user time per operation in qemu-user;
# least of ten runs):
#
#                               bytes       xz -9e   TLS handshake  1 MB of ChaCha20
#   all inlined            10,420,381    2,484,972            5 ms             37 ms
#   this list               9,502,877    2,165,376            5 ms             40 ms
#   the list but runtime    9,371,805    2,094,172           12 ms             42 ms
#   nothing inlined         9,371,805    2,033,660           30 ms            165 ms
#
# A small request costs 0.21, 0.27, 0.35 and 0.48 ms. More packages on the list (net/http,
# crypto/tls, tether, bufio, time) gained nothing that could be measured. Fewer save little:
# without nistec 45 and 38 KB, but a P-256 signature is checked in 24 ms instead of 3.
hot="runtime internal/runtime/... internal/abi internal/bytealg internal/stringslite internal/goarch
	internal/byteorder internal/race internal/sync math/bits sync sync/atomic
	crypto/internal/fips140/nistec/... crypto/internal/fips140/bigmod crypto/internal/fips140/sha256
	crypto/internal/fips140/sha512 crypto/internal/fips140/sha3 crypto/internal/fips140/edwards25519/field
	crypto/internal/fips140/mlkem crypto/internal/fips140/subtle crypto/internal/fips140/alias
	crypto/internal/fips140deps/... vendor/golang.org/x/crypto/..."

# The router profile: the runtime is small instead.
hot_router=${hot#runtime }

# The tiny one inlines nothing. Of the list, only math/bits saves much, 30 KB with xz: with it
# goes the arithmetic of all four NIST curves, of which P-521, never used, takes most.

# What the gateway can be built without (firmware/internal/features), and all that the tiny
# profile leaves out.
features='no_board no_cache no_http2 no_mdns no_page no_provision no_tether'
tiny_tags=no_board,no_cache,no_mdns,no_page,no_provision,no_tether

# For MIPS, zeroconf gets our own message format instead of github.com/miekg/dns, by a second
# go.mod (firmware/discovery/dns): 460 KB less, 71 KB with xz.
small_mod() {
	mkdir -p "$1"
	cp go.mod go.sum "$1/"
	go mod edit -replace github.com/miekg/dns=./firmware/discovery/dns/zeroconf "$1/go.mod"
}

compile() { # output, package
	output=$1
	package=$2
	tags_here=$tags
	flags=$ldflags
	case $profile:${like:-${GOARCH:-}}:$package in
	tiny:*/cloudrestd) tags_here=${tags:+$tags,}no_http2,no_handler,$tiny_tags ;;
	router:mips*/cloudrestd) tags_here=${tags:+$tags,}no_handler ;;
	esac
	set --
	case ${like:-${GOARCH:-}} in mips*)
		set -- -gcflags=all=-l
		case $profile in
		router) hot=$hot_router ;;
		tiny) hot= ;;
		esac
		for p in $hot; do set -- "$@" "-gcflags=$p="; done # the last pattern that matches wins
		# The segments of the file lie 64 KiB apart, for kernels with such pages. Those of
		# 32-bit routers have 4 KiB, a few 16: up to 100 KB less.
		flags="$flags -R 0x4000"
		small=$(mktemp -d)
		small_mod "$small"
		set -- "$@" -modfile="$small/go.mod"
		;;
	esac
	[ -z "$tags_here" ] || set -- "$@" -tags "$tags_here"
	built=0
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" "$@" -o "$output" "$package" || built=$?
	[ -z "${small:-}" ] || rm -rf "$small"
	return $built
}

failed=no # at the end; until then everything is made

# gate refuses a gateway that does not fit beside OpenWrt.
gate() { # bytes
	command -v xz >/dev/null || {
		echo 'build: xz is missing (make deps): the size that counts on flash is not checked' >&2
		return 0
	}
	packed=$(($(xz -9e -c "dist/$gate_name" | wc -c)))
	if [ "$profile" = tiny ]; then
		echo "build: $gate_name: $1 bytes, the aim is $tiny_bytes; with xz -9e $packed, the aim is $tiny_xz"
		return 0
	fi
	if [ "$profile" = full ]; then
		echo "build: $gate_name: $1 bytes, with xz -9e $packed; the limits of the default profile are $gate_bytes and $gate_xz"
		return 0
	fi
	echo "build: $gate_name: $1 bytes of at most $gate_bytes, with xz -9e $packed of at most $gate_xz"
	if [ "$1" -gt $gate_bytes ] || [ $packed -gt $gate_xz ]; then
		echo "build: too large; find what grew:  go tool nm -size -sort size  on a build without -s -w" >&2
		failed=yes
	fi
}

if [ $mode = host ]; then
	mkdir -p bin
	printf '%s\n' "$programs" "factory ./tools/cmd/factory none" "irrigation ./tools/cmd/irrigation none" | while read -r program package _; do
		echo "build: bin/$program"
		compile "bin/$program" "$package"
	done
	exit 0
fi

# For "make memory": the router's program, but for a 32-bit processor that runs here, and ours.
if [ $mode = memory ]; then
	mkdir -p bin
	GOOS=linux GOARCH=386 like=mips compile bin/cloudrestd-386 ./firmware/cmd/cloudrestd
	GOOS=linux GOARCH=amd64 compile bin/cloudrestd-amd64 ./firmware/cmd/cloudrestd
	exit 0
fi

# For the table: bytes on flash before and after xz, with each choice alone.
if [ $mode = sizes ]; then
	temporary=$(mktemp -d)
	trap 'rm -rf "$temporary"' EXIT
	export GOOS=linux GOARCH=mipsle GOMIPS=softfloat
	row() { # what it is called; profile and tags are set
		compile "$temporary/cloudrestd" ./firmware/cmd/cloudrestd
		printf '| %s | %s | %s |\n' "$1" "$(wc -c <"$temporary/cloudrestd")" "$(xz -9e -c "$temporary/cloudrestd" | wc -c)"
	}
	printf '| build for mipsle | bytes | %s |\n|---|---|---|\n' "\`xz -9e\`"
	for profile in full router tiny; do row "\`--profile $profile\`"; done
	profile=router
	for tags in $features; do row "\`--tags $tags\`"; done
	exit 0
fi

# match is true for a name that --only asks for.
match() { case $1 in *$only*) ;; *) return 1 ;; esac }

packing=$(printf '%s\n' "$packages" | while read -r package program; do
	if match "$package"; then echo "$package $program"; fi
done)
# The programs: those that match, and those in the packages.
nl='
'
names=$(printf '%s\n' "$programs" | while read -r program package without; do
	printf '%s\n' "$targets" | while read -r target arch variant; do
		case ",$without," in *",$target,"*) continue ;; esac
		case "$packing$nl" in *" $program-$target$nl"*) wanted=yes ;; *) wanted=no ;; esac
		match "$program-$target" && wanted=yes
		[ $wanted = no ] || echo "$program-$target $package $arch $variant"
	done
done)
# Images take long: whoever asks for arm64 programs does not mean them.
case $only in '' | *img* | *cloudrest-pi*) ;; *) with_images=no ;; esac
imaging=$([ $with_images = no ] || printf '%s\n' "$images" | while read -r image board; do
	if match "$image"; then echo "$image $board"; fi
done)
if [ -z "$names$packing$imaging" ]; then
	echo "build: --only \"$only\" matches nothing; ./build.sh --list prints the names" >&2
	exit 2
fi
if [ $mode = list ]; then
	printf '%s\n' "$names" "$packing" "$imaging" | sed '/^$/d' | cut -d ' ' -f 1
	exit 0
fi

go version
mkdir -p dist
[ -n "$only" ] || rm -f dist/*
total=$(printf '%s\n' "$names" | wc -l)
n=0
printf '%s\n' "$names" >dist/.names
while read -r name package arch variant; do
	[ -n "$name" ] || continue # only packages without a program
	n=$((n + 1))
	printf 'build: %2d/%d %-26s ' $n "$total" "$name"
	(
		export GOOS=linux GOARCH="$arch" "${variant?}"
		compile "dist/$name" "$package"
	)
	size=$(($(wc -c <"dist/$name")))
	printf '%5d.%d MB\n' $((size / 1000000)) $((size / 100000 % 10))
	[ "$name" != $gate_name ] || gate "$size"
done <dist/.names
rm dist/.names

# image makes dist/$1 for a board: without any password, so that it may be published.
# What cannot be made here stops nothing else.
image() { # image, board
	name=${1%.img.xz}
	begin=$(date +%s)
	temporary=dist/.image # beside the result: images are large
	rm -rf "$temporary"
	mkdir "$temporary"
	set -- "$1" build --board "$2" --no-secrets --out "$temporary/$name.img"
	[ -z "$key" ] || set -- "$@" --sign-key "$key"
	result=$1
	shift
	# Blocks, so that the number of processors does not show in the bytes.
	if (cd tools/cmd/piimage && go build -o "../../../$temporary/piimage" .) &&
		VERSION=$VERSION SOURCE_DATE_EPOCH=${seconds:-0} "$temporary/piimage" "$@" >"$temporary/log" &&
		xz -3 -T2 --block-size=67108864 "$temporary/$name.img"; then
		mv "$temporary/$name.img.xz" "$temporary/$name.cdx.json" dist/
		[ ! -e "$temporary/$name.update" ] || mv "$temporary/$name.update" dist/
		size=$(($(wc -c <"dist/$result")))
		printf 'build: %-32s %5d.%d MB, took %d s\n' "$result" $((size / 1000000)) $((size / 100000 % 10)) $(($(date +%s) - begin))
		[ -n "$key" ] || echo "build: $result takes no updates over the network: no --key was given"
	else
		cat "$temporary/log" 2>/dev/null
		echo "build: $result is NOT made, see above; all else is (--no-images leaves images out)" >&2
		failed=yes
	fi
	rm -rf "$temporary"
}
if [ -n "$imaging" ]; then
	printf '%s\n' "$imaging" >dist/.images
	while read -r result board; do image "$result" "$board" </dev/null; done <dist/.images
	rm dist/.images
fi

# In one call, so that it is compiled once. What dist/ held before is described too.
set -- -version "$VERSION" -commit "$commit" -time "${seconds:-0}" ${key:+-key "$key"} $best
for p in $(printf '%s\n' "$packing" | sed '/^$/d; s/ /:/'); do set -- "$@" "$p"; done
(cd tools/pack && go run . "$@")
if [ -e dist/$gate_ipk_name ]; then
	size=$(($(wc -c <dist/$gate_ipk_name)))
	echo "build: $gate_ipk_name: $size bytes, at most $gate_ipk with --best"
	if [ -n "$best" ] && [ $size -gt $gate_ipk ]; then
		echo "build: too large for a router's flash" >&2
		failed=yes
	fi
fi
echo "build: $VERSION is in dist/, checksums in dist/SHA256SUMS"
[ $failed = no ]
