"""Whom QEMU runs as, and what that user gets at."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.domain import Block, Boot, Domain, Pci, Tpm, Usb
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.account import Account
from entourage.hosts.resources import MemoryLedger
from entourage.hosts.usb import UsbDevice
from entourage.hypervisors.qemu import access
from entourage.hypervisors.qemu.paths import Places
from entourage.settings.model import QemuSettings

USER = Account("somebody", 7850, 7850, (7850,))
FOREIGN = 7851
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes another user"
)


@pytest.fixture
def folder() -> Generator[Path]:
    """A directory that everybody may pass through, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="access-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def where(folder: Path) -> Places:
    run, state = folder / "run/q/0", folder / "state/domains/0"
    run.mkdir(parents=True)
    return Places(run=run, state=state, log=folder / "log")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are on a file server."""

    def no(_: Path) -> bool:
        return False

    monkeypatch.setattr(access, "is_on_local_storage", no)


def an_image(folder: Path, name: str = "image", mode: int = 0o600, owner: int = 0) -> Path:
    image = folder / name
    image.touch()
    image.chmod(mode)
    os.chown(image, owner, -1)
    return image


def with_disk(path: Path, **fields: object) -> Domain:
    disk = Block(id="disk0", path=str(path), **fields)  # type: ignore[arg-type]
    return Domain(name="web1", memory=1 << 28, accel="tcg", block=(disk,))


def owner(path: Path) -> int:
    return path.stat().st_uid


async def reasons(domain: Domain, where: Places) -> dict[str, str]:
    return {one.device: one.reason for one in await access.problems(domain, where, USER)}


def test_root_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "USUAL_USER", "nobody")
    usual = access.account_of(QemuSettings())
    assert usual is not None
    assert usual.name == "nobody"
    assert access.notes(QemuSettings()) == []
    assert access.account_of(QemuSettings(user="root")) is None
    monkeypatch.setattr(access, "USUAL_USER", "not-made-yet")
    assert access.account_of(QemuSettings()) is None
    [note] = access.notes(QemuSettings())
    assert "as root" in note
    assert access.notes(QemuSettings(user="root")) == []
    with pytest.raises(UsageError, match="no user not-made-yet") as caught:
        access.account_of(QemuSettings(user="not-made-yet"))
    assert "useradd --system" in caught.value.remedy


def test_who_is_not_root_changes_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: FOREIGN)
    assert access.account_of(QemuSettings()) is None
    assert access.notes(QemuSettings()) == []
    with pytest.raises(UsageError, match="cannot be run as nobody"):
        access.account_of(QemuSettings(user="nobody"))


async def test_given_until_it_has_ended(folder: Path, where: Places) -> None:
    ledger, image = MemoryLedger(), an_image(folder)
    await access.let_user_in(with_disk(image), where, ledger, USER)
    assert owner(image) == USER.uid
    assert [kind for kind, _ in ledger.rows] == ["dir", "owners"]
    access.take_back(where, moved=False)
    assert owner(image) == 0
    assert not where.state.exists()


async def test_undone(folder: Path, where: Places) -> None:
    ledger, image = MemoryLedger(), an_image(folder)
    await access.let_user_in(with_disk(image), where, ledger, USER)
    assert not await ledger.undo()
    assert owner(image) == 0
    assert not where.state.exists()


async def test_what_the_user_can_open_stays_as_it_is(folder: Path, where: Places) -> None:
    ledger = MemoryLedger()
    for domain in (
        with_disk(an_image(folder, "open", 0o666)),
        with_disk(an_image(folder, "cd", 0o644), readonly=True),
    ):
        await access.let_user_in(domain, where, ledger, USER)
        assert owner(Path(domain.block[0].path)) == 0
    assert not ledger.rows


async def test_a_cd_that_a_mirror_writes_to_is_given(folder: Path, where: Places) -> None:
    ledger, image = MemoryLedger(), an_image(folder, "cd", 0o644)
    [disk] = with_disk(image, readonly=True).block
    await access.let_user_write(disk, where, ledger, None)
    assert owner(image) == 0
    await access.let_user_write(disk, where, ledger, USER)
    assert owner(image) == USER.uid


async def test_what_is_left_of_an_earlier_machine_goes_back(folder: Path, where: Places) -> None:
    ledger = MemoryLedger()
    first, second = an_image(folder, "first"), an_image(folder, "second")
    await access.let_user_in(with_disk(first), where, ledger, USER)
    await access.let_user_in(with_disk(second), where, ledger, USER)
    assert (owner(first), owner(second)) == (0, USER.uid)
    await access.let_user_in(with_disk(second), where, ledger, None)
    assert owner(second) == 0


async def test_an_image_below_is_given_as_well(folder: Path, where: Places) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    base, top = an_image(folder, "base"), folder / "top"
    os.truncate(base, 1 << 20)
    made = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top
    )
    assert await made.wait() == 0
    domain = with_disk(top, format="qcow2")
    await access.let_user_in(domain, where, MemoryLedger(), USER)
    assert (owner(base), owner(top)) == (USER.uid, USER.uid)


@pytest.mark.usefixtures("elsewhere")
async def test_on_shared_storage_another_users_image_is_left_alone(
    folder: Path, where: Places
) -> None:
    """Another host's machine may be using it, and a file server asks at each access."""
    image = an_image(folder, owner=FOREIGN)
    assert "cannot read and write" in (await reasons(with_disk(image), where))["block/disk0"]
    with pytest.raises(HypervisorError) as caught:
        await access.let_user_in(with_disk(image), where, MemoryLedger(), USER)
    assert caught.value.device == "block/disk0"
    assert "setfacl" in caught.value.remedy
    assert owner(image) == FOREIGN


