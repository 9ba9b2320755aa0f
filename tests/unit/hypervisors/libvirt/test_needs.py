"""What the target must have for a domain's XML: asked at TEST, each with what to do."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Boot, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import needs as module
from entourage.hypervisors.libvirt.bootfiles import about, boot_refusals
from entourage.hypervisors.libvirt.needs import needs
from entourage.steps import Refusal
from tests.unit.hypervisors.libvirt.fakes import Failed, use_fakes

UUID = "0a81f5b2-8403-4b23-c8d6-21ccc2f80d6f"


class Secret:
    """A fake of ``virSecret``; it has no value, or none that is shown."""

    def __init__(self, code: int) -> None:
        self._code = code

    def value(self, _flags: int) -> bytes:
        if self._code:
            raise Failed("no", self._code)
        return b"x"


class Connect:
    """A fake of ``virConnect`` with these secrets, and one filter and network, ``known``."""

    def __init__(self, secrets: Mapping[str, Secret] | None = None) -> None:
        self._secrets = secrets or {}

    def secretLookupByUUIDString(self, uuid: str) -> Secret:  # noqa: N802 - libvirt's
        if uuid not in self._secrets:
            raise Failed
        return self._secrets[uuid]

    def secretLookupByUsage(self, kind: int, usage: str) -> Secret:  # noqa: N802 - libvirt's
        return self.secretLookupByUUIDString(f"{kind}:{usage}")

    def nwfilterLookupByName(self, name: str) -> None:  # noqa: N802 - libvirt's
        if name != "known":
            raise Failed

    def networkLookupByName(self, name: str) -> Any:  # noqa: N802 - libvirt's
        if name != "known":
            raise Failed
        return SimpleNamespace(isActive=lambda: True)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, "needs")


async def ask(xml: str, raw: Connect | None = None, *, files: bool = True) -> list[Refusal]:
    connection: Any = SimpleNamespace(raw=raw or Connect())
    return await needs(connection, {"xml": f"<domain>{xml}</domain>"}, "b", files=files)


def device(xml: str) -> str:
    return f"<devices>{xml}</devices>"


LUKS = device(
    "<disk type='file'><encryption format='luks'>"
    f"<secret type='passphrase' uuid='{UUID}'/></encryption><target dev='vdb'/></disk>"
)
CEPH = device("<disk><auth><secret type='ceph' usage='mine'/></auth><target dev='vda'/></disk>")
TPM = device(f"<tpm><backend type='emulator'><encryption secret='{UUID}'/></backend></tpm>")


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (LUKS, f"libvirt there has no secret {UUID}, which the disk vdb needs"),
        (CEPH, "libvirt there has no secret for ceph mine, which the disk vda needs"),
        (TPM, f"libvirt there has no secret {UUID}, which the TPM's state needs"),
    ],
)
async def test_a_secret_that_is_not_there(xml: str, reason: str) -> None:
    [found] = await ask(xml)
    assert found.reason == reason
    assert "virsh secret-define" in found.remedy
    assert await ask(xml, files=False) == [found]


@pytest.mark.parametrize("xml", [LUKS, CEPH, TPM])
async def test_one_that_is_there(xml: str) -> None:
    private = 55
    for code in (0, private):
        assert not await ask(xml, Connect({UUID: Secret(code), "2:mine": Secret(code)}))


async def test_a_secret_without_a_value() -> None:
    [found] = await ask(LUKS, Connect({UUID: Secret(66)}))
    assert "has no value there" in found.reason
    assert f"virsh secret-set-value {UUID}" in found.remedy


async def test_a_filter_and_a_network() -> None:
    xml = device(
        "<interface><filterref filter='{0}'/></interface>"
        "<graphics type='vnc'><listen type='network' network='{0}'/></graphics>"
    )
    assert not await ask(xml.format("known"))
    found = await ask(xml.format("lan"))
    assert ["no network filter lan" in found[0].reason, "network lan" in found[1].reason] == [
        True, True,
    ]  # fmt: skip
    assert "virsh nwfilter-define" in found[0].remedy


CONNECTS = "<channel type='unix'><source mode='connect' path='{}/x'/></channel>"


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        ("<sysinfo type='fwcfg'><entry name='opt/x' file='{}/x'/></sysinfo>", "fw_cfg"),
        ("<os><nvram template='{}/x'>/no/where</nvram></os>", "NVRAM"),
        ("<os><acpi><table type='slic'>{}/x</table></acpi></os>", "ACPI"),
        ("<devices><interface><rom file='{}/x'/></interface></devices>", "ROM"),
        ("<devices><rng><backend model='random'>{}/x</backend></rng></devices>", "random"),
        ("<devices><input><source evdev='{}/x'/></input></devices>", "input"),
        ("<devices><memory><source><path>{}/x</path></source></memory></devices>", "memory"),
        (f"<devices>{CONNECTS}</devices>", "connects"),
        ("<devices><parallel type='dev'><source path='{}/x'/></parallel></devices>", "parallel"),
    ],
)
async def test_a_file_that_must_be_there(xml: str, what: str, tmp_path: Path) -> None:
    [found] = await ask(xml.format(tmp_path))
    assert what in found.reason
    assert f"{tmp_path}/x" in found.reason
    assert found.remedy
    assert not await ask(xml.format(tmp_path), files=False)
    (tmp_path / "x").touch()
    assert not await ask(xml.format(tmp_path))


async def test_nvram_that_is_there_needs_no_template(tmp_path: Path) -> None:
    own = tmp_path / "vars.fd"
    own.touch()
    assert not await ask(f"<os><nvram template='/no/where'>{own}</nvram></os>")


@pytest.mark.parametrize(
    "xml",
    [
        "<serial type='file'><source path='{}/x'/></serial>",
        "<serial type='pty'><log file='{}/x' append='off'/></serial>",
        "<channel type='unix'><source mode='bind' path='{}/x'/></channel>",
        "<graphics type='vnc'><listen type='socket' socket='{}/x'/></graphics>",
    ],
)
async def test_a_directory_of_what_is_made(xml: str, tmp_path: Path) -> None:
    assert not await ask(device(xml.format(tmp_path)))
    [found] = await ask(device(xml.format(tmp_path / "none")))
    assert f"no directory {tmp_path}/none" in found.reason
    assert found.remedy.startswith(f"mkdir -p {tmp_path}/none on b")


async def test_what_libvirt_makes_by_itself_is_not_asked_for() -> None:
    path = "/run/libvirt/qemu/channel/17-web1/org.qemu.guest_agent.0"
    assert not await ask(
        device(f"<channel type='unix'><source mode='bind' path='{path}'/></channel>")
    )


@pytest.mark.parametrize("listen", ["<listen type='address' address='{0}'/>", ""])
async def test_an_address_of_the_sources_own(listen: str) -> None:
    xml = device("<graphics type='vnc' listen='{0}'>" + listen + "</graphics>")
    [found] = await ask(xml.format("192.0.2.7"))
    assert found.reason == "VNC listens at 192.0.2.7, which is no address there"
    assert "listen elsewhere" in found.remedy
    for fits in ("127.0.0.1", "0.0.0.0", "::1", "a-name"):  # noqa: S104 - a display's
        assert not await ask(xml.format(fits))


async def test_a_port_of_udp_is_another_than_that_of_tcp() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other, socket.socket() as stream:
        other.bind(("127.0.0.1", 0))
        stream.bind(("127.0.0.1", 0))
        stream.listen()
        used, free = other.getsockname()[1], stream.getsockname()[1]
        line = "<serial type='udp'><source mode='bind' host='127.0.0.1' service='{}'/></serial>"
        [found] = await ask(device(line.format(used)))
        assert found.reason == f"the port {used}, at which a serial listens, is in use there"
        assert not await ask(device(line.format(free)))


async def test_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        display = f"<graphics type='vnc' port='{port}' autoport='no' listen='127.0.0.1'/>"
        line = (
            f"<serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}'/></serial>"
        )
        for xml in (display, line):
            [found] = await ask(device(xml))
            assert f"the port {port}" in found.reason
            assert "in use" in found.reason
        assert not await ask(device(display.replace("'no'", "'yes'")))


async def test_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HUGE_PAGES", tmp_path)
    free = tmp_path / "hugepages-2048kB" / "free_hugepages"
    free.parent.mkdir()
    free.write_text("127\n")
    xml = (
        "<memory unit='MiB'>256</memory><memoryBacking><hugepages>"
        "<page size='2' unit='M'/></hugepages></memoryBacking>"
    )
    [found] = await ask(xml)
    assert "2048 KiB: 256 MiB needed, 254 MiB free" in found.reason
    assert not await ask(xml.replace("unit='M'", "unit='M' nodeset='1'"))
    free.write_text("128\n")
    assert not await ask(xml)


@pytest.mark.parametrize("amount", ["much", "9" * 30])
async def test_an_amount_that_is_none_is_told(amount: str) -> None:
    with pytest.raises(HypervisorError, match="virsh dumpxml"):
        await ask(f"<memory>{amount}</memory><memoryBacking><hugepages/></memoryBacking>")


async def test_a_path_that_no_file_can_have_is_not_there() -> None:
    [found] = await ask(device(f"<serial type='dev'><source path='/{'x' * 5000}'/></serial>"))
    assert "there is no /xxx" in found.reason


async def test_pinned_where_there_is_no_such_cpu_or_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = tmp_path / "online"
    online.write_text("0-3\n")
    monkeypatch.setattr(module, "_CPUS", online)
    monkeypatch.setattr(module, "_NODES", online)
    pin = "<cputune><vcpupin vcpu='0' cpuset='{}'/></cputune>"
    node = "<numatune><memory mode='strict' nodeset='{}'/></numatune>"
    assert not await ask(pin.format("3-7"))  # one of them is there
    assert "pinned to the CPUs 4-7" in (await ask(pin.format("4-7")))[0].reason
    assert "pinned" in (await ask("<vcpu cpuset='8,^8,9'>1</vcpu>"))[0].reason
    assert not await ask(node.format("0-3"))
    assert "NUMA nodes 3-4" in (await ask(node.format("3-4")))[0].reason


# What it boots from


async def test_another_build_of_the_same_firmware_is_a_warning(tmp_path: Path) -> None:
    firmware, kernel = tmp_path / "OVMF_CODE.fd", tmp_path / "vmlinuz"
    firmware.write_text("one")
    kernel.write_text("linux")
    domain = Domain(
        name="web1", memory=1 << 28, boot=Boot(firmware=str(firmware), kernel=str(kernel))
    )
    facts = await about(domain)
    assert await boot_refusals(domain, "b", facts) == []
    firmware.write_text("two")
    kernel.write_text("a newer linux")
    code, linux = await boot_refusals(domain, "b", facts)
    assert (code.only_warns, linux.only_warns) == (True, True)
    assert "another build of the same size" in code.reason
    assert linux.reason.endswith("the next boot differs")
    firmware.write_text("three")
    code, _ = await boot_refusals(domain, "b", facts)
    assert not code.only_warns
    assert "not as large" in code.reason
    assert "copy it" not in code.remedy  # over a package's file


async def test_what_not_everybody_may_read_must_be_the_same(tmp_path: Path) -> None:
    """A guest could read it, and its source has not shown that it knows what is in it."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("secret")
    kernel.chmod(0o600)
    domain = Domain(name="web1", memory=1 << 28, boot=Boot(kernel=str(kernel)))
    [found] = await boot_refusals(domain, "b", {f"sha256:{kernel}": "0" * 64})
    assert not found.only_warns
