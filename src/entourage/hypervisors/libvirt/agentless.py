"""A libvirtd on a host where no Entourage is, asked over the network: see ``hosts/proxy_agent.py``.

What an agent looks at on its own host is asked of libvirt here, or not known: docs/libvirt.md says
what is weaker for it. Since nobody vouches for who answers at a URI, the host is told by what its
libvirtd knows it by, and another one is not believed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from entourage.domain import Domain, Tpm
from entourage.errors import HypervisorError
from entourage.hosts.resources import Ledger
from entourage.hypervisors import swtpm
from entourage.hypervisors.agentless import Agentless
from entourage.hypervisors.base import (
    DataPlane,
    Incoming,
    Plan,
    TpmArrival,
    TpmFacts,
)
from entourage.hypervisors.libvirt import checks, volumes
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    bindings,
)
from entourage.hypervisors.libvirt.constants import VOLUME_EXISTS, Flag
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.hypervisor import LibvirtHypervisor
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.uri import agentless_name, parse_agentless
from entourage.hypervisors.values import NewVolume, Place
from entourage.settings.model import Settings
from entourage.steps import Refusal

_ACTIVE_INTERFACES = 2
_NETWORK_DEVICES = 1 << 4


class AgentlessHypervisor(LibvirtHypervisor):
    """The domains of a libvirtd elsewhere.

    Args:
        settings: This host's.
        name: See ``uri.agentless_name``.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        uri, self._identity = parse_agentless(name)
        super().__init__(settings, uri)
        self.name = name

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:  # noqa: ARG002 - as its parent's
        """A machine to be built there."""
        return AgentlessIncoming(self._uri, domain, self._identity, self._notes(domain))

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against building it there; from here on it must be that very host."""
        connection = await Connection.open(self._uri)
        try:
            self._identity = await _identity(connection)
            self.name = agentless_name(self._uri, self._identity)
            return await checks.test_incoming(connection, domain, host, facts, files=False)
        finally:
            await connection.close()


class AgentlessIncoming(LibvirtIncoming):
    """A domain that is being built by a libvirtd elsewhere.

    Args:
        uri: By which it is reached from here.
        domain: See ``LibvirtIncoming``.
        identity: What its host must be known by; empty before it was first asked.
        notes: See ``LibvirtIncoming``.
    """

    _patience = 20.0
    _ask_again = "`entourage recover`"
    _on_this_host = False

    def __init__(self, uri: str, domain: Domain, identity: str, notes: Path | None = None) -> None:
        super().__init__(uri, domain, notes)
        self._identity = identity
        self._not_ours: set[str] = set()  # volumes that somebody made before we could

    async def _open(self, patience: float = 0) -> Connection:
        connection = await super()._open(patience)
        try:
            found = await _identity(connection)
        except BaseException:
            await connection.close()
            raise
        if not self._identity or found == self._identity:
            return connection
        await connection.close()
        raise LostError(
            f"another host answers at {self._uri} than the one that was asked first",
            remedy=f"that was {self._identity}, this is {found}: see who is who",
        )

    @property
    def tpm(self) -> TpmArrival:
        """Its state comes with the memory, and cannot be synced remotely."""
        return AgentlessTpm(self._connected)

    @property
    def agentless(self) -> Agentless:
        """Storage and the network are asked for here, too."""
        return self

    async def offers(self) -> Mapping[str, str]:
        """A name to check its TLS certificate by; whether it has one, Prepare will say."""
        connection = await self._connected()
        qemu = str(await ask(connection.raw.getVersion))
        host = urlsplit(self._uri).hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if host:
                return {"tls": host, "qemu": qemu}
        return {"tls": str(await ask(connection.raw.getHostname)), "qemu": qemu}

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Prepare; a libvirtd that has no certificates says so here."""
        try:
            await super().build(domain, plane, plan)
        except RefusedError as error:
            if self._plan.flags & Flag.TLS and not error.remedy:
                error.remedy = "if that is for want of certificates there: make them, or --no-tls"
            raise

    async def _watch_emulators(self) -> None:
        """Nor can that."""

    def _last_said(self) -> str:
        return ""

    # What else devices need of that host

    async def place(self, path: str, beside: str = "") -> Place | None:
        """See ``hypervisors/agentless.py``."""
        return await volumes.look(await self._connected(), path, beside)

    async def make_volume(self, volume: NewVolume) -> None:
        """See ``hypervisors/agentless.py``."""
        try:
            await volumes.make(await self._connected(), volume)
        except RefusedError as error:
            if error.code == VOLUME_EXISTS:
                self._not_ours.add(volume.path)
            raise

    async def delete_volume(self, path: str) -> None:
        """See ``hypervisors/agentless.py``; on a new connection, if the old one is gone."""
        if path in self._not_ours:
            return
        connection = await self._connected()
        if not await connection.alive():
            self._connection = connection = await self._open()
        await volumes.delete(connection, path)

    async def interfaces(self) -> frozenset[str]:
        """See ``hypervisors/agentless.py``."""
        connection = await self._connected()

        def look() -> frozenset[str]:
            found = {each.name() for each in connection.raw.listAllInterfaces(_ACTIVE_INTERFACES)}
            for device in connection.raw.listAllDevices(_NETWORK_DEVICES):
                found.add(parse(device.XMLDesc(0)).findtext("capability/interface", ""))
            return frozenset(found - {""})

        try:
            return await ask(look)
        except HypervisorError:  # not every libvirtd has these drivers
            return frozenset()


class AgentlessTpm:
    """A TPM's state on a host without Entourage.

    Args:
        connected: Returns a connection to the libvirtd there.
    """

    def __init__(self, connected: Callable[[], Awaitable[Connection]]) -> None:
        self._connected = connected

    async def facts(self) -> TpmFacts:
        """What libvirt says of the emulator there; what it does not say is taken to be as here."""
        connection = await self._connected()
        text: str = await ask(connection.raw.getDomainCapabilities, None, None, None, None, 0)
        tpm = parse(text).find("devices/tpm")
        said = {
            enum.get("name", ""): {value.text or "" for value in enum.iterfind("value")}
            for enum in (tpm.iterfind("enum") if tpm is not None else ())
        }
        if "emulator" not in said.get("backendModel", set()):
            return TpmFacts()
        versions = said.get("backendVersion") or {"1.2", "2.0"}
        here = await swtpm.facts()
        believed = {word for word in here.capabilities if not word.startswith("tpm-")}
        capabilities = believed | {f"tpm-{version}" for version in versions}
        return TpmFacts(program="swtpm", capabilities=frozenset(capabilities))

    async def sync(self, tpm: Tpm) -> None:
        """Nothing: that cannot be done remotely, and the user is told so before."""


async def _identity(connection: Connection) -> str:
    """What a libvirtd knows its host by, in one word."""
    libvirt = bindings()

    def read() -> str:
        text: str = connection.raw.getCapabilities()
        uuid = parse(text).findtext("host/uuid", "")
        try:
            name = str(connection.raw.getHostname())
        except libvirt.libvirtError:
            name = ""
        return f"{uuid}/{name}"

    return await ask(read)
