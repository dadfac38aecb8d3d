#!/bin/sh
# The first program of the emulated board, from its initial RAM file system: does what
# OpenWrt's preinit does. The kernel hands over where the two parts of the flash lie, in the
# variables ROOTFS and ROOTFS_DATA.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for m in phram jffs2 squashfs overlay mii pcnet32; do
	insmod /lib/$m.ko || echo "preinit: no module $m"
done
echo "$ROOTFS" >/sys/module/phram/parameters/phram
echo "$ROOTFS_DATA" >/sys/module/phram/parameters/phram

mount -t squashfs -o ro /dev/mtdblock0 /rom &&
	mount -t jffs2 /dev/mtdblock1 /overlay &&
	mkdir -p /overlay/upper /overlay/work &&
	mount -t overlay -o lowerdir=/rom,upperdir=/overlay/upper,workdir=/overlay/work overlayfs:/overlay /new ||
	echo 'preinit: no root file system'
for d in proc sys dev rom overlay; do
	mount -o move /$d /new/$d
done
exec switch_root /new /sbin/init
