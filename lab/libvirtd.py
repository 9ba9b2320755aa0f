"""A real libvirtd on a lab host: its own configuration, storage, identity; started and killed.

No service of the machine has a part in it: the daemon is a process of the host, and goes with it
when its plug is pulled. Other hosts reach it through ssh as any libvirtd (`qemu+ssh://a/system`),
programs of its own host by its socket (`qemu:///system`).
"""

from __future__ import annotations

import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.host import Host

LOCAL = "qemu:///system"
IMAGES = "/var/lib/libvirt/images"
"""Where the disks of domains lie, on each host: its pool `default`."""
LOG = "/var/log/libvirt/libvirtd.log"

_PID_FILE = "/run/libvirtd.pid"
_START_TIMEOUT = 30.0
_DEATH_TIMEOUT = 10.0

# All is root on a lab host: no polkit. A keepalive that notices a cut link within seconds.
_DAEMON_CONF = """\
host_uuid = "{host_uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
log_filters = "3:util 3:rpc 1:qemu.qemu_migration"
log_outputs = "2:file:{log}"
keepalive_interval = 1
keepalive_count = 5
"""
# A lab host has no cgroups, and is a mount namespace already. virtlogd is one process less.
_QEMU_CONF = """\
user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 5
"""


def ssh_uri(host: Host) -> str:
    """What other hosts call this host's libvirtd."""
    return f"qemu+ssh://{host.name}/system"


class Libvirtd:
    """The libvirtd of one host. Domains outlive it, as they do everywhere."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def start(self, *, listen: bool = False) -> None:
        """Start it and return when it answers; after a power cut too.

        Args:
            listen: Whether it is to be reached by TLS as well; it has its certificates then.
        """
        host = self.host
        machine_id = host.path("/etc/machine-id").read_text().strip()
        host.run(["mkdir", "-p", "/etc/libvirt", IMAGES, str(Path(LOG).parent)])
        host.write_files(
            {
                "/etc/libvirt/libvirtd.conf": _DAEMON_CONF.format(
                    host_uuid=uuid.UUID(machine_id), log=LOG
                ),
                "/etc/libvirt/qemu.conf": _QEMU_CONF,
            }
        )
        # What packages make that would also start services; libvirtd insists that it is there.
        if host.run(["id", "libvirt-qemu"], check=False).returncode:
            host.run(["useradd", "--system", "--no-create-home", "libvirt-qemu"])
        if host.run(["getent", "group", "kvm"], check=False).returncode:
            host.run(["groupadd", "--system", "kvm"])
        # It detaches when its sockets are there.
        argv = ["libvirtd", "--daemon", "--pid-file", _PID_FILE, *(["--listen"] if listen else [])]
        host.run(argv, timeout=_START_TIMEOUT)
        if "default" not in self.virsh("pool-list", "--all", "--name").stdout.split():
            self.virsh("pool-define-as", "default", "dir", "--target", IMAGES)
            self.virsh("pool-autostart", "default")
            self.virsh("pool-start", "default")

    @property
    def pid(self) -> int:
        """Its process id, as the host counts."""
        return int(self.host.path(_PID_FILE).read_text())

    @property
    def runs(self) -> bool:
        """Whether it lives."""
        try:
            name = self.host.path(f"/proc/{self.pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return name == "libvirtd"

    def stop(self) -> None:
        """Ask it to end, as a service is stopped; return when it is gone."""
        self._end("TERM")

    def kill(self) -> None:
        """Kill it at once, in the middle of whatever it does; return when it is gone."""
        self._end("KILL")

    def _end(self, signal: str) -> None:
        self.host.run(["kill", f"-{signal}", str(self.pid)])
        deadline = time.monotonic() + _DEATH_TIMEOUT
        while self.runs:  # its parent is the host's first process, which tells nobody
            if time.monotonic() > deadline:
                raise TimeoutError(f"libvirtd of {self.host.name} does not die")
            time.sleep(0.002)

    def virsh(
        self, *argv: str, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run virsh on the host to its end."""
        return self.host.run(
            ["virsh", "--quiet", "--connect", LOCAL, *argv], check=check, timeout=timeout
        )

    @property
    def version(self) -> str:
        """What it says of its version, and of QEMU's."""
        return self.virsh("version").stdout

    def domains(self) -> dict[str, str]:
        """Each domain that it knows, and its state in virsh's words."""
        found: dict[str, str] = {}
        for name in self.virsh("list", "--all", "--name").stdout.split():
            found[name] = self.virsh("domstate", name).stdout.strip()
        return found


def start_all(hosts: Iterable[Host]) -> list[Libvirtd]:
    """Start the libvirtd of each host, side by side: most of it is waiting for QEMU's answers."""
    daemons = [Libvirtd(host) for host in hosts]
    with ThreadPoolExecutor() as pool:
        list(pool.map(Libvirtd.start, daemons))
    return daemons
