"""The settings of a host, as values; seconds and bytes a second."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=86400 * 7)]


_LATER = "3.0.4"


class _Section(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """A table of the file: unknown keys are errors."""


class ToolSettings(_Section, frozen=True):
    """An external migration tool: for every class, or for one of them."""

    command: str | None = None
    """Split as a shell would, run without one. For every class that has none of its own."""
    block: str | None = None
    net: str | None = None
    tpm: str | None = None
    usb: str | None = None
    pci: str | None = None
    external: str | None = None
    subtypes: dict[str, str] = {}
    """By device class: what follows ``-subtype``, after ``-domname``."""
    as_xend: Literal["3.0.2", "3.0.4"] = "3.0.2"
    """Whose contract tools keep: the older called none at step 0, and took a line with ``Error``
    for a failure; the newer, to Xen 4.2, called them there, and looked for ``Error`` for TPMs only.
    """
    call_at_test: bool = False
    """Whether the tool is called at step 0 too."""
    timeout: Seconds = 60.0
    """For one call in steps 0, 1 and 3, and for a recovery."""

    @property
    def calls_at_test(self) -> bool:
        """Whether the tool is called at step 0."""
        return self.call_at_test or self.as_xend == _LATER

    def error_counts(self, device_class: str) -> bool:
        """Whether a line with ``Error`` is a failure of a device of that class."""
        return self.as_xend != _LATER or device_class == "tpm"


class ConvergenceStage(_Section, frozen=True):
    """What is accepted from ``after`` seconds of pre-copy on."""

    after: Annotated[float, Meta(ge=0)]
    downtime_limit: Annotated[float, Meta(gt=0, le=60)]
    throttle: bool = False
    """Slow the guest down (auto-converge)."""
    give_up: bool = False
    """Fail instead: the migration is rolled back."""


DEFAULT_CONVERGENCE = (
    ConvergenceStage(after=0, downtime_limit=0.03),
    ConvergenceStage(after=20, downtime_limit=0.1),
    ConvergenceStage(after=40, downtime_limit=0.3),
    ConvergenceStage(after=80, downtime_limit=0.3, throttle=True),
    ConvergenceStage(after=180, downtime_limit=1.0, throttle=True),
    ConvergenceStage(after=900, downtime_limit=1.0, throttle=True, give_up=True),
)


class MigrationSettings(_Section, frozen=True):
    """How a migration goes; most have an option of ``entourage migrate``."""

    max_blackout: Seconds = 10.0
    """Seconds that the guest may be stopped; past it, everything goes back."""
    bandwidth: Annotated[int, Meta(ge=0)] = 0
    """Bytes a second for memory; 0 for no limit."""
    tls: bool = True
    """Encrypt memory and disks with a one-time pre-shared key."""
    ports: Annotated[tuple[int, int], Meta(description="first and last")] = (49152, 49215)
    data_address: str | None = None
    """The target's address for QEMU's streams; None: what the host's name resolves to."""
    test_timeout: Seconds = 30.0
    prepare_timeout: Seconds = 86400.0
    recover_timeout: Seconds = 60.0
    recover_first_timeout: Seconds = 2.0
    """For a device that must recover before the guest may run again."""
    doubt_timeout: Seconds = 30.0
    """After GO: how long to look for an answer before the user is told of the doubt."""
    link_silence: Seconds = 10.0
    """A link that says nothing for this long is lost."""
    convergence: Annotated[tuple[ConvergenceStage, ...], Meta(min_length=1)] = DEFAULT_CONVERGENCE


class SshSettings(_Section, frozen=True):
    """How the target is reached; the user's own ssh configuration applies as well."""

    options: tuple[str, ...] = ()
    """More arguments for ssh, ``["-o", "Port=2222"]``."""
    remote_command: str = "entourage"
    """What runs on the target, ``sudo entourage``; split as a shell would."""


