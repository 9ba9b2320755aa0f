#!/bin/busybox sh
# Boots a lab host's dom0: Debian's own start of Xen's daemons, a bridge, sshd. Kernel arguments:
# lab.name=a lab.address=10.78.0.1
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/sshd /run/user
for number in 0 1 2; do ln -sfn /proc/self/fd/$number "/dev/$(echo stdin stdout stderr | cut -d' ' -f$((number + 1)))"; done
ln -sfn /proc/self/fd /dev/fd

for word in $(cat /proc/cmdline); do
    case $word in
        lab.name=*) name=${word#*=} ;;
        lab.address=*) address=${word#*=} ;;
    esac
done
hostname "$name"
echo "$name" >/etc/hostname
# udev: Xen's devices have names of udev's making, and hotplug scripts wait for it.
/lib/systemd/systemd-udevd --daemon
modprobe -a virtio_net bridge loop xen_blkback xen_netback xen_gntalloc xen_privcmd tun
udevadm settle --timeout=20

ip link set lo up
# The way in from the machine that the lab runs on, and the wire to the other host.
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip link add xenbr0 type bridge
ip link set eth1 master xenbr0
ip link set eth1 up
ip address add "$address/24" dev xenbr0
ip link set xenbr0 up

export XENCONSOLED_ARGS="--log=guest --log-dir=/var/log/xen/console"
mkdir -p /var/log/xen/console
/etc/init.d/xen start
/usr/sbin/sshd
echo "lab: $name is up" >/dev/hvc0
exec /bin/busybox init
