"""Whom QEMU and swtpm run as, and how that user gets at what they open.

What the user can open as it is stays as it is. Images, block devices and USB devices that it cannot
are given to it, until the machine has ended; everything else is refused, with what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from entourage.domain import Block, Domain
from entourage.errors import DeviceError, HypervisorError, UsageError, plain_words, what_to_do
from entourage.hosts import usb
from entourage.hosts.account import Account, Wanted
from entourage.hosts.ownership import give, give_back, given
from entourage.hosts.programs import qemu_img_info
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import is_on_local_storage
from entourage.hypervisors.qemu.cmdline import is_readonly
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.record import remove_if_empty
from entourage.settings.model import QemuSettings

USUAL_USER = "entourage-qemu"
_MAKE_USER = "useradd --system --no-create-home --shell /usr/sbin/nologin"
_ASK_FOR_ROOT = 'set qemu.user = "root" in the settings'
_KVM = "/dev/kvm"


class Problem(NamedTuple):
    """What the user cannot get at."""

    device: str
    reason: str
    remedy: str


class _Opened(NamedTuple):
    """What a device of the machine opens."""

    device: str
    wanted: Wanted


def account_of(settings: QemuSettings) -> Account | None:
    """Whom QEMU and swtpm run as; None: as Entourage itself.

    Raises:
        UsageError: The settings name a user that is not there, or that cannot be changed to.
    """
    name = settings.user or USUAL_USER
    privileged = os.geteuid() == 0
    if name == "root" or (not privileged and settings.user is None):
        return None
    account = Account.find(name, devices=(_KVM,))
    if account is None:
        if settings.user is None:
            return None
        raise UsageError(
            f"there is no user {name}, whom qemu.user names",
            remedy=f"make it ({_MAKE_USER} {name}), or {_ASK_FOR_ROOT}",
        )
    if account.uid == os.geteuid():
        return None
    if not privileged:
        raise UsageError(
            f"QEMU cannot be run as {name}", remedy="run Entourage as root, or leave qemu.user out"
        )
    return account


def notes(settings: QemuSettings) -> list[str]:
    """What whoever starts a machine should know."""
    if settings.user is not None or os.geteuid() != 0 or account_of(settings) is not None:
        return []
    makes = f"{_MAKE_USER} {USUAL_USER}"
    return [f"QEMU runs as root: there is no user {USUAL_USER}; {makes}, or {_ASK_FOR_ROOT}"]


async def problems(domain: Domain, where: Places, account: Account | None) -> list[Problem]:
    """What the user could not get at, if the machine was made here now.

    Disks that are not there yet are looked for no further than their directories.
    """
    if account is None:
        return []
    found = list(_of_hosts_own(domain, account))
    opened = [_Opened("domain", Wanted(path, "r")) for path in domain.boot.files]
    opened += [_Opened("domain", Wanted(path, "x")) for path in _above(where)]
    if domain.accel == "kvm":
        opened.append(_Opened("domain", Wanted(_KVM, "w")))
    opened += [
        _Opened(tpm.label, Wanted(tpm.socket, "w"))
        for tpm in domain.tpm
        if tpm.type == "external" and tpm.socket
    ]
    opened += await in_thread(_of_disks, domain)
    denied = await _denied(account, opened)
    there = await in_thread(lambda: [Path(one.wanted.path).exists() for one in denied])
    return found + [
        _problem(one, account) for one, exists in zip(denied, there, strict=True) if exists
    ]


async def let_user_in(
    domain: Domain,
    where: Places,
    ledger: Ledger,
    account: Account | None,
    may_give: Callable[[str], bool] = lambda _path: True,
) -> None:
    """Give the user what the machine opens, before it is started.

    Args:
        domain: Resolved.
        where: Its places; the directory for its sockets is there.
        ledger: Takes what is made or given before it is.
        account: The user; None: what an earlier machine was given goes back, and no more.
        may_give: Whether an image's owner may be changed at all: another host may have named it.

    Raises:
        HypervisorError: The user cannot open something, and it cannot be given.
    """
    try:
        # What an earlier machine had, whose guest has shut down, or whose host has lost its power.
        await in_thread(give_back, where.owners)
    except OSError as error:
        raise HypervisorError(
            f"files cannot be given back: {plain_words(error)}", remedy=what_to_do(error)
        ) from error
    if account is None:
        return
    opened = [_Opened(disk.label, _of_disk(disk)) for disk in domain.block]
    for disk in domain.block:
        opened += await _beside(disk)
    for device in domain.usb:
        if device.vendor is not None and device.product is not None:
            name = f"{device.vendor:04x}:{device.product:04x}"
            nodes = map(_usb_node, usb.called(name))
            opened += [_Opened(device.label, Wanted(node, "w")) for node in nodes]
    await _give(opened, where, ledger, account, may_give)


async def let_user_write(
    disk: Block, where: Places, ledger: Ledger, account: Account | None
) -> None:
    """Give the user a disk for a mirror's writes, also one that its guest can only read.

    Again, if it was given before: udev puts a block device's owner back whenever one closes it.
    """
    if account is not None:
        opened = [_Opened(disk.label, Wanted(disk.path, "w"))]
        await _give(opened, where, ledger, account, lambda _path: True)


def take_back(where: Places, *, moved: bool) -> None:
    """The machine has ended: give back what it was given. Blocks.

    Args:
        where: Its places.
        moved: Its guest runs on another host. What that host may see as well stays as it is: a file
            server asks for the owner at each access.

    Raises:
        OSError: Something cannot be given back.
    """
    shared = [path for path in given(where.owners) if moved and not _is_this_hosts(path)]
    give_back(where.owners, except_for=shared)
    remove_if_empty(where.state)


def let_through(directory: Path, gid: int | None) -> None:
    """Let a group pass through a directory of the domain's, and everybody through those above.

    What is in it cannot be listed, and nobody but root writes to it.

    Args:
        directory: One that Entourage has made for the domain.
        gid: The group; None: nobody but root.
    """
    if gid is None:
        directory.chmod(0o700)
        return
    os.chown(directory, 0, gid)
    directory.chmod(0o710)
    for above in directory.parents[:2]:
        mode = stat.S_IMODE(above.stat().st_mode)
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)


async def _give(
    opened: Sequence[_Opened],
    where: Places,
    ledger: Ledger,
    account: Account,
    may_give: Callable[[str], bool],
) -> None:
    denied = await _denied(account, opened)
    if not denied:
        return
    paths = [path for path in dict.fromkeys(one.wanted.path for one in denied) if may_give(path)]
    if not where.state.is_dir():
        ledger.record("dir", path=str(where.state))
        where.state.mkdir(mode=0o700, parents=True)
    ledger.record("owners", path=str(where.owners))
    giving = in_thread(_give_some, where.owners, paths, account.uid)
    try:
        with contextlib.suppress(OSError):  # what could not be given is still denied
            await asyncio.shield(giving)
    except asyncio.CancelledError:
        await asyncio.wait({giving})  # what is undone next must not be done after
        raise
    if left := await _denied(account, denied):
        # Where a directory is in the way, nothing that is done to the file helps.
        above = [one._replace(wanted=Wanted(_directory(one.wanted.path), "x")) for one in left]
        problem = _problem((await _denied(account, above) or left)[0], account)
        raise HypervisorError(problem.reason, device=problem.device, remedy=problem.remedy)


def _directory(path: str) -> str:
    """The directory that a file really lies in."""
    return os.path.dirname(os.path.realpath(path))  # noqa: PTH120 - as the line


def _give_some(record: Path, paths: Iterable[str], uid: int) -> None:
    give(record, list(filter(_may_change, paths)), uid)


async def _denied(account: Account, opened: Sequence[_Opened]) -> list[_Opened]:
    denied = set(await account.denied([one.wanted for one in opened]))
    return [one for one in opened if one.wanted in denied]


def _may_change(path: str) -> bool:
    """Whether the owner of an image may be changed, which another host's machine may be using.

    Root opens what is anybody's: so what was root's can be given away. What is another user's is
    perhaps the other machine's, which a file server would cut off from it. A file of several names
    is perhaps another file's as well.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - follows links
        alone = status.st_nlink == 1 or not stat.S_ISREG(status.st_mode)
        return alone and (_is_this_hosts(path) or status.st_uid == 0)
    except OSError:
        return False


