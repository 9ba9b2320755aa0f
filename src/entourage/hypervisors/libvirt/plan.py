"""What libvirt's half on the target must know of the source's: on the link, in MessagePack."""

from __future__ import annotations

import msgspec

from entourage.hypervisors.libvirt.checkpoints import Checkpoint


class LibvirtPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What Begin has said, and what Prepare is given.

    Attributes:
        xml: The domain's, as it travels.
        cookie: Begin's, for Prepare.
        flags, parameters: Of the migration.
        transient: The domain has no definition of its own, and is to have none there.
        autostart: It starts with its host, and is to do so there.
        checkpoints: What libvirt knows of its backups, each after its parent.
    """

    xml: str = ""
    cookie: bytes = b""
    flags: int = 0
    transient: bool = False
    autostart: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()
    parameters: dict[str, str | int | list[str]] = {}
