#!/bin/sh
# A lab guest: counts ticks in its memory, writes each to its disk, and says so on its console.
# Ticks are 0.2 s; the kernel's argument lab.dirty=N has it rewrite N MiB of memory all the time.
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /tmp
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
$busybox mount -t tmpfs tmp /tmp
for module in xen-blkfront xen-netfront; do $busybox modprobe $module; done
boot=$($busybox cut -c1-8 /proc/sys/kernel/random/boot_id)
dirty=0
address=
for word in $($busybox cat /proc/cmdline); do
    case $word in
        lab.dirty=*) dirty=${word#*=} ;;
        lab.address=*) address=${word#*=} ;;
    esac
done
if [ -e /sys/class/net/eth0 ] && [ "$address" ]; then
    $busybox ip link set eth0 up
    $busybox ip address add "$address/24" dev eth0
fi
if [ "$dirty" -gt 0 ]; then
    while :; do
        $busybox dd if=/dev/urandom of=/tmp/dirty bs=1M count="$dirty" conv=notrunc 2>/dev/null
    done &
fi
disk=/dev/xvda
tick=0
while :; do
    tick=$((tick + 1))
    said=-
    if [ -b $disk ]; then
        # Sector N + 1 holds the record of tick N.
        $busybox printf '%-511s\n' "boot $boot tick $tick" >/tmp/record
        if $busybox dd if=/tmp/record of=$disk bs=512 seek=$((tick % 8000 + 1)) \
                count=1 conv=notrunc,fsync 2>/dev/null; then
            said=written
        else
            said=failed
        fi
    fi
    echo "boot $boot tick $tick disk $said"
    $busybox usleep 200000
done
