"""What passes between a hypervisor and the layers above it: values."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from entourage.domain import Domain
from entourage.hosts.filters import Filter
from entourage.hosts.turns import Turn

Plan: TypeAlias = msgspec.Raw
"""What the target's half must know of the source's before it can build: a value of its backend's.

In MessagePack; nobody but the backend reads it.
"""


class DomainState(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ``entourage list``."""

    name: str
    uuid: str
    state: str
    """``running``, ``paused``, ``incoming``, ``finish-migrate``, ``crashed``, ``shut off``, …"""
    pid: int | None = None
    memory: int = 0
    vcpus: int = 0
    console: str = ""
    """The socket of the guest's serial console, which takes one at a time; empty for none."""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that is off, as another host can have it.

    Attributes:
        domain: The domain.
        autostart: Whether it starts with its host.
        images: Files and devices that both hosts must see, and that must be the same.
        facts: As ``Machine.facts``: what is compared on the target. A hypervisor that has it in
            words of its own has them here, and defines from them: they are what was judged.
        objections: Why it cannot leave: the device, the reason, what to do.
    """

    domain: Domain
    autostart: bool = False
    images: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    objections: tuple[tuple[str, str, str], ...] = ()


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Where a disk of the target's machine takes the mirror's writes.

    Attributes:
        host, port: The target's address, numeric, and its TCP port.
        name: The NBD export's.
        socket: A unix socket instead, where both are processes of one host.
    """

    host: str
    port: int
    name: str
    socket: str = ""


class NewVolume(msgspec.Struct, frozen=True, kw_only=True):
    """An empty image to be made in a storage pool.

    Attributes:
        path: Where; its directory is the pool's.
        format: ``raw`` or ``qcow2``.
        size: What the guest sees, bytes.
        allocated: Whether all its room is to be set aside.
        cluster_size: Of a qcow2, bytes; None leaves it to the hypervisor.
        backing, backing_format: The image below it, for an overlay.
        mode, owner, group: As the source's file has them, by number; owner -1 leaves it.
    """

    path: str
    format: str
    size: int
    allocated: bool = False
    cluster_size: int | None = None
    backing: str | None = None
    backing_format: str | None = None
    mode: int = 0o600
    owner: int = -1
    group: int = -1


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A path in a storage pool of another host, as the hypervisor there shows it.

    Attributes:
        pool: What tells the pool from others there.
        free: Bytes free in it.
        size: Of what is at the path, bytes; None where nothing is.
        marked: Whether a file of the name that was asked for lies beside it.
    """

    pool: str
    free: int
    size: int | None = None
    marked: bool = False


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """Where the target's machine takes memory and CPU state, in its backend's own words."""

    uri: str
    cookie: bytes = b""


class Secret(msgspec.Struct, frozen=True):
    """The one-time pre-shared key of a migration; never printed, logged or put in the journal."""

    username: str
    key: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"Secret({self.username!r}, …)"


class Since(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that another save has only the changes since of.

    Attributes:
        directory: Where it is; its images are named there by those that are built on them.
        sha256: Of its manifest's text: whether it is still that one.
        mark: What the hypervisor calls its record of what was written since.
        images: The disks that were copied into it: the format of each one's image, by its id.
    """

    directory: str
    sha256: str
    mark: str
    images: dict[str, str]