def _is_this_hosts(path: str) -> bool:
    """Whether no other host sees this owner of it."""
    mode = os.stat(path).st_mode  # noqa: PTH116 - follows links
    return not stat.S_ISREG(mode) or is_on_local_storage(Path(path))


def _of_disk(disk: Block) -> Wanted:
    return Wanted(disk.path, "r" if is_readonly(disk) else "w")


def _of_disks(domain: Domain) -> list[_Opened]:
    """The directories of disks, and those disks themselves that must not be given.

    Nothing is changed: a stranger may have named them.
    """
    found: list[_Opened] = []
    for disk in domain.block:
        found.append(_Opened(disk.label, Wanted(_directory(disk.path), "x")))
        with contextlib.suppress(OSError):
            if not _may_change(disk.path):
                found.append(_Opened(disk.label, _of_disk(disk)))
    return found


def _above(where: Places) -> Iterator[str]:
    """What must be passed through on the way to Entourage's own directories."""
    for directory in (where.run, where.state):
        there = directory.parents[1].parent
        while not there.exists():
            there = there.parent
        yield str(there)


def _of_hosts_own(domain: Domain, account: Account) -> Iterator[Problem]:
    """Devices of this host's for which QEMU must be root."""
    for tpm in domain.tpm:
        if tpm.type == "passthrough":
            reason = f"a TPM of the host's cannot be given to {account.name}"
            yield Problem(tpm.label, reason, _ASK_FOR_ROOT)
    for pci in domain.pci:
        if not pci.model:
            reason = f"a PCI device of the host's cannot be given to {account.name}"
            yield Problem(pci.label, reason, _ASK_FOR_ROOT)


