#!/bin/busybox sh
# The whole of a lab guest: a disk writer for each disk, a tick counter, a TPM to look at, and a
# server for requests. Everything that repeats uses what the shell does by itself: under TCG a
# fork costs a millisecond, an exec five.
#
# Kernel command line: lab.ip=ADDRESS lab.observer=ADDRESS lab.observer_mac=MAC lab.dirty=MIB

# The shell finds its own applets by way of /proc.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run

modprobe -a -q $(cat /sys/bus/pci/devices/*/modalias)
modprobe -a -q $(cat /sys/bus/virtio/devices/*/modalias)

for word in $(cat /proc/cmdline); do
    case $word in
        lab.ip=*) ip=${word#*=} ;;
        lab.observer=*) observer=${word#*=} ;;
        lab.observer_mac=*) observer_mac=${word#*=} ;;
        lab.dirty=*) dirty=${word#*=} ;;
    esac
done
read -r boot </proc/sys/kernel/random/boot_id

ip link set lo up
if [ -n "$ip" ] && [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    ip address add "$ip/24" dev eth0
    [ -n "$observer_mac" ] && arp -s "$observer" "$observer_mac"
fi

mkfifo /run/report /run/never
# Opened for reading and writing: nobody waits for the other side, and nobody sees its end.
exec 8<>/run/report 9<>/run/never

report() { echo "$*" >&8; }

# Wait without a fork: nobody ever writes there.
nap() { read -r -t "$1" _ <&9; }

# One 4 KiB record after the other, each on the disk before it is acknowledged; from the start
# again after $ring records. A reader of the image knows each record by its number and this boot.
write_disk() {
    disk=$1
    read -r sectors <"/sys/block/$disk/size"
    ring=$((sectors / 8))
    [ "$ring" -gt 16384 ] && ring=16384
    sequence=0
    while :; do
        while [ -e /run/paused ]; do nap 0.02; done
        [ $((sequence % ring)) = 0 ] && exec 5<>"/dev/$disk"
        if printf '%-4095s\n' "entourage-lab $disk $sequence $boot" >&5 && sync -d "/dev/$disk"
        then
            report "ack $boot $disk $sequence"
        else
            report "error $boot $disk $sequence"
            return
        fi
        echo "$sequence" >"/run/disk.$disk"
        sequence=$((sequence + 1))
        nap 0.03
    done
}

# Lives in memory only: a machine that lost its memory starts at 0 again.
count_ticks() {
    ticks=0
    while :; do
        ticks=$((ticks + 1))
        read -r uptime _ </proc/uptime
        report "tick $boot $ticks $uptime"
        echo "$ticks" >/run/ticks
        nap 0.05
    done
}

# Write that many MiB of memory a second: about a tenth of them each tenth of a second.
dirty_memory() {
    while :; do
        part=0
        while [ "$part" -lt "$dirty" ]; do
            dd if=/bin/busybox of=/run/dirty bs=102k count=1 seek="$part" conv=notrunc 2>/dev/null
            part=$((part + 1))
        done
        nap 0.1
    done
}

# One connection for all reports, made again when it breaks.
send_reports() {
    while :; do
        nc "$observer" 7700 <&8 >/dev/null 2>&1
        nap 0.1
    done
}

answer_requests() {
    while :; do
        nc -ll -p 7701 -e /bin/request 2>/dev/null
        nap 0.1
    done
}

# QEMU's guest agent, where the guest has one, and its machine a channel for it.
talk_to_host() {
    for port in /sys/class/virtio-ports/*; do
        read -r name <"$port/name"
        [ "$name" = org.qemu.guest_agent.0 ] || continue
        qemu-ga --method virtio-serial --path "/dev/${port##*/}" --statedir /run --pidfile /run/qga
    done
}

echo "$boot" >/run/boot
[ -e /usr/sbin/qemu-ga ] && talk_to_host &
[ -n "$observer" ] && send_reports &
count_ticks &
[ "${dirty:-0}" -gt 0 ] && dirty_memory &
for path in /sys/block/*; do
    disk=${path##*/}
    read -r read_only <"$path/ro"
    case $disk in
        loop* | ram* | sr* | fd*) continue ;;
    esac
    [ "$read_only" = 0 ] && write_disk "$disk" &
done
answer_requests &
/bin/request tpm-boot
until grep -q ':1E15 ' /proc/net/tcp /proc/net/tcp6; do nap 0.02; done # 7701 listens
report "up $boot"
echo "lab guest $boot is up"
wait
