"""What makes `ssh b` work on host a: keys, known hosts, client and server configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 100
LogLevel VERBOSE
Subsystem sftp internal-sftp
SetEnv PATH={search_path}
"""

_CLIENT_CONFIG = """\
Host *
    User root
    BatchMode yes
    StrictHostKeyChecking yes
    ConnectTimeout 5
"""


class Keys:
    """A key pair for each host and one for their root users, made once for a lab."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def _pair(self, name: str) -> tuple[str, str]:
        private = self._directory / name
        if not private.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(private)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        return private.read_text(), Path(f"{private}.pub").read_text()

    def files(self, host: str, addresses: Mapping[str, str], search_path: str) -> dict[str, str]:
        """The files of one host; `addresses` are those of all hosts with an sshd."""
        private, public = self._pair("root")
        known = [
            f"{name},{address} {self._pair(f'host-{name}')[1]}"
            for name, address in addresses.items()
        ]
        files = {
            "/root/.ssh/id_ed25519": private,
            "/root/.ssh/id_ed25519.pub": public,
            "/root/.ssh/authorized_keys": public,
            "/root/.ssh/known_hosts": "".join(known),
            "/root/.ssh/config": _CLIENT_CONFIG,
        }
        if host in addresses:
            private, public = self._pair(f"host-{host}")
            files["/etc/ssh/ssh_host_ed25519_key"] = private
            files["/etc/ssh/ssh_host_ed25519_key.pub"] = public
            files["/etc/ssh/sshd_config"] = _SSHD_CONFIG.format(search_path=search_path)
        return files
