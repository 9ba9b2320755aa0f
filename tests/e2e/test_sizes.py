"""Disks whose size is no multiple of a page: what TEST says yes to, moves, and keeps its size."""

from __future__ import annotations

import os
import uuid

from lab.hosts import Lab
from tests.e2e.run import PATIENCE

ISO, DISK = 501 * 2048, 2049 * 512


def test_an_odd_iso_and_an_odd_disk_move(lab: Lab) -> None:
    """Their guest never comes further than its BIOS."""
    a, b, mine = lab["a"], lab["b"], uuid.uuid4()
    a.path("/srv/odd.iso").write_bytes(os.urandom(ISO))
    a.run(["truncate", "-s", str(DISK), "/srv/odd.raw"])
    a.path("/root/odd.toml").write_text(
        f"""
name = "odd"
uuid = "{mine}"
memory = "64M"
accel = "tcg"
[[block]]
id = "cd"
path = "/srv/odd.iso"
model = "ide-cd"
readonly = true
[[block]]
id = "disk0"
path = "/srv/odd.raw"
"""
    )
    try:
        a.run(["entourage", "start", "odd.toml"], timeout=PATIENCE)
        a.run(["entourage", "migrate", "odd", "b", "--dry-run"], timeout=PATIENCE)
        a.run(["entourage", "migrate", "odd", "b"], timeout=PATIENCE)
        assert b.path("/srv/odd.iso").read_bytes() == a.path("/srv/odd.iso").read_bytes()
        assert b.path("/srv/odd.raw").read_bytes() == bytes(DISK)
        assert not a.path("/srv/odd.raw").exists()
    finally:
        for host in (a, b):
            host.run(["entourage", "stop", "--force", "odd"], check=False, timeout=PATIENCE)
            host.run(["rm", "-rf", f"/var/lib/entourage/domains/{mine}"])
            host.run(["rm", "-f", "/srv/odd.iso", "/srv/odd.raw"])
