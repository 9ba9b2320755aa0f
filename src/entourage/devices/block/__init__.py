"""Disks: shared storage, a mirror, or a refusal; and what the hosts know of their storage."""