@pytest.mark.usefixtures("elsewhere")
async def test_on_shared_storage_roots_image_is_given_and_moves_on(
    folder: Path, where: Places
) -> None:
    image = an_image(folder)
    assert not await reasons(with_disk(image), where)
    await access.let_user_in(with_disk(image), where, MemoryLedger(), USER)
    assert owner(image) == USER.uid
    access.take_back(where, moved=True)
    assert owner(image) == USER.uid  # the guest runs with it, on another host
    assert not where.owners.exists()


@pytest.mark.usefixtures("elsewhere")
async def test_storage_that_takes_no_owner_is_refused(
    folder: Path, where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("root is squashed")

    ledger, image = MemoryLedger(), an_image(folder)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(HypervisorError, match="cannot read and write"):
        await access.let_user_in(with_disk(image), where, ledger, USER)
    image.chmod(0o666)
    await access.let_user_in(with_disk(image), where, ledger, USER)


async def test_what_cannot_be_given_is_refused(folder: Path, where: Places) -> None:
    kernel = an_image(folder, "vmlinuz")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    an_image(closed)
    domain = Domain(
        name="web1",
        memory=1 << 28,
        accel="tcg",
        boot=Boot(kernel=str(kernel), initrd="/nowhere"),
        block=(Block(id="disk0", path=str(closed / "image")), Block(id="new", path="/no/where")),
        tpm=(Tpm(id="tpm0", type="passthrough"),),
        pci=(Pci(id="nic", host="0000:3b:00.0"), Pci(id="rng", model="virtio-rng-pci")),
    )
    found = await reasons(domain, where)
    assert sorted(found) == ["block/disk0", "domain", "pci/nic", "tpm/tpm0"]
    assert str(kernel) in found["domain"]
    assert f"pass through {closed}" in found["block/disk0"]
    kernel.chmod(0o644)
    assert "domain" not in await reasons(domain, where)
    assert await access.problems(domain, where, None) == []


async def test_a_usb_device_is_given(
    folder: Path, where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = an_image(folder, "node")
    token = UsbDevice("1-1", bus=1, address=4, vendor=0x1050, product=0x407, is_hub=False)
    asked: list[str] = []

    def called(name: str) -> list[UsbDevice]:
        asked.append(name)
        return [token]

    def path_of(_: UsbDevice) -> str:
        return str(node)

    monkeypatch.setattr(access.usb, "called", called)
    monkeypatch.setattr(access, "_usb_node", path_of)
    domain = Domain(
        name="web1",
        memory=1 << 28,
        usb=(Usb(id="token", vendor=0x1050, product=0x407), Usb(id="tablet", model="usb-tablet")),
    )
    await access.let_user_in(domain, where, MemoryLedger(), USER)
    assert asked == ["1050:0407"]
    assert owner(node) == USER.uid


def test_a_directory_that_only_the_user_passes_through(where: Places) -> None:
    above = where.run.parent
    above.chmod(0o700)
    access.let_through(where.run, USER.gid)
    status = where.run.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, USER.gid, 0o710)
    assert above.stat().st_mode & 0o777 == 0o701
    access.let_through(where.run, None)
    assert where.run.stat().st_mode & 0o777 == 0o700
