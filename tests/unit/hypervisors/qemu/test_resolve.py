"""What a user leaves open is filled in, and stays the same from then on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from entourage.domain import Block, Domain, Net, Pci
from entourage.errors import UsageError
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.resolve import direct_works, resolve, tap_name
from entourage.settings.model import PathSettings, Settings

TYPES = {"q35": "pc-q35-7.2", "pc-q35-7.2": "pc-q35-7.2"}


def fill(domain: Domain, *, uuid: str | None = None, kvm: bool = False) -> Domain:
    return resolve(domain, uuid=uuid, machine_types=TYPES, kvm=kvm)


def a_domain(**fields: Any) -> Domain:
    return Domain(name="web1", memory=1 << 28, **fields)


def test_nothing_is_left_open() -> None:
    domain = fill(
        a_domain(
            block=(Block(id="d", path="/nowhere"), Block(id="cd", path="/x", model="ide-cd")),
            net=(Net(id="n", bridge="br0"),),
            pci=(Pci(id="p", model="virtio-rng-pci"),),
        )
    )
    assert domain.uuid
    assert domain.machine == "pc-q35-7.2"
    assert (domain.accel, domain.cpu) == ("tcg", "max")
    assert [disk.cache for disk in domain.block] == ["writeback", "writeback"]
    assert [disk.address for disk in domain.block] == ["03.0", None]
    assert domain.net[0].mac
    assert domain.net[0].mac.startswith("52:54:00:")
    assert domain.net[0].tap
    assert (domain.net[0].address, domain.pci[0].address) == ("04.0", "05.0")


def test_a_second_start_is_the_same_machine() -> None:
    first = fill(a_domain(net=(Net(id="n", bridge="br0"), Net(id="o", bridge="br0"))))
    again = fill(
        a_domain(net=(Net(id="n", bridge="br0"), Net(id="o", bridge="br0"))), uuid=first.uuid
    )
    assert again == first
    assert fill(first) == first
    assert first.net[0].mac != first.net[1].mac


@pytest.mark.parametrize(
    ("accel", "kvm", "expected"),
    [
        ("auto", True, ("kvm", "host,migratable=on")),
        ("auto", False, ("tcg", "max")),
        ("tcg", True, ("tcg", "max")),
        ("kvm", True, ("kvm", "host,migratable=on")),
    ],
)
def test_accelerators(accel: str, kvm: bool, expected: tuple[str, str]) -> None:  # noqa: FBT001
    domain = fill(a_domain(accel=accel), kvm=kvm)
    assert (domain.accel, domain.cpu) == expected


def test_what_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="KVM"):
        fill(a_domain(accel="kvm"))
    with pytest.raises(UsageError, match="no machine type 'microvm'"):
        fill(a_domain(machine="microvm"))


@pytest.mark.parametrize("address", ["00.0", "1e.0", "1f.2"])
def test_the_machines_own_slots(address: str) -> None:
    with pytest.raises(UsageError, match="machine's own") as caught:
        fill(a_domain(net=(Net(id="n", bridge="b", address=address),)))
    assert caught.value.device == "net/n"


def test_addresses_that_were_given_are_kept() -> None:
    nets = (Net(id="a", bridge="b"), Net(id="b", bridge="b", address="03.0"))
    assert [net.address for net in fill(a_domain(net=nets)).net] == ["04.0", "03.0"]
    twice = (Net(id="a", bridge="b", address="05.0"), Net(id="b", bridge="b", address="05.1"))
    with pytest.raises(UsageError, match="slot of net/a"):
        fill(a_domain(net=twice))


def test_slots_run_out() -> None:
    many = tuple(Pci(id=f"p{i}", model="virtio-rng-pci") for i in range(28))
    with pytest.raises(UsageError, match="no PCI slot"):
        fill(a_domain(pci=many))
    fits = fill(a_domain(pci=many[:27]))
    assert len({pci.address for pci in fits.pci}) == 27


@pytest.mark.parametrize(
    ("size", "fields", "works"),
    [
        (0, {}, True),
        (2048 * 512, {}, True),
        (2049 * 512, {}, False),
        (501 * 2048, {"model": "ide-cd"}, False),
        (1000, {}, False),
        (2049 * 512, {"format": "qcow2"}, True),
        (2048 * 512, {"size": 1023 * 512}, False),
        (2048 * 512, {"size": 1024 * 512}, True),
    ],
)
def test_what_ends_within_a_request_goes_through_the_page_cache(
    size: int,
    fields: dict[str, Any],
    works: bool,  # noqa: FBT001 - a parameter of pytest's
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    disk = Block(id="d", path=str(tmp_path / "disk"), **fields)
    assert not direct_works(disk)
    Path(disk.path).write_bytes(b"")
    os.truncate(disk.path, size)
    monkeypatch.setattr(os, "O_DIRECT", 0)  # which not every filesystem of a developer's can
    assert direct_works(disk) is works


def test_cache_by_what_the_file_system_can(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    found = fill(a_domain(block=(Block(id="d", path=str(disk)),))).block[0].cache
    assert found in {"none", "writeback"}
    kept = msgspec.structs.replace(Block(id="d", path=str(disk)), cache="writeback")
    assert fill(a_domain(block=(kept,))).block[0].cache == "writeback"


@checked(deadline=None)
@given(st.uuids(), st.integers(0, 27), st.integers(0, 9))
def test_tap_names_fit(uuid: object, index: int, attempt: int) -> None:
    name = tap_name(str(uuid), index, attempt)
    assert len(name) <= 15
    assert attempt == 0 or name != tap_name(str(uuid), index)


def test_sockets_fit_or_it_is_said() -> None:
    settings = Settings(paths=PathSettings(run="/run/entourage"))
    where = places(settings, "3ADAA9DB-b504-4d7e-b775-13aaf542789b", "$(x) 'y'")
    assert where == places(settings, "3adaa9db-b504-4d7e-b775-13aaf542789b", "$(x) 'y'")
    for path in (where.qmp, where.guard, where.info, where.console, where.swtpm):
        assert len(str(path).encode()) <= 107
    assert where.log.name == "$(x) 'y'.log"
    assert len(places(settings, "u", "𝄞" * 63).log.name.encode()) <= 255
    for run in ("/" + "x" * 100, "/run/a,b"):
        with pytest.raises(UsageError, match=r"paths\.run|comma"):
            places(Settings(paths=PathSettings(run=run)), "u", "n")
