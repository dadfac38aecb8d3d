#!/bin/sh
# What OpenWrt's procd and netifd start: network, the maker's service, and the gateway by its
# own init script. Then commands from the second serial line: each line is run, and its exit
# code follows in a line of its own.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /tmp/run /tmp/procd
hostname OpenWrt
echo 2 >/proc/sys/kernel/printk
ip link set lo up
ip link set eth0 name br-lan
ip addr add 10.0.2.15/24 broadcast 10.0.2.255 dev br-lan
ip link set br-lan up
ip route add default via 10.0.2.2
mount -t cgroup2 cgroup2 /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control

irrigation --listen 127.0.0.1:8080 --fifo /var/run/cloudrest/notify >/dev/console 2>&1 &
/etc/init.d/cloudrest start >/dev/console 2>&1

# Held open: a line that nobody has open forgets what comes in.
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo '@ready' >&3
while read -r line <&3; do
	(eval "$line") >&3 2>&3 </dev/null 3<&-
	echo "@$?" >&3
done
