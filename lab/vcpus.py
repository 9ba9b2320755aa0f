"""Keeps the guests' processors from being interrupted, without which QEMU's TCG loses memory.

TCG looks whether a page is already known to be dirty, and then writes to it. Preempted between the
two, while live migration clears the page's mark and copies it, the write is lost, and the guest
dies of it after its arrival: on a busy machine with few cores in every second migration. KVM does
not have the problem. A real-time vCPU is hardly ever preempted, and few looks at what it has
written leave little room for it to matter.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_VCPU = "/TCG"  # the end of the name that QEMU gives to such a thread
PRIORITY = 1


def steady(known: set[str]) -> None:
    """Give every vCPU thread of this PID namespace real-time priority.

    Args:
        known: The processes seen before; of those that have all their threads only names are read.
    """
    alive = {entry.name for entry in os.scandir("/proc") if entry.name.isdigit()}
    known &= alive
    for name in alive - known:
        with suppress(OSError):
            if not Path("/proc", name, "comm").read_text().startswith("qemu-system"):
                known.add(name)
                continue
            for thread in Path("/proc", name, "task").iterdir():
                if (thread / "comm").read_text().rstrip().endswith(_VCPU):
                    tid = int(thread.name)
                    os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(PRIORITY))
                    known.add(name)
