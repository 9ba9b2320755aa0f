"""Fakes of libvirt's objects, as far as they are asked when a domain is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.hypervisors.libvirt.constants import XML_INACTIVE, State


class Failed(Exception):  # noqa: N818 - it stands for one of libvirt's
    """Stands for libvirt.libvirtError."""

    def __init__(self, message: str = "no such thing", code: int = 1, domain: int = 10) -> None:
        super().__init__(message)
        self._facts = message, code, domain

    def get_error_message(self) -> str:
        return self._facts[0]

    def get_error_code(self) -> int:
        return self._facts[1]

    def get_error_domain(self) -> int:
        return self._facts[2]


def use_fakes(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Have these modules of the backend take ``Failed`` for libvirt's error."""
    for module in modules:
        name = f"entourage.hypervisors.libvirt.{module}.bindings"
        monkeypatch.setattr(name, lambda: SimpleNamespace(libvirtError=Failed))


class FakeCheckpoint:
    """A fake of ``virDomainCheckpoint``, by its XML."""

    def __init__(self, text: str) -> None:
        self._text = text

    def getXMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        return self._text

    def getName(self) -> str:  # noqa: N802 - libvirt's
        return self._text.partition("<name>")[2].partition("<")[0]


class FakeDomain:
    """A fake of ``virDomain``.

    Args:
        live, kept: Its XML, and that of its definition.
        job: What ``jobStats`` answers.
        block_jobs: What ``blockJobInfo`` does, by the disk.
        snapshots, checkpoints: The names of the first; the XML of the second.
        state: Its state.
        refuses: Whether libvirt refuses to undefine it.
        managed: Whether libvirt keeps a saved state of it.
    """

    def __init__(
        self,
        live: str = "<domain/>",
        kept: str = "<domain/>",
        *,
        job: Mapping[str, int] | None = None,
        block_jobs: Mapping[str, Mapping[str, int]] | None = None,
        snapshots: Sequence[str] = (),
        checkpoints: Sequence[str] = (),
        state: State = State.RUNNING,
        refuses: bool = False,
        managed: bool = False,
    ) -> None:
        self._live, self._kept = live, kept
        self._job, self._block_jobs = job or {}, block_jobs or {}
        self._snapshots, self._checkpoints = snapshots, checkpoints
        self._state, self._refuses, self._managed = state, refuses, managed
        self.told: list[Any] = []

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's
        return self._kept if flags & XML_INACTIVE else self._live

    def name(self) -> str:
        return "web1"

    def state(self, _flags: int) -> tuple[int, int]:
        return self._state, 0

    def jobStats(self) -> Mapping[str, int]:  # noqa: N802 - libvirt's
        return self._job

    def blockJobInfo(self, disk: str, _flags: int) -> Mapping[str, int]:  # noqa: N802 - libvirt's
        if disk not in self._live:
            raise Failed
        return self._block_jobs.get(disk, {})

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802 - libvirt's
        return self._managed

    def snapshotNum(self, _flags: int) -> int:  # noqa: N802 - libvirt's
        return len(self._snapshots)

    def listAllSnapshots(self, _flags: int) -> list[Any]:  # noqa: N802 - libvirt's
        return [SimpleNamespace(getName=lambda name=name: name) for name in self._snapshots]

    def listAllCheckpoints(self, _flags: int) -> list[Any]:  # noqa: N802 - libvirt's
        return [FakeCheckpoint(text) for text in self._checkpoints]

    def checkpointCreateXML(self, text: str, flags: int) -> None:  # noqa: N802 - libvirt's
        self.told.append((text, flags))
        if "unknown" in text:
            raise Failed("checkpoint disks are not the domain's")

    def setAutostart(self, on: int) -> None:  # noqa: N802 - libvirt's
        self.told.append(("autostart", on))

    def undefineFlags(self, flags: int) -> None:  # noqa: N802 - libvirt's
        self.told.append(("undefine", flags))
        if self._refuses:
            raise Failed

    def destroy(self) -> None:
        """Nothing: it does not end."""

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        return True

    def autostart(self) -> int:
        return 1

    def connect(self) -> FakeDomain:
        return self

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's
        return 11_003_000


def handle_of(raw: Any, domain: Domain, *, transient: bool = False, qemu: int = 7_002_000) -> Any:
    """A handle of such a domain, in this version of QEMU."""
    connection = SimpleNamespace(raw=SimpleNamespace(getVersion=lambda: qemu))
    return SimpleNamespace(raw=raw, domain=domain, transient=transient, connection=connection)
