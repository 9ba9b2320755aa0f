"""What a target looks at before it makes a machine: whether this host may, and can, take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from entourage.devices.base import There
from entourage.devices.block.proof import check_chain
from entourage.devices.remote import out_of_reach
from entourage.domain import Domain
from entourage.errors import Refused
from entourage.hosts.allowed import Allowed
from entourage.hosts.parts import HostPart, Kind
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import Hypervisor
from entourage.hypervisors.registry import known_to_others
from entourage.settings.model import Settings
from entourage.steps import Refusal


class Checks:
    """The checks of one link's domain; what comes over the link is not trusted.

    Args:
        settings: This host's.
        proxy: Another host's hypervisor makes the machine; see ``Caller``.
        local: It is saved, or restored, on this host.

    Attributes:
        allowed: What a source may ask for here.
    """

    def __init__(self, settings: Settings, *, proxy: bool, local: bool = False) -> None:
        self.allowed = Allowed(settings.agent)
        self._settings = settings
        self._proxy = proxy
        self._local = local
        self._facts: Mapping[str, str] = {}
        self._tested: Domain | None = None
        self._chains: set[tuple[str, str]] = set()

    def begin(self, domain: Domain, facts: Mapping[str, str]) -> None:
        """Take what TEST is about.

        Args:
            domain: As it runs on the source.
            facts: What ``Machine.facts`` said there.
        """
        self._facts, self._tested = facts, domain

    async def refusals(self, hypervisor: Hypervisor, domain: Domain, host: str) -> list[Refusal]:
        """What speaks against the domain here; the settings first, for the rest reads its files.

        Args:
            hypervisor: This host's.
            domain: As it is to be here.
            host: What this host is called in refusals.
        """
        if self._proxy and self._local:  # what is made is a directory
            found: list[Refusal] = []
        elif self._proxy:
            found = out_of_reach(domain, host)
        else:
            parts = await hypervisor.host_parts(self._facts)
            # What TEST has found that the target does without; BUILD looks at all there is then.
            tested = {device.label for device in (self._tested or domain).devices}
            left_out = tested - {device.label for device in domain.devices}
            parts = [part for part in parts if part.device not in left_out]
            asking = partial(self.allowed.not_allowed, built=False, parts=parts)
            found = await in_thread(asking, domain, host)
            asked = hypervisor.name
            found += await known_to_others(self._settings, domain, asked, host)
        if not any(refusal.device == "domain" for refusal in found):
            found += await hypervisor.test_incoming(domain, host, self._facts)
        return found

    async def parts(self, there: There, parts: Sequence[HostPart]) -> None:
        """Refuse a machine that is made of what it may not have here.

        What a qcow2 image that was not made here names must be allowed as well.

        Args:
            there: What the machine is to be made of.
            parts: What else of this host it names.

        Raises:
            Refused: Some of it is not allowed.
            EntourageError: An image names what is not allowed, or cannot be read.
        """
        asking = partial(self.allowed.not_allowed, built=True, parts=parts)
        if found := await in_thread(asking, there.domain, there.host):
            raise Refused(found)
        images = {(disk.path, disk.format) for disk in there.domain.block}
        files = (part for part in parts if part.kind is Kind.IMAGE and part.name.startswith("/"))
        images |= {(part.name, part.format) for part in files}
        for path, image_format in sorted(images - self._chains):
            if image_format != "qcow2":
                continue
            named = there.allowed.has_device(path)  # what is on it was written by a guest as well
            real = path if named else there.allowed.images.real(path)
            if not there.allowed.made_as(real):
                await check_chain(real, there.allowed)
        self._chains |= images
