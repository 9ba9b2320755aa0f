"""Two real Xen hosts on one machine: Debian's Xen and dom0, each in a QEMU of its own."""
