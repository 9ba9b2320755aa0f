"""The target's halves of devices on a host where no Entourage is: its hypervisor is asked instead.

They run in a proxy agent on the source (``hosts/proxy_agent.py``) and never look at the host that
they run on. The halves on the source are the same as ever, and so are all other classes: they have
no half on the target that would look at anything, or it asks the hypervisor anyway.
"""

from __future__ import annotations

import grp
import pwd
from pathlib import PurePosixPath
from typing import Any

import msgspec

from entourage.devices.base import AnyController, Controller, There
from entourage.devices.block import storage
from entourage.devices.block.controller import BlockController, Digest, Look, Make
from entourage.devices.block.images import NewImage
from entourage.devices.block.making import owner_number
from entourage.devices.block.space import Fit, Fitting, cannot_copy
from entourage.devices.block.storage import Seen, Spot
from entourage.devices.net import Ask, Bridge, NetController
from entourage.devices.refusals import refuse
from entourage.devices.registry import BUILT_IN, controller_class
from entourage.domain import Domain, Net
from entourage.errors import DeviceError, UsageError
from entourage.hypervisors.agentless import VOLUME, Agentless
from entourage.hypervisors.base import DiskCopy
from entourage.hypervisors.values import NewVolume, Place
from entourage.settings.units import format_size
from entourage.steps import Refusal

_HALVES = (
    *("test_there", "prepare_there", "connect_there", "transfer_there", "sync_there"),
    *("recover_there", "persist", "arrived", "finish_arrival"),
)
_ANY_MTU = 65535


def agentless_class(kind: type[AnyController]) -> type[AnyController]:
    """The class whose target half can do without an Entourage on the target."""
    return {BlockController: AgentlessBlock, NetController: AgentlessNet}.get(kind, kind)  # type: ignore[arg-type]


def out_of_reach(domain: Domain, host: str) -> list[Refusal]:
    """The devices whose controllers, of other packages, have a half that must run on the target."""
    return [
        refuse(
            device,
            host,
            f"its controller ({kind.__module__}.{kind.__name__}) has a part to do on the target,"
            " where no Entourage is",
            f"install Entourage and that package on {host}",
        )
        for device in domain.devices
        if (kind := controller_class(device)) is not None and _has_a_part(kind)
    ]


def _has_a_part(kind: type[AnyController]) -> bool:
    if kind in BUILT_IN.values():
        return False
    return any(getattr(kind, half) is not getattr(Controller, half) for half in _HALVES)


class AgentlessBlock(BlockController):
    """A disk in a storage pool of the target's hypervisor."""

    async def test_there(self, there: There, request: Any) -> Any:
        """Look into the pool."""
        asked: Look | Digest | Fit = msgspec.convert(request, Look | Digest | Fit)
        match asked:
            case Look(spots=spots):
                return [await self._look(there, spot) for spot in spots]
            case Digest(path=path):
                raise DeviceError(
                    f"{path} cannot be read there to compare its content",
                    device=self.device.label,
                    host=there.host,
                    remedy=f"share it, or install Entourage on {there.host}",
                )
            case Fit(new=new, onto_device=onto, need=need):
                return await self._fit(there, new, onto=onto, need=need)

    async def _place(self, there: There, path: str, beside: str = "") -> Place:
        place = await _agentless(there).place(path, beside)
        if place is not None:
            return place
        directory = PurePosixPath(path).parent
        raise DeviceError(
            f"no storage pool of files is active there at {directory}, so {path} can neither be"
            " looked at nor made",
            device=self.device.label,
            host=there.host,
            remedy=f"there: virsh pool-create-as NAME dir --target {directory}; or install"
            f" Entourage on {there.host}",
        )

    async def _look(self, there: There, spot: Spot) -> Seen:
        place = await self._place(there, spot.path, spot.nonce)
        if place.marked:  # it is the directory of this host: what is in it can be seen from here
            return await storage.look(spot)
        if place.size is None:
            return Seen()
        return Seen(kind="file", size=place.size)

    async def _fit(self, there: There, new: NewImage, *, onto: bool, need: DiskCopy) -> Fitting:
        """See what speaks against making it."""
        disk, elsewhere = self.device, f"--disk {self.device.id}=/another/path"
        if onto:
            reason = f"{new.path} is a device, which cannot be looked at remotely"
            remedy = f"{elsewhere}, or install Entourage on {there.host}"
            return Fitting(refusals=[refuse(disk, there.host, reason, remedy)])
        place = await self._place(there, new.path)
        found = [] if need in there.incoming.takes else [cannot_copy(disk, there.host, need)]
        if place.size is not None:
            found.append(refuse(disk, there.host, f"{new.path} is there already", elsewhere))
        claims = there.space.setdefault(hash(place.pool), {})
        claims[disk.label] = new.room
        if (wanted := sum(claims.values())) > place.free:
            reason = (
                f"no space left in the storage pool of {new.path}:"
                f" {format_size(wanted)} needed, {format_size(place.free)} free"
            )
            found.append(refuse(disk, there.host, reason, f"make room, or {elsewhere}"))
        lost = sorted(set(new.options) - {"cluster_size", "compat"})
        usual = {"refcount_bits": "16"}
        warnings = [
            f"libvirt makes images without {key} = {new.options[key]}: the copy has the usual"
            for key in lost
            if new.options[key] != usual.get(key)
        ]
        return Fitting(refusals=found, warnings=warnings)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Have the hypervisor make an empty image that is like the source's."""
        new = msgspec.convert(request, Make).new
        # libvirt makes nothing over a volume that is there, and TEST has seen that none was; a
        # row says that this one is ours, because libvirt has no name for it that is only ours.
        there.ledger.record(VOLUME, path=new.path)
        cluster = new.options.get("cluster_size")
        await _agentless(there).make_volume(
            NewVolume(
                path=new.path,
                format=new.format,
                size=new.size,
                allocated=new.preallocated,
                cluster_size=int(cluster) if cluster else None,
                backing=new.backing,
                backing_format=new.backing_format,
                mode=new.mode,
                owner=owner_number(pwd.getpwnam, new.owner),
                group=owner_number(grp.getgrnam, new.group),
            )
        )
        return True

    async def arrived(self, there: There) -> None:
        """What the copy has freed of an image cannot be set aside again remotely."""


class AgentlessNet(NetController):
    """A NIC on a bridge, network or interface of the target's."""

    async def test_there(self, there: There, request: Any) -> Any:
        """Is there one of that name? Its MTU, and who else is on it, cannot be seen remotely."""
        asked = msgspec.convert(request, Ask)
        if asked.attach == "network":
            wanted, known = asked.network or "", frozenset(await there.incoming.networks())
        else:
            wanted, known = asked.bridge, await _agentless(there).interfaces()
        # An answer of nothing is none: then Prepare will say it.
        lacks = wanted not in known and (bool(known) or asked.attach == "network")
        return Bridge(
            mtu=None if lacks else _ANY_MTU,
            bridges=sorted(known),
            port="",
            tap_taken=False,
            announces=there.incoming.announcing is not None,
        )

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Keep the tap's name."""
        nic = msgspec.convert(request, Net)
        there.domain = there.domain.with_device(nic)
        return nic


def _agentless(there: There) -> Agentless:
    if there.incoming.agentless is None:
        raise UsageError("this host's own hypervisor is not asked remotely")
    return there.incoming.agentless
