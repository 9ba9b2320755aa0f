"""Whose a domain is, where a host has more than one hypervisor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import EntourageError, HypervisorError, UsageError
from entourage.hypervisors import registry
from entourage.hypervisors.base import DomainState
from entourage.hypervisors.registry import LIBVIRT_URI, all_domains, find_domain, open_hypervisor
from entourage.settings.model import Settings

SETTINGS = Settings()


class Fake:
    """A hypervisor with some domains, or one that cannot be asked."""

    def __init__(self, name: str, *domains: str, error: EntourageError | None = None) -> None:
        self.name = name
        self._domains = domains
        self._error = error

    async def find(self, name: str) -> Domain:
        if self._error:
            raise self._error
        if name not in self._domains:
            raise UsageError(f"there is no {name}")
        return Domain(name=name, memory=1 << 20)

    async def domains(self) -> Sequence[DomainState]:
        if self._error:
            raise self._error
        return [DomainState(name=name, uuid=name, state="running") for name in self._domains]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    known = {"qemu": Fake("qemu", "web1", "both"), LIBVIRT_URI: Fake(LIBVIRT_URI, "db1", "both")}

    def opened(_settings: Settings, name: str = "qemu") -> Any:
        return known[name]

    monkeypatch.setattr(registry, "open_hypervisor", opened)
    monkeypatch.setattr(registry, "has_libvirt", lambda: True)
    return known


async def test_a_domain_is_found_with_who_has_it(two: dict[str, Fake]) -> None:
    assert (await find_domain(SETTINGS, "web1"))[0].name == "qemu"
    assert (await find_domain(SETTINGS, "db1"))[0].name == LIBVIRT_URI


async def test_two_of_one_name_must_be_told_apart(two: dict[str, Fake]) -> None:
    with pytest.raises(UsageError, match="two domains 'both'"):
        await find_domain(SETTINGS, "both")
    assert (await find_domain(SETTINGS, "both", LIBVIRT_URI))[0].name == LIBVIRT_URI


async def test_all_are_listed(two: dict[str, Fake]) -> None:
    names = [state.name for state in await all_domains(SETTINGS)]
    assert names == ["web1", "both", "db1", "both"]
    assert [one.name for one in await all_domains(SETTINGS, LIBVIRT_URI)] == ["db1", "both"]


async def test_a_libvirtd_that_is_off_hides_no_other_domain(two: dict[str, Fake]) -> None:
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=HypervisorError("connection refused"))
    assert [one.name for one in await all_domains(SETTINGS)] == ["web1", "both"]
    assert (await find_domain(SETTINGS, "web1"))[0].name == "qemu"
    with pytest.raises(UsageError, match="there is no db1; and qemu:///system does not answer"):
        await find_domain(SETTINGS, "db1")
    with pytest.raises(HypervisorError):
        await all_domains(SETTINGS, LIBVIRT_URI)


def test_no_hypervisor_of_that_name() -> None:
    with pytest.raises(UsageError, match="no hypervisor is called 'vmware'"):
        open_hypervisor(SETTINGS, "vmware")
