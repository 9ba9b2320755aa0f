"""What another host may name on this one: by the settings' ``[agent]``, and by what is proven.

Whoever has a key for ``entourage agent`` is a stranger until the settings of this host, and what it
has shown, say otherwise. Nothing here is asked of a source: its own files are its own business.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from entourage.domain import Block, Domain, Net, Pci, Tpm, Usb, whole_bdf
from entourage.errors import DeviceError, EntourageError
from entourage.hosts.beneath import Beneath, NotAllowed, through
from entourage.hosts.parts import HostPart, Kind
from entourage.settings.model import AgentSettings
from entourage.steps import Refusal

# Emulated devices that have nothing of the host's: by patterns of QEMU's names. All others must be
# named in the settings. The last line is what a libvirt domain's devices are called here: of these
# libvirt decides.
_EMULATED = (
    *("usb-tablet", "usb-mouse", "usb-kbd", "usb-wacom-tablet", "usb-hub", "usb-audio"),
    *("usb-ccid", "qemu-xhci", "nec-usb-xhci", "usb-ehci", "ich9-usb-*", "piix[34]-usb-uhci"),
    *("virtio-rng-*", "virtio-balloon-*", "virtio-gpu-pci", "virtio-vga"),
    *("virtio-keyboard-pci", "virtio-mouse-pci", "virtio-tablet-pci", "virtio-serial-pci"),
    *("VGA", "secondary-vga", "cirrus-vga", "qxl", "qxl-vga", "bochs-display"),
    *("AC97", "ES1370", "intel-hda", "ich9-intel-hda", "i6300esb", "pvpanic-pci"),
    *("ioh3420", "pcie-root-port", "pcie-pci-bridge", "pci-bridge", "pci-testdev", "edu"),
    *("usb-redir", "virtiofs", "virtio-9p", "*-hostdev"),
)

_INTERFACES = Path("/sys/class/net")
_MOST_REFUSALS = 100
_TOLD_BY_CONTROLLERS = frozenset({Kind.IMAGE, Kind.NETWORK, Kind.TAP})


class Allowed:
    """What one source may name here.

    Args:
        settings: This host's.

    Attributes:
        images: Where images may lie.
        boot: Where firmware and kernels may lie.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        anyones = settings.anyones_directories
        self.images = images_of(settings)
        self.boot = Beneath(settings.boot_directories, "agent.boot-directories", anyones)
        self._made: dict[str, str] = {}
        self._proven: dict[str, str] = {}
        self._known_content: dict[str, str] = {}
        self._taps: set[str] = set()

    def make(self, path: str, image_format: str, handle: int) -> None:
        """A file was made by this migration, and is opened in this format only.

        It is held on to, so that no other file can get its inode when it is deleted.

        Args:
            path: Without links.
            image_format: Its format.
            handle: The descriptor by which it was made: somebody may have put another at its path.
        """
        held = os.open(through(handle), os.O_PATH | os.O_CLOEXEC)
        weakref.finalize(self, os.close, held)
        self._made[path] = image_format
        self.prove(path, handle)

    def prove(self, path: str, handle: int | None = None) -> None:
        """Both hosts see this very file, whose path has no links; and which is open here, if so."""
        self._proven[path] = _identity(path, handle)

    def prove_content(self, path: str, handle: int | None = None) -> None:
        """The source knows its content: it may be read. See ``prove``."""
        self._known_content[path] = _identity(path, handle)

    def is_proven(self, path: str, *, written: bool = True, handle: int | None = None) -> bool:
        """Whether it is a file that was made or proven, and still the same one.

        Args:
            path: Without links.
            written: Whether the guest would write to it, and not only read it.
            handle: The descriptor by which it is used, where it is not used by its path.
        """
        identity = _identity(path, handle)
        proofs = [self._proven.get(path)]
        if not written:
            proofs.append(self._known_content.get(path))
        return bool(identity) and identity in proofs

    def made_as(self, path: str) -> str:
        """The format in which a file was made by this migration; empty where it was not."""
        return self._made.get(path, "")

    def may_open(self, path: str, *, written: bool = True) -> bool:
        """Whether an image may be opened as it is; see ``is_proven``."""
        return self.is_proven(path, written=written) or self._settings.believe_shared

    def may_appear(self, path: str) -> bool:
        """Whether what somebody else than this migration makes at a path would be opened."""
        return self.has_device(path) or self._settings.believe_shared

    def may_overwrite(self, path: str, handle: int | None = None) -> bool:
        """Whether a disk may be written over by a copy: it was made for that, or is a device.

        Args:
            path: Of the disk.
            handle: The descriptor that is written to; None: it is opened by its path.
        """
        if _is_block_device(path if handle is None else handle):
            return self.has_device(path)
        real = self.images.real(path)
        return bool(self.made_as(real)) and self.is_proven(real, handle=handle)

    def may_give(self, path: str) -> bool:
        """Whether a file's owner may be changed for a machine that arrives."""
        try:
            return self.has_device(path) or bool(self.images.real(path))
        except (OSError, EntourageError):
            return False

    def has_device(self, path: str) -> bool:
        """Whether a device of this host may be used."""
        plain = ".." not in path.replace(":", "/").split("/")  # also after a prefix: script:../x
        return plain and _matches(path, self._settings.devices)

    def device(self, path: str) -> None:
        """Check a device of this host's own.

        Raises:
            NotAllowed: The settings do not name it.
        """
        if not self.has_device(path):
            raise NotAllowed(
                f"{path} is not among the devices that are allowed here",
                remedy="add it to agent.devices in the settings there",
            )

    def owner(self, name: str) -> str:
        """Who an image is given to: who owns it on the source, or else root."""
        return name if name in self._settings.owners else "root"

    def network(self, name: str) -> None:
        """Check a bridge, a network of the hypervisor's, or an interface of the host's.

        Raises:
            NotAllowed: The settings do not name it.
        """
        if not _matches(name, self._settings.networks):
            raise NotAllowed(
                f"{name} is not among the networks that are allowed here",
                remedy="add it to agent.networks in the settings there",
            )

    def ports(self, first: int, last: int) -> None:
        """Check the range of TCP ports that memory and disks are to be taken at.

        Raises:
            NotAllowed: The settings do not allow all of it.
        """
        lowest, highest = self._settings.ports
        if not lowest <= first <= last <= highest:
            raise NotAllowed(
                f"the ports {first} to {last} are not all among those that are allowed here,"
                f" {lowest} to {highest}",
                remedy="set agent.ports in the settings there, or migration.ports at the source",
            )

    def part(self, part: HostPart) -> None:
        """Check one thing of this host's that a machine names, at its hypervisor's own place.

        Raises:
            EntourageError: It is not allowed; the remedy names the setting.
            OSError: Its directory is not there.
        """
        match part.kind:
            case Kind.IMAGE if not part.name.startswith("/"):
                self.device(part.name)
            case Kind.IMAGE:
                if not _is_block_device(part.name):
                    self.images.real_by_path(part.name)
                self._image(part.name, part.format, written=part.written)
            case Kind.COPIED:
                if not self.may_overwrite(part.name, part.handle):
                    raise NotAllowed(f"{part.name} was not made by this migration")
            case Kind.BOOT:
                # Of these directories only root can change the links: packages have some.
                if Path(part.name).exists():
                    self.boot.real_by_path(part.name, links=True)
                else:  # it may be there when the machine is started anew
                    self.boot.named(part.name)
            case Kind.NETWORK:
                self.network(part.name)
            case Kind.TAP:
                self._tap(part.name)
            case Kind.PORT:
                first, _, last = part.name.partition("-")
                if not (first.isdecimal() and (last or first).isdecimal()):
                    remedy = "give it the number of a port on the source"
                    raise NotAllowed(f"{part.name!r} is no port", remedy=remedy)
                self.ports(int(first), int(last or first))
            case Kind.MALFORMED:
                raise NotAllowed(part.name, remedy="name it otherwise on the source")
            case Kind.PROGRAM | Kind.OTHER:
                if not _lies_beneath(part.name, part.beneath):
                    self.device(part.name)

    def not_allowed(
        self, domain: Domain, host: str, *, built: bool, parts: Iterable[HostPart] = ()
    ) -> list[Refusal]:
        """Why the machine may not be built here.

        Args:
            domain: As it is to be here where ``built``, else as it is on the source: its disks and
                NICs are then for their controllers to ask about.
            host: This host's name.
            built: Whether it is about to be built.
            parts: What its hypervisor's own configuration names; of its disks and NICs only where
                ``built``, as above: their names may be others by then.
        """
        found: list[Refusal] = []
        for label, check in self._checks(domain, built=built):
            found += self._refusals(label, host, check)
        said = {refusal.reason for refusal in found}
        labels = {device.label for device in domain.devices}
        for part in parts:
            if len(found) >= _MOST_REFUSALS:
                found.append(Refusal("domain", host, "there is more, which was not looked at"))
                break
            label = part.device if part.device in labels else "domain"
            if not built and label != "domain" and part.kind in _TOLD_BY_CONTROLLERS:
                continue
            for refusal in self._refusals(label, host, partial(self.part, part)):
                if refusal.reason not in said:
                    said.add(refusal.reason)
                    reason = f"{refusal.reason} ({part.place})"
                    found.append(dataclasses.replace(refusal, reason=reason))
        return found

    @staticmethod
    def _refusals(label: str, host: str, check: Callable[[], object]) -> list[Refusal]:
        try:
            check()
        except EntourageError as error:
            return [Refusal(label, host, error.message, error.remedy)]
        except OSError as error:
            return [Refusal(label, host, f"{error.filename}: {error.strerror}")]
        return []

    def _checks(self, domain: Domain, *, built: bool) -> Iterator[tuple[str, Callable[[], object]]]:
        for path in domain.boot.files:
            yield "domain", partial(self._boot, path)
        for device in domain.devices:
            match device:
                case Block() if built:
                    yield device.label, partial(self._disk, device)
                case Net() if built and device.attach != "other":
                    name = device.network if device.attach == "network" else device.bridge
                    yield device.label, partial(self.network, name or "")
                case Tpm(type="external") if device.socket:
                    yield device.label, partial(self.device, device.socket)
                case Tpm(type="passthrough"):
                    yield device.label, partial(self.device, device.path or "/dev/tpm0")
                case Usb() | Pci():
                    yield device.label, partial(self._hardware, device)
                case _:
                    pass

    def _tap(self, name: str) -> None:
        """One that is not there before this machine is: else the kernel would give that to it."""
        if name not in self._taps and os.path.lexists(_INTERFACES / name):
            raise NotAllowed(
                f"an interface {name} is here already",
                remedy="take the name out of the configuration, or delete that interface",
            )
        self._taps.add(name)  # once it is built, the interface of that name is its own

    def _boot(self, path: str) -> None:
        if Path(path).exists():  # that it is not there is told elsewhere
            self.boot.real(path)

    def _disk(self, disk: Block) -> None:
        self._image(disk.path, disk.format, written=not disk.is_only_read)

    def _image(self, path: str, image_format: str, *, written: bool) -> None:
        """Only what was made here, or is proven to be shared, or can only be read, is opened."""
        if _is_block_device(path):
            self.device(path)
            return
        real = self.images.real(path)
        made_as = self.made_as(real)
        if made_as and made_as != image_format:
            raise DeviceError(f"{path} was made as {made_as}, and is opened as nothing else")
        if not self.may_open(real, written=written):
            raise DeviceError(
                f"{path} was neither made by this migration nor proven to be shared",
                remedy="agent.believe-shared in the settings there lets it be opened all the same",
            )

    def _hardware(self, device: Usb | Pci) -> None:
        """One of the host's own, or an emulated one that reaches for it."""
        kind = "usb" if isinstance(device, Usb) else "pci"
        if device.plug is not None:
            self.device(f"{kind}:{device.plug if kind == 'usb' else whole_bdf(device.plug)}")
        if device.model and not _matches(device.model, _EMULATED):
            self.device(device.model)
        if device.plug is not None or device.model:
            return  # what stands for it is plugged in its place, or it is nobody's
        if isinstance(device, Pci):
            self.device(f"pci:{whole_bdf(device.host or '')}")
        else:
            self.device(f"usb:{device.vendor or 0:04x}:{device.product or 0:04x}")


def images_of(settings: AgentSettings) -> Beneath:
    """Where images of machines that arrive may lie."""
    directories, anyones = settings.image_directories, settings.anyones_directories
    return Beneath(directories, "agent.image-directories", anyones)


def _identity(path: str, handle: int | None = None) -> str:
    """Which file is at a path, or open; no link is followed; empty where it is no plain file."""
    try:
        status = os.lstat(path) if handle is None else os.fstat(handle)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}" if stat.S_ISREG(status.st_mode) else ""


def _lies_beneath(path: str, directories: tuple[str, ...]) -> bool:
    """Whether a path leads into one of these directories, without a link in them.

    Only root, or who runs the hypervisor, may write to them.
    """
    plain = Path(path)
    if not plain.is_absolute() or ".." in plain.parts:
        return False
    real = plain.resolve()
    return any(
        plain.is_relative_to(each) and Path(each).resolve() / plain.relative_to(each) == real
        for each in directories
    )


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _is_block_device(file: str | int) -> bool:
    """By its path, or as it is open."""
    try:
        return stat.S_ISBLK(os.stat(file).st_mode)  # noqa: PTH116 - follows links, as who opens it
    except OSError:
        return False
