"""``virsh migrate``, attended and not: the same domain, with devices of ours and without."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from subprocess import DEVNULL

from bench.guests import SETTINGS, Shape, Traveller
from bench.virsh import Virsh
from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from lab.libvirtd import start_all

HOOK = "/etc/libvirt/hooks/qemu.d/entourage"
_CONFIG = "/etc/entourage/entourage.toml"
_ATTENDED_WITHIN = 30.0
_SLOW = 0.2  # seconds


class Attended(Virsh):
    """A libvirt domain with two external devices, moved by virsh alone.

    Args:
        lab: Where.
        shape: What the guest consists of.
        index: Its number in the lab.
        party: What it is called among the others.
        seconds: What each device takes in step 2.
    """

    def __init__(self, lab: Lab, shape: Shape, index: int, party: str, seconds: float) -> None:
        super().__init__(lab, shape, index, party)
        tool = f"/srv/tool-{index}"
        script = f'#!/bin/sh\n[ "$4" = 2 ] && exec sleep {seconds:g}\nexit 0\n'
        self.metadata = "\n".join(
            f'[[external]]\nid = "d{n}"\ntype = "other"\ntool = "{tool}"' for n in range(2)
        )
        for host in (self.source, self.target):
            host.write_files({tool: script})
            host.path(tool).chmod(0o755)

    def start(self) -> None:
        """Start the guest on a, running and attended."""
        super().start()
        deadline = time.monotonic() + _ATTENDED_WITHIN
        check = ["entourage", "attend", "--check", self.name]
        while self.source.run(check, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not attended")
            time.sleep(0.1)


@contextlib.contextmanager
def daemons(lab: Lab) -> Generator[None]:
    """Have both hosts attend, whatever is migrated on them."""
    hosts = (lab["a"], lab["b"])
    for host in hosts:
        _set_up(host)
    start_all(list(hosts))
    command = ["entourage", "attend"]
    running = [host.popen(command, stdout=DEVNULL, stderr=DEVNULL) for host in hosts]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait(10)


def _set_up(host: Host) -> None:
    host.run(["mkdir", "-p", str(Path(HOOK).parent), str(Path(_CONFIG).parent)])
    hook = (REPOSITORY / "src/entourage/hypervisors/attended/hook.py").read_text()
    host.write_files({HOOK: hook, _CONFIG: SETTINGS})
    host.path(HOOK).chmod(0o755)


def parties(lab: Lab, shape: Shape) -> Sequence[Traveller]:
    """The same virsh: of a domain with slow devices of ours, with idle ones, and without any.

    The first round is the other way round, and ratios are to who comes first there.
    """
    return [
        Attended(lab, shape, 2, "attended, 200 ms", _SLOW),
        Attended(lab, shape, 1, "attended", 0),
        Virsh(lab, shape, 0, "virsh"),
    ]