class LocalData(msgspec.Struct, frozen=True, kw_only=True):
    """Memory and disks do not leave this host: a machine is saved, or restored.

    Attributes:
        socket: The unix socket at which memory is taken.
        generation: The domain's, as the source's journal counts it.
        paused: The guest was paused by its user, and stays so.
        checkpoint: The guest goes on here after it was saved.
        copies: The disks that are copied into the save: the path of each here, by its id.
        sealed: The others must be what they are when it is restored.
        revert: The machine goes back: it is older than what this host has recorded of it since.
        filters: What memory goes through, in this order; in the other one out of a save.
        far: They go to another host, by sockets that ssh connects to those of the same paths there.
        mark: What the hypervisor is to call its record of what is written to copied disks after
            this checkpoint; empty where none is to be kept.
        since: Only what was written since then is copied of the disks that are in that one.
    """

    socket: str
    generation: int
    paused: bool
    checkpoint: bool = False
    copies: dict[str, str] = {}
    sealed: bool = False
    revert: bool = False
    filters: tuple[Filter, ...] = ()
    far: bool = False
    mark: str = ""
    since: Since | None = None

    def disk_socket(self, disk: str = "") -> str:
        """The unix socket at which the writes of a disk are taken, by its id; of all, without."""
        return f"{self.socket}.disk{disk and '.'}{disk}"

    @property
    def passed_on(self) -> bool:
        """Whether memory is passed on by processes of this host, on its way into a save."""
        return self.far or bool(self.filters)

    @property
    def source_socket(self) -> str:
        """Where it is taken to be passed on, from a hypervisor that is given a path alone."""
        return f"{self.socket}.from"

    @property
    def sockets(self) -> tuple[str, ...]:
        """All that may be listened at."""
        disks = (self.disk_socket(disk) for disk in sorted(self.copies))
        return (self.socket, self.source_socket, self.disk_socket(), *disks)


RESTORES = "restores"
"""A fact of a machine that its own hypervisor is to restore: it is there that it was saved.

``GOES_BACK`` where it went on after that: the state here is newer than the save. ``ANOTHER`` where
it is made into another machine.
"""
GOES_BACK = "goes-back"
ANOTHER = "another"


KEEPS = "keeps"
"""What a save offers that keeps ``SavePlan.kept``; older ones would lose it."""
KEEPS_LATE = "late"
"""The value of one that waits for it where it comes later."""


class SavePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a machine that is restored by the hypervisor that saves it, and by no other.

    One of Entourage's own machines has another plan, which reads as an empty one of these.

    Attributes:
        hypervisor: Its name, by which it is found again where the machine is restored.
        sends: It sends memory to the socket of ``LocalData``; else it writes a file itself.
        kept: Of one that sends: what it must know to take that again; in its own words.
        later: That is not known yet, and comes before all of memory is sent.
        turns: Of one that writes a file from its beginning to its end: what says so, and what it
            writes over as that is whole. Empty where nothing is known of its order.
    """

    hypervisor: str = ""
    sends: bool = False
    kept: bytes = b""
    later: bool = False
    turns: tuple[Turn, ...] = ()


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a machine that such a hypervisor is to restore.

    Attributes:
        file: The path of the file that it has written; empty where memory is sent to it again, to
            the socket of ``LocalData``.
        kept: What it has said about the machine as that was saved; in its own words.
        copied: The ids of the disks that are copied out of the save: each is one image by itself.
        first: Of another machine that is made of it: the configuration of the one that was saved.
    """

    file: str
    kept: bytes
    copied: tuple[str, ...] = ()
    first: Domain | None = None


class DataPlane(msgspec.Struct, frozen=True, kw_only=True):
    """How disks and memory travel.

    Attributes:
        address: The address of the target that QEMU's streams go to.
        ports: First and last TCP port that may be used on the target.
        secret: The TLS pre-shared key; None sends everything in the clear.
        bandwidth: Bytes a second for memory; 0 for no limit.
        host: What ssh knows the target as, for streams that go by ssh.
        local: Both halves are processes of this host, and memory goes from one to the other.
    """

    address: str
    ports: tuple[int, int]
    secret: Secret | None
    bandwidth: int = 0
    host: str = ""
    local: LocalData | None = None


class TpmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the TPM emulator of a host can do; compared between both hosts at TEST.

    Attributes:
        program: The emulator's name, ``swtpm``; empty where none is installed.
        version: Its version as numbers, ``(0, 7, 1)``; empty where it does not say.
        capabilities: Its own words: ``tpm-1.2``, ``tpm-2.0``, ``rsa-keysize-2048``, …
    """

    program: str = ""
    version: tuple[int, ...] = ()
    capabilities: frozenset[str] = frozenset()


class MemoryProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far pre-copy has come; bytes, bytes a second, seconds."""

    remaining: int
    total: int
    dirty_rate: float
    rate: float
    iteration: int
    sent: int = 0
    """Bytes that have gone to the target; 0 where that is not known."""
