"""Where a domain's things are on this host.

A domain's name may hold spaces, quotes and ``$(…)``, and a unix socket's path has 107 bytes at
most: so its directories are named after its UUID, the one for sockets after a digest of that.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from entourage.errors import UsageError
from entourage.hosts.local import too_long
from entourage.hosts.ownership import RECORD
from entourage.settings.model import Settings

_LONGEST_SOCKET_NAME = "console.sock"
_LONGEST_LOG_NAME = 240


class Places(NamedTuple):
    """The directories and files of one domain on this host.

    Attributes:
        run: On tmpfs: sockets, keys, what runs.
        state: Survives a power cut: the running configuration, TPM state.
        log: What QEMU and swtpm say.
    """

    run: Path
    state: Path
    log: Path

    @property
    def qmp(self) -> Path:
        """The monitor of whoever starts, migrates or stops the domain."""
        return self.run / "qmp.sock"

    @property
    def guard(self) -> Path:
        """The monitor of the deadman."""
        return self.run / "guard.sock"

    @property
    def info(self) -> Path:
        """The monitor of whoever only looks."""
        return self.run / "info.sock"

    @property
    def console(self) -> Path:
        """The guest's serial port."""
        return self.run / "console.sock"

    @property
    def swtpm(self) -> Path:
        """The control socket of the TPM."""
        return self.run / "swtpm.sock"

    @property
    def psk(self) -> Path:
        """The directory of the one-time key, while there is one."""
        return self.run / "psk"

    @property
    def running(self) -> Path:
        """What runs: its configuration and processes."""
        return self.run / "running.json"

    @property
    def record(self) -> Path:
        """The configuration with which this host owns the domain."""
        return self.state / "domain.json"

    @property
    def owners(self) -> Path:
        """To whom the files belong that the machine was given; there only while it has some."""
        return self.state / RECORD

    def tpm_state(self, device: str) -> Path:
        """The directory of a TPM's state."""
        return self.state / f"tpm-{device}"


def run_root(settings: Settings) -> Path:
    """Where the run directories of all domains are."""
    return Path(settings.paths.run, "q")


def state_root(settings: Settings) -> Path:
    """Where the state directories of all domains are."""
    return Path(settings.paths.state, "domains")


def places(settings: Settings, uuid: str, name: str) -> Places:
    """Where the things of a domain are.

    Raises:
        UsageError: A path of the settings cannot be used for sockets or for swtpm.
    """
    uuid = uuid.lower()
    run = run_root(settings) / hashlib.sha256(uuid.encode()).hexdigest()[:12]
    if too_long(str(run / _LONGEST_SOCKET_NAME)):
        raise UsageError(
            f"{settings.paths.run} is too long a path for sockets to be in",
            remedy="set paths.run to a shorter one",
        )
    state = state_root(settings) / uuid
    if "," in f"{run}{state}":
        raise UsageError(
            f"swtpm cannot be given a path with a comma, as in {run} or {state}",
            remedy="set paths.run and paths.state to others",
        )
    log_name = name if len(name.encode()) <= _LONGEST_LOG_NAME else uuid
    return Places(run=run, state=state, log=Path(settings.paths.log, f"{log_name}.log"))
