#!/bin/sh
# The feed runs this after the build, with the name and the version of the package.
[ "$1" = cloudrest ] || exit 0
cloudrestd version | grep -F "$2" && cloudrestd run --config /etc/config/cloudrest --help >/dev/null
