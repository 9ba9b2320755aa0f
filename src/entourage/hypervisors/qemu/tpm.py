"""The swtpm processes behind emulated TPMs, and their state at rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from entourage import durable
from entourage.domain import Domain, Tpm
from entourage.errors import DeviceError, HypervisorError
from entourage.hosts import programs
from entourage.hosts.account import Account
from entourage.hosts.process import ProcessHandle, launch
from entourage.hosts.resources import Ledger, marked_processes
from entourage.hosts.threads import in_thread
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import TpmFacts
from entourage.hypervisors.qemu.access import let_through
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.record import remove_if_empty
from entourage.hypervisors.qemu.sockets import listening
from entourage.hypervisors.swtpm import sync_parents

_SWTPM = "swtpm"
_SETUP = "swtpm_setup"
_SETUP_WITHIN = 60.0  # seconds; it makes a key
_STATE_AT_MOST = 16 << 20  # of a file; a swtpm that was taken over can claim any size


def make_state(where: Places, tpm: Tpm, ledger: Ledger, account: Account | None = None) -> bool:
    """Make the directory of a TPM's state, 0700; False where there is one already.

    Args:
        where: The domain's places.
        tpm: The TPM.
        ledger: Takes what is made before it is.
        account: Whose the state is from now on, for its swtpm runs so; None: Entourage's user.
    """
    directory = where.tpm_state(tpm.id)
    if directory.is_dir():
        _own(directory, account)
        return False
    for new in (where.state, directory):
        if not new.is_dir():
            ledger.record("dir", path=str(new))
            new.mkdir(mode=0o700, parents=True)
    _own(directory, account)
    sync_parents(directory)
    return True


def _own(directory: Path, account: Account | None) -> None:
    """Make the state, which another user's swtpm may have written, this one's."""
    if os.geteuid() != 0:
        return
    uid, gid = (account.uid, account.gid) if account is not None else (0, 0)
    let_through(directory.parent, None if account is None else account.gid)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for _name, descriptor in _files(handle):
            os.fchown(descriptor, uid, gid)
        os.fchown(handle, uid, gid)
    finally:
        os.close(handle)


def _files(directory: int) -> Iterator[tuple[str, int]]:
    """The plain files in an open directory that a swtpm of any user's may have written to.

    Nothing that it put there is followed or waited for: no link, no FIFO, no other name of a file.

    Yields:
        Name and descriptor of each; the descriptor is closed after.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    for name in os.listdir(directory):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            continue
        descriptor = os.open(name, flags, dir_fd=directory)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                yield name, descriptor
        finally:
            os.close(descriptor)


async def manufacture(where: Places, tpm: Tpm, account: Account | None = None) -> None:
    """Give a new TPM an endorsement key, where swtpm_setup is installed.

    swtpm makes a TPM out of nothing by itself; only the key is missing then, which a guest can
    make too. So a swtpm_setup that does not work is no reason not to start.
    """
    if shutil.which(_SETUP) is None:
        return
    directory = where.tpm_state(tpm.id)
    version = ["--tpm2"] if tpm.version == "2.0" else []
    user = _as(account)
    runas = ["--runas", "root"] if account is None and os.geteuid() == 0 else []
    try:
        status, out, said = await programs.run(
            *user, _SETUP, *version, *runas, "--tpm-state", str(directory), "--createek",
            "--not-overwrite", within=_SETUP_WITHIN, cwd="/",
        )  # fmt: skip
    except DeviceError as error:
        status, out, said = 1, "", error.message
    where.log.parent.mkdir(parents=True, exist_ok=True)
    if status:
        for leftover in directory.iterdir():
            if not leftover.is_dir():
                leftover.unlink()
        with where.log.open("ab") as log:
            log.write(f"{out}{said}\n".encode())
            log.write(b"entourage: swtpm_setup failed; swtpm makes the TPM by itself\n")
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for _name, descriptor in _files(handle):
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(handle)


async def start(
    where: Places, tpm: Tpm, *, marker: str, unit: str, account: Account | None = None
) -> ProcessHandle | None:
    """Start the swtpm of a TPM, whose state directory exists; QEMU can connect at once.

    It ends when QEMU's connection does. Its start is in no ledger of its own: it carries the
    marker that the machine's processes are recorded with.

    Returns:
        Its process; None where that has ended already, and said why in the domain's log.
    """
    if shutil.which(_SWTPM) is None:
        raise HypervisorError("swtpm is not installed", device=tpm.label, remedy="install swtpm")
    version = ["--tpm2"] if tpm.version == "2.0" else []
    owner = -1 if account is None else account.uid
    with listening(where.swtpm, owner) as server:
        pid = await launch(
            [
                *_as(account), _SWTPM, "socket", *version, "--terminate",
                "--ctrl", f"type=unixio,fd={server.fileno()}",
                "--tpmstate", f"dir={where.tpm_state(tpm.id)},mode=0600",
            ],
            marker=marker,
            log=where.log,
            unit=unit,
            pass_fds=(server.fileno(),),
        )  # fmt: skip
    return ProcessHandle.open(pid)


def _as(account: Account | None) -> list[str]:
    return [] if account is None else account.command()


def is_alive(marker: str) -> bool:
    """Whether one of the processes with this marker is a swtpm. Looks at all of the host's."""
    for pid in marked_processes(marker):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == _SWTPM:
                return True
    return False


def erase_state(directory: Path) -> None:
    """Erase a TPM's state, permanent and volatile; the disk knows when this returns. Blocks.

    What is not there (any more) is erased already.
    """
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for _name, descriptor in _files(handle):
            # Put zeros over it: its blocks may stay readable on the disk for long.
            os.write(descriptor, bytes(min(os.fstat(descriptor).st_size, _STATE_AT_MOST)))
            os.fsync(descriptor)
    finally:
        os.close(handle)
    shutil.rmtree(directory)
    durable.sync_directory(directory.parent)
    remove_if_empty(directory.parent)


class QemuTpm:
    """The state of a machine's emulated TPMs on this host.

    Args:
        domain: The machine's.
        where: Its places.
    """

    stays = False

    def __init__(self, domain: Domain, where: Places) -> None:
        self._domain = domain
        self._where = where

    async def facts(self) -> TpmFacts:
        """What the emulator can do."""
        if any(tpm.type == "emulator" for tpm in self._domain.tpm):
            return await swtpm.facts()
        return TpmFacts()

    async def erase(self, tpm: Tpm) -> None:
        """After ``release``: destroy the TPM's state on this host; nothing left is no error."""
        await in_thread(erase_state, self._where.tpm_state(tpm.id))


class QemuTpmArrival:
    """The same of a machine that is being built here.

    Args:
        where: Its places.
    """

    def __init__(self, where: Places) -> None:
        self._where = where

    async def facts(self) -> TpmFacts:
        """What the TPM emulator of this host can do; can be asked before ``build``."""
        return await swtpm.facts()

    async def sync(self, tpm: Tpm) -> None:
        """Flush the TPM's state, file and directory, to this host's disk."""
        await in_thread(swtpm.sync_state, self._where.tpm_state(tpm.id))
