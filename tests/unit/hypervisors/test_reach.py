"""What a target answers is a claim: where memory and disks go is checked by the source."""

from __future__ import annotations

import msgspec
import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.process import is_tcp, way_of
from entourage.hypervisors.qemu.outgoing import memory_way, place_of
from entourage.hypervisors.reach import check_host, check_reach
from entourage.hypervisors.values import DataPlane, LocalData, Ticket

PLANE = DataPlane(address="10.0.0.2", ports=(49152, 49215), secret=None)


def test_there_and_at_the_ports_that_were_asked_for() -> None:
    check_reach(PLANE, "10.0.0.2", 49152, "memory")
    check_reach(PLANE, "10.0.0.2", 49215, "memory")


@pytest.mark.parametrize(
    ("host", "port"),
    [("10.0.0.3", 49152), ("127.0.0.1", 49152), ("", 49152), ("10.0.0.2", 22), ("10.0.0.2", 49216)],
)
def test_nowhere_else(host: str, port: int) -> None:
    with pytest.raises(HypervisorError, match=r"was asked for 10\.0\.0\.2"):
        check_reach(PLANE, host, port, "memory")


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("10.0.0.2", "tcp://10.0.0.2:49152"),
        ("10.0.0.2", "tcp:10.0.0.2:60000"),  # libvirt's own range of ports
        ("B.example", "tcp://b.example:49152"),
        ("fd00::2", "tcp:[fd00::2]:49152"),
        ("fe80::2%eth0", "tcp://[fe80::2%25eth0]:49152"),
        ("", "tcp://wherever:49152"),  # it was not asked for an address
    ],
)
def test_libvirt_chooses_the_port(address: str, uri: str) -> None:
    check_host(msgspec.structs.replace(PLANE, address=address), *way_of(uri), "memory")


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("10.0.0.2", "tcp://10.0.0.3:49152"),
        ("10.0.0.2", "tcp://127.0.0.1:49152"),
        ("10.0.0.2", "tcp://10.0.0.2@10.0.0.3:49152"),
        ("10.0.0.2", "tcp:10.0.0.2:22"),
        ("10.0.0.2", "tcp://10.0.0.2"),
        ("", "tcp://wherever:22"),
    ],
)
def test_and_no_other_host(address: str, uri: str) -> None:
    with pytest.raises(HypervisorError, match="the target has memory go to"):
        check_host(msgspec.structs.replace(PLANE, address=address), *way_of(uri), "memory")


@pytest.mark.parametrize(
    "uri",
    [
        *("exec:touch /tmp/x", "fd:3", "unix:/run/x", "tcp:10.0.0.2", "tcp:10.0.0.2:0"),
        *(
            "tcp:10.0.0.2:99999",
            "tcp:10.0.0.2:49152,server",
            "tcp:10.0.0.2:49152\n",
            "",
            "rdma:x:1",
        ),
    ],
)
def test_memory_goes_to_a_tcp_port(uri: str) -> None:
    with pytest.raises(HypervisorError, match="no TCP port"):
        place_of(Ticket(uri=uri))


def test_a_scoped_address_is_one() -> None:
    assert place_of(Ticket(uri="tcp:[fe80::1%eth0]:49152")) == ("fe80::1%eth0", 49152)


@pytest.mark.parametrize(
    ("uri", "yes"),
    [
        ("tcp://b:49152", True),
        ("tcp:b:49152", True),
        ("tcp://[fe80::1]:49152", True),
        ("unix:///run/docker.sock", False),
        ("exec:x", False),
        ("rdma://b:1", False),
        ("tcp:", False),
        ("", False),
    ],
)
def test_libvirts_as_well(uri: str, *, yes: bool) -> None:
    assert is_tcp(uri) is yes


@pytest.mark.parametrize("uri", ["unix:/run/other.sock", "tcp:127.0.0.1:49152", "exec:true"])
async def test_memory_that_stays_here_goes_nowhere_else(uri: str) -> None:
    local = LocalData(socket="/run/entourage/m.sock", generation=1, paused=False)
    plane = msgspec.structs.replace(PLANE, local=local)
    with pytest.raises(HypervisorError, match="does not leave this host"):
        async with memory_way(Ticket(uri=uri), plane, print):
            pass
    with pytest.raises(HypervisorError, match="no TCP port"):
        async with memory_way(Ticket(uri="unix:/run/entourage/m.sock"), PLANE, print):
            pass
