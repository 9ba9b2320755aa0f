"""libvirt's numbers and names, as far as they are used here; all are part of its stable ABI.

They stand here, and not as attributes of its Python module, because that need not be installed.
"""

from __future__ import annotations

import enum
from typing import Final


class Flag(enum.IntFlag):
    """``virDomainMigrateFlags``."""

    LIVE = 1 << 0
    TUNNELLED = 1 << 2
    PERSIST_DEST = 1 << 3
    UNDEFINE_SOURCE = 1 << 4
    PAUSED = 1 << 5
    NON_SHARED_DISK = 1 << 6
    NON_SHARED_INC = 1 << 7
    CHANGE_PROTECTION = 1 << 8
    UNSAFE = 1 << 9
    AUTO_CONVERGE = 1 << 13
    TLS = 1 << 16


NOT_FOR_TARGET: Final = Flag.CHANGE_PROTECTION | Flag.AUTO_CONVERGE
"""What the source alone is told."""

FROM_SOURCE: Final = (
    NOT_FOR_TARGET
    | Flag.LIVE
    | Flag.PERSIST_DEST
    | Flag.UNDEFINE_SOURCE
    | Flag.PAUSED
    | Flag.NON_SHARED_DISK
    | Flag.NON_SHARED_INC
    | Flag.UNSAFE
    | Flag.TLS
)
"""All that the source's half sets."""


class Parameter(enum.StrEnum):
    """``VIR_MIGRATE_PARAM_*``."""

    URI = "migrate_uri"
    DEST_NAME = "destination_name"
    DEST_XML = "destination_xml"
    PERSIST_XML = "persistent_xml"
    BANDWIDTH = "bandwidth"
    DISKS = "migrate_disks"
    TLS_DESTINATION = "tls.destination"
    CONVERGE_INITIAL = "auto_converge.initial"
    CONVERGE_INCREMENT = "auto_converge.increment"


UNSIGNED_LONG: Final = frozenset({Parameter.BANDWIDTH})
"""Numbers that are ``unsigned long long``; all others are ``int``."""


class State(enum.IntEnum):
    """``virDomainState``."""

    NONE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUT_OFF = 5
    CRASHED = 6
    SUSPENDED = 7


SHUT_OFF: Final = {1: "guest-shutdown", 2: "it was destroyed", 6: "QEMU failed"}
"""What of ``virDomainShutoffReason`` may become of a guest that moves.

Not 3, a crash: so libvirtd calls whatever has ended while it was not there.
"""

OFF: Final = frozenset({State.SHUT_OFF, State.CRASHED})

STATE_NAMES: Final = {
    State.RUNNING: "running",
    State.BLOCKED: "running",
    State.PAUSED: "paused",
    State.SHUTDOWN: "shutting down",
    State.SHUT_OFF: "shut off",
    State.CRASHED: "crashed",
    State.SUSPENDED: "suspended",
}
"""In the words of ``entourage list``."""


class BlockCopy(enum.IntFlag):
    """``virDomainBlockCopyFlags``."""

    SHALLOW = 1 << 0
    REUSE_EXT = 1 << 1
    TRANSIENT_JOB = 1 << 2


class BlockJob(enum.IntEnum):
    """``virConnectDomainEventBlockJobStatus``, one more than libvirt's: 0 is none here."""

    COMPLETED = 1
    FAILED = 2
    CANCELLED = 3
    READY = 4


LIFECYCLE: Final = 0
BLOCK_JOB: Final = 16
ITERATION: Final = 20
"""``VIR_DOMAIN_EVENT_ID_LIFECYCLE``, ``…_BLOCK_JOB_2`` and ``…_MIGRATION_ITERATION``."""


class Lifecycle(enum.IntEnum):
    """``virDomainEventType``."""

    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    CRASHED = 8


BLOCK_JOB_ABORT_ASYNC: Final = 1 << 0
"""``VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC``."""
NO_METADATA: Final = 1 << 2
"""``VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA``."""
IMAGE_XML_SECURE: Final = 1 << 0
"""``VIR_DOMAIN_SAVE_IMAGE_XML_SECURE``."""
PAUSED_BY_MIGRATION: Final = 2
"""``VIR_DOMAIN_PAUSED_MIGRATION``: what libvirt has restored from a file has it until it runs."""
PAUSED_BY_USER: Final = 1
"""``VIR_DOMAIN_PAUSED_USER``: also of what came through a socket, before it runs."""
STATS_OF_BLOCKS: Final = 1 << 5
"""``VIR_DOMAIN_STATS_BLOCK``."""
STATS_AT_ONCE: Final = 1 << 29
"""``VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT``: while it has a job, what QEMU would say lacks."""
PAUSED_BY_IO_ERROR: Final = 5
"""``VIR_DOMAIN_PAUSED_IOERROR``, a reason of ``State.PAUSED``."""
SAVE_PAUSED: Final = 1 << 2
"""``VIR_DOMAIN_SAVE_PAUSED``."""

XML_SECURE: Final = 1
XML_INACTIVE: Final = 2
XML_MIGRATABLE: Final = 8

NO_SUPPORT: Final = 3
NO_DOMAIN: Final = 42
NO_VOLUME: Final = 50
VOLUME_EXISTS: Final = 90
"""``virErrorNumber``."""

CHANGES: Final = "entourage-copy-"
"""What QEMU calls the jobs, and the nodes, by which changes are copied; a disk's id follows."""
