"""What libvirt made for a restore that was killed is removed where no domain has it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.hypervisors.libvirt import another, made_files, tpm
from entourage.hypervisors.libvirt.connection import LostError, RefusedError
from entourage.hypervisors.libvirt.made_files import remove_unowned
from entourage.hypervisors.libvirt.restoring_notes import Restoring
from tests.unit.hypervisors.libvirt.fakes import Failed

UUID = "5b6e6d0e-0000-4000-8000-000000000002"
OTHER = "5b6e6d0e-0000-4000-8000-000000000003"
DOMAIN = Domain(name="web2", uuid=UUID, memory=1 << 28)


class Known:
    """A fake of ``virDomain``: one that there is."""

    def __init__(
        self,
        name: str,
        *,
        uuid: str = OTHER,
        live: str = "",
        kept: str | None = None,
        on: bool = True,
    ) -> None:
        self._name, self._uuid, self._live, self._kept, self._on = name, uuid, live, kept, on
        self.gone = False

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        if self.gone:
            raise Failed("no such domain", 42)
        return self._kept is not None

    def isActive(self) -> bool:  # noqa: N802 - libvirt's
        return self._on

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's
        return f"<domain>{(self._kept if flags else self._live) or ''}</domain>"

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's
        return self._uuid


def host(*domains: Known) -> Any:
    return SimpleNamespace(raw=SimpleNamespace(listAllDomains=lambda _flags: list(domains)))  # pyright: ignore[reportUnknownLambdaType]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(another, "VARIABLES", str(tmp_path))
    made = tmp_path / "web2_VARS.fd"
    made.touch()
    return made


@pytest.mark.parametrize(
    ("domain", "owner"),
    [
        (Known("web1"), ""),
        (Known("web2"), "web2"),  # by its name, whatever its XML says
        (Known("web3", live="<os><nvram>{made}</nvram></os>"), "web3"),
        (Known("web3", kept="<serial><log file='{made}'/></serial>", on=False), "web3"),
        # It is just about to be forgotten: it is what was restored.
        (Known("web2", uuid=UUID, live="<os><nvram>{made}</nvram></os>", on=False), ""),
    ],
)
async def test_a_file_that_a_domain_has_stays_and_is_named(
    made: Path, domain: Known, owner: str
) -> None:
    domain._live = domain._live.format(made=made)  # pyright: ignore[reportPrivateUsage]
    if domain._kept is not None:  # pyright: ignore[reportPrivateUsage]
        domain._kept = domain._kept.format(made=made)  # pyright: ignore[reportPrivateUsage]
    gone = Known("web4")
    gone.gone = True
    noted = Restoring(new_files=(str(made),))
    left = await remove_unowned(noted, DOMAIN, host(gone, domain), never_ran=True)
    assert made.exists() == bool(owner)
    assert bool(left) == bool(owner)
    assert not owner or f"{made} was made for the restore, or since then for {owner}" in left[0]


async def test_where_domains_are_not_known_nothing_is_removed(made: Path) -> None:
    def lost(_flags: int) -> list[Any]:
        raise Failed("it went away", domain=7)

    connection: Any = SimpleNamespace(raw=SimpleNamespace(listAllDomains=lost))
    with pytest.raises(LostError):
        await remove_unowned(Restoring(new_files=(str(made),)), DOMAIN, connection, never_ran=True)
    assert made.exists()


async def test_nobody_is_asked_where_nothing_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpm, "STATES", tmp_path)
    noted = Restoring(tpm_is_new=True, new_files=(str(tmp_path / "none"),))
    connection: Any = None
    for never_ran in (True, False):
        assert await remove_unowned(noted, DOMAIN, connection, never_ran=never_ran) == []


async def test_a_file_that_a_domain_has_by_another_path_stays(made: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    domain = Known("web3", live=f"<os><nvram>{tmp_path}/link//{made.name}</nvram></os>")
    noted = Restoring(new_files=(str(made),))
    [left] = await remove_unowned(noted, DOMAIN, host(domain), never_ran=True)
    assert made.exists()
    assert "for web3, which has it" in left


async def test_a_domain_that_libvirt_does_not_describe_may_have_all_of_it(made: Path) -> None:
    class Secret(Known):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's
            raise Failed("access denied", 88)

    noted = Restoring(new_files=(str(made),))
    with pytest.raises(RefusedError):
        await remove_unowned(noted, DOMAIN, host(Secret("web3")), never_ran=True)
    assert made.exists()


async def test_what_a_guest_may_have_used_since_stays(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`virsh resume`, and it ran until it was shut down: libvirt knows nothing of it any more."""
    monkeypatch.setattr(tpm, "STATES", tmp_path)
    state = tmp_path / UUID
    state.mkdir()
    noted = Restoring(tpm_is_new=True, new_files=(str(made),))
    [left] = await remove_unowned(noted, DOMAIN, host(), never_ran=False)
    assert made.exists()
    assert state.exists()
    assert f"rm -r {made} {state}" in left
    noted = Restoring(new_files=(str(made), str(made)))
    [left] = await remove_unowned(noted, DOMAIN, host(Known("web2")), never_ran=False)
    assert "for web2, which has it" in left  # to remove that is nobody told


async def test_what_other_hosts_see_stays(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may have made the machine in the place of this one."""

    def is_local(_path: Path) -> bool:
        return False

    monkeypatch.setattr(made_files, "is_on_local_storage", is_local)
    [left] = await remove_unowned(Restoring(new_files=(str(made),)), DOMAIN, host(), never_ran=True)
    assert made.exists()
    assert "another host sees it as well" in left
