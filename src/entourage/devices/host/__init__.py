"""Devices of the host that a guest has: USB and PCI. Unplugged here, plugged in there."""
