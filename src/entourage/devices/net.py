"""NICs: the class ``net``, a tap device that is a port of a bridge.

The tap itself is made with a machine and vanishes with it, at either end. What is left to do here:
is there a bridge to put it on, and who tells the network that the guest has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from entourage.devices.base import Controller, Here, There
from entourage.devices.refusals import marked, refuse, warn
from entourage.domain import Net
from entourage.errors import DeviceError
from entourage.steps import Planned, Refusal, Step

SYS = Path("/sys/class/net")
# A forwarding entry as the kernel's struct __fdb_entry has it.
_ENTRY = 16
_USUAL_MTU = 1500
_UNKNOWN_MTU = 65535


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """TEST: what about a NIC on this bridge (or network, or interface), with this MAC and tap?"""

    attach: Literal["bridge", "network", "direct", "other"] = "bridge"
    network: str | None = None
    bridge: str
    mac: str | None
    tap: str | None


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    Attributes:
        mtu: The bridge's; None where there is no such bridge.
        bridges: All bridges (or networks, or interfaces) of the target.
        port: The tap of another guest there that has the MAC; empty where none has.
        tap_taken: Whether an interface there has the tap's name already.
        announces: Whether the target's hypervisor can announce a NIC.
    """

    mtu: int | None
    bridges: list[str]
    port: str
    tap_taken: bool
    announces: bool


class NetController(Controller[Net]):
    """A NIC's way: a bridge there, and an announcement on arrival."""

    device_class = "net"

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Is there a bridge for it, wide enough?"""
        nic = self.device
        found = marked(here, nic)
        if nic.attach == "other":  # nothing of the host's that we know of
            return found
        asked = self._as_mapped(here)
        self.target_device = asked
        ask = Ask(
            attach=nic.attach,
            network=asked.network,
            bridge=asked.bridge,
            mac=self.mac_on_the_wire(here),
            tap=nic.tap,
        )
        try:
            answer = await here.peer(ask, Bridge)
        except DeviceError as error:
            return [*found, refuse(nic, here.target, error.message, error.remedy)]
        kind, bridge, was = "bridge", asked.bridge, nic.bridge
        if nic.attach == "network":
            kind, bridge, was = "network", asked.network or "", nic.network or ""
        elif nic.attach == "direct":
            kind = "interface"
        if answer.mtu is None:
            there = ", ".join(answer.bridges)
            mend = f"--net {was}=… with one of: {there}" if there else f"make {bridge} there"
            return [*found, refuse(nic, here.target, f"there is no {kind} {bridge}", mend)]
        needed = nic.mtu or mtu_of(nic.bridge) or _USUAL_MTU
        if answer.mtu < needed:
            reason = f"{kind} {bridge} has an MTU of {answer.mtu}, the NIC needs {needed}"
            mend = f"ip link set dev {bridge} mtu {needed} there, or --net {was}=…"
            found.append(refuse(nic, here.target, reason, mend))
        if answer.port:
            message = f"another guest there, behind {answer.port}, uses the MAC {ask.mac}"
            warn(here, nic, here.target, message)
        if answer.tap_taken:
            warn(
                here,
                nic,
                here.target,
                f"an interface {nic.tap} is there: the tap gets another name",
            )
        if not answer.announces:
            message = "its hypervisor cannot announce the NIC: the network learns it from the guest"
            warn(here, nic, here.target, message)
        return found

    def mac_on_the_wire(self, here: Here) -> str | None:  # noqa: ARG002 - see SavedNet
        """The MAC that the guest will use there."""
        return self.device.mac

    def planned(self, here: Here) -> Planned:  # noqa: ARG002 - it has been asked
        """A tap is made for it there."""
        nic, there = self.device, self.target_device
        return Planned(
            action="remade", here=nic.network or nic.bridge, there=there.network or there.bridge
        )

    def _as_mapped(self, here: Here) -> Net:
        """The NIC with the bridge, network or interface that the user named for the target."""
        nic, nets = self.device, here.options.nets
        if nic.attach == "network" and nic.network is not None:
            return msgspec.structs.replace(nic, network=nets.get(nic.network, nic.network))
        return msgspec.structs.replace(nic, bridge=nets.get(nic.bridge, nic.bridge))

    async def test_there(self, there: There, request: Any) -> Any:
        """Look at the bridge and what is on it."""
        asked = msgspec.convert(request, Ask)
        named = asked.network if asked.attach == "network" else asked.bridge
        there.allowed.network(named or "")
        if asked.attach == "network":
            return await self._network_there(there, asked)
        if asked.attach == "direct":
            return Bridge(
                mtu=mtu_of(asked.bridge),
                bridges=sorted(entry.name for entry in SYS.iterdir()),  # noqa: ASYNC240 - /sys
                port="",
                tap_taken=False,
                announces=there.incoming.announcing is not None,
            )
        is_bridge = (SYS / asked.bridge / "bridge").is_dir()
        return Bridge(
            mtu=mtu_of(asked.bridge) if is_bridge else None,
            bridges=bridges(),
            port=_tap_with(asked.bridge, asked.mac) if is_bridge and asked.mac else "",
            tap_taken=_exists(asked.tap),
            announces=there.incoming.announcing is not None,
        )

    async def _network_there(self, there: There, asked: Ask) -> Bridge:
        """Look at a network of the hypervisor's own."""
        networks = await there.incoming.networks()
        bridge = networks.get(asked.network or "")
        return Bridge(
            mtu=None if bridge is None else mtu_of(bridge) or _UNKNOWN_MTU,
            bridges=sorted(networks),
            port=_tap_with(bridge, asked.mac) if bridge and asked.mac else "",
            tap_taken=_exists(asked.tap),
            announces=there.incoming.announcing is not None,
        )

    async def prepare(self, here: Here) -> None:
        """Have the target choose the tap's name."""
        self.target_device = await here.peer(self.target_device, Net)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Keep the tap's name where it is free, else leave it to the hypervisor."""
        nic = msgspec.convert(request, Net)
        if _exists(nic.tap):
            nic = msgspec.structs.replace(nic, tap=None)
        there.domain = there.domain.with_device(nic)
        return nic

    async def recover(self, here: Here, last_good: Step) -> None:
        """The guest was stopped and is back: tell the network that it never left."""
        if last_good >= Step.TRANSFER and here.machine.announcing is not None:
            await here.machine.announcing.announce([self.device])

    async def arrived(self, there: There) -> None:
        """The guest runs here: tell the network."""
        if there.incoming.announcing is not None:
            await there.incoming.announcing.announce([self.device_there(there)])


