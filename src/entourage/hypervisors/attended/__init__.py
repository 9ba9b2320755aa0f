"""Machines whose migration somebody else drives, as ``virsh migrate``."""
