"""libvirt's domains that are off: what of an emulated TPM both hosts must see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain, Tpm
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import definitions as module
from entourage.hypervisors.libvirt.definitions import define, tpm_states
from entourage.hypervisors.values import Definition

UUID = "a241103c-2c3e-4756-88b0-63e73f621ee2"
DOMAIN = Domain(name="rests", uuid=UUID, memory=1 << 30, tpm=(Tpm(id="tpm0"),))
TPM = "<domain><devices><tpm><backend type='emulator'>{}</backend></tpm></devices></domain>"


def test_its_state_is_seen_by_both_hosts_or_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = [False]

    def is_on_local_storage(_: Path) -> bool:
        return local[0]

    monkeypatch.setattr(module, "STATES", tmp_path)
    monkeypatch.setattr(module, "is_on_local_storage", is_on_local_storage)
    state = tmp_path / UUID / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.touch()
    assert tpm_states(DOMAIN, TPM.format(""), 8_009_000) == [str(state)]
    assert tpm_states(DOMAIN, TPM.format(""), 8_008_000) is None  # its undefine deletes it
    elsewhere = "<source type='dir' path='/srv/tpm'/>"
    assert tpm_states(DOMAIN, TPM.format(elsewhere), 11_000_000) is None
    none = Domain(name="rests", uuid=UUID, memory=1 << 30)
    assert tpm_states(none, "<domain/>", 8_000_000) == []
    local[0] = True
    assert tpm_states(DOMAIN, TPM.format(""), 11_000_000) is None


class Libvirtd:
    """Takes what it is to define; and the domain that it has then."""

    def __init__(self) -> None:
        self.raw = self
        self.defined: list[str] = []
        self.starts: list[int] = []

    def defineXML(self, text: str) -> Libvirtd:  # noqa: N802 - libvirt's
        self.defined.append(text)
        return self

    def setAutostart(self, starts: int) -> None:  # noqa: N802 - libvirt's
        self.starts.append(starts)


def xml(name: str = "rests", uuid: str = UUID, more: str = "") -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>{more}</domain>"


async def test_what_is_defined_is_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XML that TEST has looked at, and only of that domain."""
    monkeypatch.setattr(module, "sync_definitions", lambda: None)
    libvirtd: Any = Libvirtd()
    other = "b241103c-2c3e-4756-88b0-63e73f621ee3"
    for wrong in (xml("web1"), xml(uuid=other), xml(more=f"<uuid>{other}</uuid>"), ""):
        with pytest.raises(HypervisorError):
            await define(libvirtd, Definition(domain=DOMAIN, facts={"xml": wrong}))
    assert libvirtd.defined == []
    await define(libvirtd, Definition(domain=DOMAIN, autostart=True, facts={"xml": xml()}))
    assert (libvirtd.defined, libvirtd.starts) == ([xml()], [1])