class AgentSettings(_Section, frozen=True):
    """What another host may do here by ``entourage agent``; asked on the host that it comes to."""

    image_directories: tuple[str, ...] = ("/var/lib/libvirt/images", "/srv")
    """Beneath these, images of machines that arrive are made, looked at and opened."""
    boot_directories: tuple[str, ...] = ("/usr/share", "/usr/lib", "/var/lib/libvirt/boot")
    """Beneath these lie firmware and kernels that it may name, and its guest then read."""
    anyones_directories: tuple[str, ...] = ()
    """In these, and beneath them, every user may replace files, and that is accepted."""
    devices: tuple[str, ...] = ()
    """This host's own devices that it may use, by patterns: ``/dev/vg1/*``, ``usb:1050:0407``."""
    networks: tuple[str, ...] = ("*",)
    """Bridges, networks of libvirt's and interfaces that its NICs may be on, by patterns."""
    ports: tuple[int, int] = (1024, 65535)
    """First and last TCP port at which its memory and disks may be taken."""
    allowed_hypervisors: tuple[str, ...] = (
        "qemu",
        "xen",
        "qemu:///system",
        "qemu:///session",
        "proxmox",
    )
    sources: tuple[str, ...] = ("*",)
    """What a source may call itself, by patterns; to be trusted only with ``--source``."""
    owners: tuple[str, ...] = ("root", "libvirt-qemu", "qemu")
    """Users and groups that an image may be given to; others' become root's."""
    links: Annotated[int, Meta(ge=1, le=4096)] = 256
    """How many migrations of one source may be open here at once; each has one link."""
    arrivals: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """How many domains may arrive here at once, from whichever source; None: as many as come."""
    domains_memory: Annotated[int, Meta(ge=1)] | None = None
    """Bytes of memory that the domains here may have in sum, those that arrive included; None: what
    the hypervisor finds free."""
    allow_unencrypted: bool = False
    """Take memory and disks of Entourage's own machines in the clear where that is asked for."""
    believe_shared: bool = False
    """Open an image that both hosts are said to see, and nothing proves it (``shared = "yes"``)."""


class AttendSettings(_Section, frozen=True):
    """How migrations that are another tool's are attended (``entourage attend``)."""

    unattended: Literal["refuse", "allow"] = "refuse"
    """Whether an attended domain may migrate where a daemon is missing, its devices left behind."""
    toolstack: Literal["libvirt", "proxmox"] = "libvirt"
    """Whose migrations: libvirt's (``qemu:///system``), or Proxmox VE's."""


class FleetSettings(_Section, frozen=True):
    """The page of a fleet's controller (``entourage fleet serve --listen``)."""

    may: tuple[str, ...] = ()
    """Users, and groups as ``@ops``, that may pause, resume, abort and retry; others only look."""
    names: tuple[str, ...] = ()
    """What browsers call the page, as ``fleet.example.org``; another Host header is refused."""
    user_header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")] = "X-Remote-User"
    """The header in which a proxy says who the user is."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses that header is believed from, over TCP; over a unix socket it always is."""
    socket_group: str | None = None
    """The group that may connect to the page's unix socket; None: its user's."""


class QemuSettings(_Section, frozen=True):
    """How Entourage's own machines run on this host."""

    user: str | None = None
    """Whom QEMU and swtpm run as; None: ``entourage-qemu``, where there is such a user."""


class JournalSettings(_Section, frozen=True):
    """How long this host keeps what settled migrations made here; decisions it keeps for ever."""

    keep: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    """Of so many migrations, the newest."""
    keep_days: Annotated[int, Meta(ge=0, le=36500)] = 90
    """And of none that was settled earlier than so many days ago."""


class PathSettings(_Section, frozen=True):
    """Where this host keeps things."""

    state: str = "/var/lib/entourage"
    """Survives a power cut: the journal, running configurations, TPM state."""
    run: str = "/run/entourage"
    """On tmpfs: sockets, keys, locks."""
    log: str = "/var/log/entourage"


class Settings(_Section, frozen=True):
    """All of it; every key has a default."""

    migration: MigrationSettings = MigrationSettings()
    tool: ToolSettings = ToolSettings()
    ssh: SshSettings = SshSettings()
    agent: AgentSettings = AgentSettings()
    attend: AttendSettings = AttendSettings()
    fleet: FleetSettings = FleetSettings()
    qemu: QemuSettings = QemuSettings()
    journal: JournalSettings = JournalSettings()
    paths: PathSettings = PathSettings()