def _usb_node(device: usb.UsbDevice) -> str:
    return f"/dev/bus/usb/{device.bus:03}/{device.address:03}"


def _problem(one: _Opened, account: Account) -> Problem:
    path, how = one.wanted
    name = account.name
    match how:
        case "x":
            reason = f"{name}, whom QEMU runs as, cannot pass through {path}"
            remedy = f"let it (chmod o+x, or setfacl -m u:{name}:x), also through all above it"
        case "w":
            reason = f"{name}, whom QEMU runs as, cannot read and write {path}"
            remedy = f"make it the file's owner, or give it access (setfacl -m u:{name}:rw)"
        case _:
            reason = f"{name}, whom QEMU runs as, cannot read {path}"
            remedy = f"let it (chmod o+r, or setfacl -m u:{name}:r)"
    return Problem(one.device, reason, f"{remedy}; or {_ASK_FOR_ROOT}")


class _Data(msgspec.Struct, rename="kebab"):
    data_file: str | None = None


class _Specific(msgspec.Struct):
    data: _Data = msgspec.field(default_factory=_Data)


class _Image(msgspec.Struct, rename="kebab"):
    """What ``qemu-img info`` says of each image of a chain."""

    filename: str
    format_specific: _Specific = msgspec.field(default_factory=_Specific)


async def _beside(disk: Block) -> list[_Opened]:
    """The images below a qcow2 image, and files with data. What is not found, QEMU will tell."""
    if disk.format != "qcow2":
        return []
    try:
        text = await qemu_img_info(disk.path, "qcow2", "--backing-chain")
        chain = msgspec.json.decode(text, type=list[_Image])
    except (DeviceError, ValueError):
        return []
    found: list[Wanted] = []
    how = _of_disk(disk).how
    for image in chain:
        found.append(Wanted(image.filename.removeprefix("file:"), how))
        if data := image.format_specific.data.data_file:
            found.append(Wanted(data.removeprefix("file:"), how))
        how = "r"
    # Another form is no path, and what is relative QEMU takes from a directory of its own.
    return [_Opened(disk.label, wanted) for wanted in found if wanted.path.startswith("/")]
