#!/bin/busybox sh
# Answers one request to a lab guest: a line in, lines of key=value out.

nv_index=01500001
pcr=00000017 # PCR 23
# An authorisation area of 9 bytes: TPM_RS_PW, no nonce, no attributes, no password.
password=00000009400000090000000000

# Send a command given in hexadecimal to the TPM, print its answer likewise.
tpm() {
    hex=$1
    bytes=
    while [ -n "$hex" ]; do
        bytes="$bytes\\x${hex:0:2}"
        hex=${hex:2}
    done
    exec 3<>/dev/tpmrm0
    printf "$bytes" >&3
    dd bs=4096 count=1 <&3 2>/dev/null | xxd -p -c 4096
    exec 3>&-
}

nv_increment() { tpm "80020000001f00000134$nv_index$nv_index$password"; }

nv_read() {
    answer=$(tpm "8002000000230000014e$nv_index$nv_index${password}00080000")
    echo $((0x${answer:32:16}))
}

# Put this boot into PCR 23 and count it in a counter that the TPM keeps.
tpm_boot() {
    [ -e /dev/tpmrm0 ] || return
    digest=$(sha256sum /run/boot)
    digest=${digest%% *}
    tpm "80020000004100000182$pcr${password}00000001000b$digest" >/run/tpm.extend
    tpm "80020000002d0000012a40000001${password}0000000e${nv_index}000b0206001600000008" \
        >/run/tpm.define
    nv_increment >/run/tpm.increment
}

report_tpm() {
    if [ ! -e /dev/tpmrm0 ]; then
        echo "tpm=none"
        return
    fi
    for number in 16 23; do
        echo "pcr$number=$(cat /sys/class/tpm/tpm0/pcr-sha256/$number)"
    done
    echo "nv=$(nv_read)"
}

# A number from a file that another process writes anew, and that is empty for a moment.
number_in() {
    number=
    until [ -n "$number" ]; do read -r number <"$1"; done
    echo "$number"
}

report_status() {
    echo "boot=$(cat /run/boot)"
    read -r uptime _ </proc/uptime
    echo "uptime=$uptime"
    echo "ticks=$(number_in /run/ticks)"
    for file in /run/disk.*; do
        [ -e "$file" ] && echo "disk.${file##*.}=$(number_in "$file")"
    done
    [ -e /run/paused ] && echo "paused=1"
}

if [ "$1" = tpm-boot ]; then
    tpm_boot
    exit
fi
read -r request
case $request in
    status) report_status ;;
    tpm) report_tpm ;;
    nv-inc)
        nv_increment >/run/tpm.increment
        report_tpm
        ;;
    pause-writes)
        touch /run/paused
        report_status
        ;;
    resume-writes)
        rm -f /run/paused
        report_status
        ;;
    clock) echo "clock=$(date +%s)" ;;
    notices)
        told=
        [ -e /run/notices ] && while read -r line; do told="$told$line,"; done </run/notices
        echo "notices=$told"
        ;;
    refuse | agree)
        [ "$request" = refuse ] && touch /run/refuses || rm -f /run/refuses
        echo "ok=1"
        ;;
    poweroff | reboot)
        echo "ok=1"
        (usleep 50000; "$request" -f) >/dev/null 2>&1 &
        ;;
    *) echo "error=unknown request" ;;
esac