def bridges() -> list[str]:
    """The bridges of this host."""
    return sorted(entry.parent.name for entry in SYS.glob("*/bridge"))


def mtu_of(interface: str) -> int | None:
    """The MTU of an interface; None where there is no such interface."""
    try:
        return int((SYS / interface / "mtu").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _exists(interface: str | None) -> bool:
    return interface is not None and (SYS / interface).exists()


def _tap_with(bridge: str, mac: str) -> str:
    """The tap behind which the bridge has seen this MAC; empty where it has not.

    Seen behind another port it is only the guest itself, on the source.
    """
    try:
        table = (SYS / bridge / "brforward").read_bytes()
        wanted = bytes.fromhex(mac.replace(":", ""))
        for at in range(0, len(table) - _ENTRY + 1, _ENTRY):
            entry = table[at : at + _ENTRY]
            # mac, low byte of the port's number, is it the port's own, age, high byte
            if entry[:6] == wanted and not entry[7]:
                port = _port(bridge, entry[6] | entry[12] << 8)
                if port and (SYS / port / "tun_flags").exists():
                    return port
    except OSError:
        pass  # a bridge that goes away while it is looked at has no such guest
    return ""


def _port(bridge: str, number: int) -> str:
    """The name of a bridge's port."""
    for port in (SYS / bridge / "brif").iterdir():
        if int((port / "port_no").read_text(encoding="ascii"), 0) == number:
            return port.name
    return ""
