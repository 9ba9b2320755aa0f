"""What a user of Proxmox VE types about one VM, by what its configuration says of it.

``qm`` knows a VM only on the node that has its configuration, and does not resume one whose
configuration says ``lock: migrate``. While the task of ``qm migrate`` is under way that lock must
stay: the task is about to let the target's copy run, and a source that runs on would be a second
one. A task that is stopped has the guest run on at the source by itself.

``qm stop`` is no way to end one of two copies. It needs the lock away, and what is off and not
locked is started again, by HA for example.
"""

from __future__ import annotations

from pathlib import Path

from entourage.hypervisors.attended.toolstack import Commands


def commands_of(vmid: str, run: Path, lock: str = "", elsewhere: str = "") -> Commands:
    """What is typed on this node.

    Args:
        vmid: The VM's number.
        run: Where QEMU's process ids are.
        lock: What its configuration says; empty: nothing.
        elsewhere: The node that has its configuration, where that is another one.
    """
    resume = f"qm resume {vmid}"
    if lock == "migrate":  # the title of the task's process says what it does; no pattern of itself
        resume = f"! pgrep -af '[q]migrate:{vmid}:' && qm unlock {vmid} && {resume}"
    if elsewhere:
        resume += f"  # on {elsewhere}, which has its configuration"
    copy = f"$(cat {run}/{vmid}.pid)"
    return Commands(
        see=f"qm status {vmid} || ps -fp {copy}", resume=resume, end=f"kill {copy}", abort=resume
    )
