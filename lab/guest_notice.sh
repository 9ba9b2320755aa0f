#!/bin/busybox sh
# A program in the guest that is told what becomes of it. It says no while /run/refuses is there.
echo "$*" >>/run/notices
[ "$1" = before ] && [ -e /run/refuses ] && echo "not now" >&2 && exit 1
exit 0
