"""What is asked of a migration when a machine is saved or restored; and what is shown of saves."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from entourage.checkpoint import requests
from entourage.checkpoint.disks import Disks
from entourage.checkpoint.requests import restore_request, save_request
from entourage.checkpoint.saved import saves
from entourage.domain import Block, Domain, External, Net, Tpm
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.route import host_of
from entourage.hypervisors.registry import (
    counterpart,
    elsewhere,
    find_domain,
    in_directory,
    start_command,
)
from entourage.hypervisors.saved import claim, storage
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.values import ANOTHER, RESTORES, RestorePlan, Since
from entourage.settings.model import PathSettings, Settings
from tests.unit.hypervisors.saved.test_manifest import disk, saved

__all__ = ["disk", "saved"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths=PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run")))


DISKS = (
    Block(id="disk0", path="/srv/d0.raw"),
    Block(id="cd0", path="/srv/cd.iso", model="ide-cd"),
)


def known(monkeypatch: pytest.MonkeyPatch, hypervisor: str, *, tpm: bool = False) -> None:
    tpms = (Tpm(id="tpm0"),) if tpm else ()
    domain = Domain(name="web1", memory=1 << 30, block=DISKS, tpm=tpms)

    async def found(*_asked: object) -> tuple[object, object]:
        return SimpleNamespace(name=hypervisor), domain

    monkeypatch.setattr(requests, "known", found)


async def test_a_save_goes_to_a_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu")
    (tmp_path / "link").symlink_to(tmp_path)
    request = await save_request(settings, "web1", f"{tmp_path}/link/x")
    where = f"{tmp_path}/x"
    assert (request.route.host, request.route.agentless) == (where, f"save:{where}")
    assert (request.live, request.settings.migration.tls) == (False, False)
    assert (request.options.copies, request.options.sealed) == (frozenset(), True)
    assert in_directory(f"save:{where}") == where
    assert (elsewhere("qemu"), in_directory("qemu+ssh://b/system")) == (None, "")
    assert counterpart(f"save:{where}") == "qemu"


async def test_a_save_may_go_to_another_host(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu")
    request = await save_request(settings, "web1", "root@b:/backup/web1", disks=Disks.COPY)
    assert request.route.host == "root@b:/backup/web1"
    assert request.route.agentless == "save:/backup/web1"
    assert request.options.disks == {"disk0": "/backup/web1/disks/disk0"}
    for wrong in ("b:/", "b:/backup/../x", "b:/x\n", "b:web1"):
        with pytest.raises(UsageError, match="no directory to save in"):
            await save_request(settings, "web1", wrong)


def test_what_is_another_hosts() -> None:
    places = ["b:/x", "root@b:/x:/y", "[::1]:/x", "/srv/b:/x", "b:x", "x", "/x"]
    assert [host_of(place) for place in places] == ["b", "root@b", "[::1]", "", "", "", ""]


async def test_a_checkpoint_copies_what_its_guest_writes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu")
    request = await save_request(settings, "web1", f"{tmp_path}/x", checkpoint=True)
    assert (request.live, request.options.checkpoint) == (True, True)
    assert request.options.disks == {"disk0": f"{tmp_path}/x/disks/disk0"}
    assert request.options.copies == {"disk0"}
    assert (request.options.sealed, request.options.keep_source_disks) == (True, True)
    own = await save_request(
        settings, "web1", f"{tmp_path}/x", checkpoint=True, disks=Disks.REFERENCE
    )
    assert (own.options.copies, own.options.sealed) == (frozenset(), False)


@pytest.mark.parametrize(
    ("disks", "tpm", "remedy"),
    [(Disks.KEEP, False, "--disks=copy"), (None, True, "--allow-tpm-rollback")],
)
async def test_what_nobody_could_go_back_to_is_refused(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    disks: Disks | None,
    tpm: bool,  # noqa: FBT001 - a case's
    remedy: str,
) -> None:
    known(monkeypatch, "qemu", tpm=tpm)
    with pytest.raises(UsageError) as told:
        await save_request(settings, "web1", "/srv/x", checkpoint=True, disks=disks)
    assert remedy in told.value.remedy


async def test_what_cannot_be_saved_yet_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu:///session")
    with pytest.raises(UsageError, match="none of those is saved") as told:
        await save_request(settings, "web1", "/srv/x")
    assert "virsh save" in told.value.remedy


async def test_a_xen_domains_disks_are_not_copied(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "xen")
    with pytest.raises(UsageError, match="cannot be with copies of its disks"):
        await save_request(settings, "web1", "/srv/x", disks=Disks.COPY)
    with pytest.raises(UsageError, match="cannot be non-live"):
        await save_request(
            settings, "web1", "/srv/x", checkpoint=True, disks=Disks.REFERENCE, live=False
        )
    with pytest.raises(UsageError, match="goes on and writes") as told:
        await save_request(settings, "web1", "/srv/x", checkpoint=True)
    assert "--disks=reference" in told.value.remedy
    assert "--disks=copy" not in told.value.remedy
    one = await save_request(
        settings, "web1", "b:/srv/x", checkpoint=True, disks=Disks.REFERENCE, stays_paused=True
    )
    assert (one.connect, one.options.stays_paused, one.options.sealed) == ("xen", True, False)


async def test_only_what_was_written_since_a_checkpoint_of_the_same_machine(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu")
    since = Since(directory="/srv/mon", sha256="1", mark="entourage-1", images={"disk0": "raw"})
    uuid: list[str | None] = [None]

    def found(_place: Path) -> tuple[Since, SimpleNamespace]:
        return since, SimpleNamespace(domain=Domain(name="web1", uuid=uuid[0], memory=1 << 30))

    monkeypatch.setattr(requests, "since_of", found)
    one = await save_request(settings, "web1", f"{tmp_path}/x", checkpoint=True, since="/srv/mon")
    assert one.options.since == since
    assert one.options.mark > "entourage-0"
    ended = await save_request(settings, "web1", f"{tmp_path}/x", since="/srv/mon")
    assert ended.options.copies == {"disk0"}  # what is since another copies disks
    assert not ended.options.mark
    with pytest.raises(UsageError, match="copies none"):
        await save_request(settings, "web1", "/srv/x", disks=Disks.KEEP, since="/srv/mon")
    with pytest.raises(UsageError, match="is to be on b"):
        await save_request(settings, "web1", "b:/srv/x", since="/srv/mon")
    uuid[0] = "4c9a4b1c-8f6e-4a0e-9d55-1d3c2a3a5b0f"
    with pytest.raises(UsageError, match="not of web1"):
        await save_request(settings, "web1", f"{tmp_path}/x", since="/srv/mon")
    uuid[0] = None
    known(monkeypatch, "qemu:///system")
    its = await save_request(settings, "web1", f"{tmp_path}/x", checkpoint=True, since="/srv/mon")
    assert (its.options.since, its.live) == (since, False)
    assert its.options.mark > "entourage-0"
    through = await save_request(
        settings, "web1", f"{tmp_path}/x", checkpoint=True, since="/srv/mon", compress=True
    )
    assert (through.options.since, through.live) == (since, False)
    known(monkeypatch, "xen")
    with pytest.raises(UsageError, match="keeps no record of what is written"):
        await save_request(settings, "web1", f"{tmp_path}/x", since="/srv/mon")


@pytest.mark.parametrize("directory", ["/", "/srv/..", ""])
async def test_where_nothing_can_be_saved(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    known(monkeypatch, "qemu")
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="no directory to save in"):
        await save_request(settings, "web1", directory)


async def test_libvirts_domains_are_saved(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with their disks; their guests stand still while memory is written."""
    known(monkeypatch, "qemu:///system")
    assert (await save_request(settings, "web1", "/srv/x")).connect == "qemu:///system"
    kept = await save_request(settings, "web1", "/srv/x", checkpoint=True, allow_tpm_rollback=True)
    assert kept.options.copies
    assert not kept.live
    assert (await save_request(settings, "web1", "/srv/x", disks=Disks.COPY)).options.copies


SENT: list[tuple[str, dict[str, Any]]] = [("/srv/x", {"compress": True}), ("b:/srv/x", {})]


@pytest.mark.parametrize(("directory", "more"), SENT)
async def test_libvirts_domains_are_sent_into_a_save(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, directory: str, more: dict[str, Any]
) -> None:
    """Live where they go on; they stay where they are, as far as their disks are concerned."""
    known(monkeypatch, "qemu:///system")

    def check(_through: Any) -> None:
        """Nothing is missing."""

    monkeypatch.setattr(requests, "check", check)
    once = await save_request(settings, "web1", directory, **more)
    assert not once.live
    assert once.options.sealed
    goes_on = await save_request(
        settings,
        "web1",
        directory,
        checkpoint=True,
        disks=Disks.REFERENCE,
        allow_tpm_rollback=True,
        **more,
    )
    assert goes_on.live
    if "encrypt" not in more:
        copies = await save_request(
            settings, "web1", directory, checkpoint=True, allow_tpm_rollback=True, **more
        )
        assert (copies.options.copies, copies.live) == ({"disk0"}, False)


async def test_what_is_not_sent_into_a_save(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu:///system")
    asked: dict[str, Any] = {"stays_paused": True, "disks": Disks.REFERENCE}
    reason = "on another host, cannot be .*that leaves its guest paused"
    for directory, more in SENT:
        with pytest.raises(UsageError, match=reason) as told:
            await save_request(settings, "web1", directory, checkpoint=True, **more, **asked)
        assert "onto this host, as it is" in told.value.remedy


@pytest.mark.parametrize(
    ("hypervisor", "there"), [("", None), ("qemu:///system", "qemu:///system")]
)
async def test_who_has_saved_it_restores_it(
    settings: Settings,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    hypervisor: str,
    there: str | None,
) -> None:
    def is_here(name: str) -> bool:
        return name == there

    monkeypatch.setattr(requests, "is_here", is_here)
    write_anew(saved, hypervisor)
    assert (await restore_request(settings, str(saved))).route.there == there


@pytest.mark.parametrize("hypervisor", ["qemu+ssh://b/system", "xen", "qemu:///session", "x"])
async def test_nobody_elses_hypervisor_restores_it(
    settings: Settings, saved: Path, hypervisor: str
) -> None:
    write_anew(saved, hypervisor)
    with pytest.raises(UsageError, match="hypervisor"):
        await restore_request(settings, str(saved))


def write_anew(saved: Path, hypervisor: str) -> None:
    """Have it saved by this one."""
    manifest = manifests.read_manifest(saved)
    (saved / "manifest.json").unlink()
    manifests.write_manifest(saved, msgspec.structs.replace(manifest, hypervisor=hypervisor))


async def test_a_copy_needs_a_word(settings: Settings, saved: Path, tmp_path: Path) -> None:
    request = await restore_request(settings, str(saved), paused=True)
    assert (request.domain, request.paused) == ("web1", True)
    assert request.connect == f"save:{saved}"
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
        (copy / path.name).chmod(0o600)
    with pytest.raises(UsageError, match="is no checkpoint"):
        await restore_request(settings, str(saved), revert=True)
    with pytest.raises(UsageError, match="is a copy") as told:
        await restore_request(settings, str(copy))
    assert "--only-copy" in told.value.remedy
    assert (await restore_request(settings, str(copy), only_copy=True)).domain == "web1"
    [first, second] = await saves(settings, [str(tmp_path)])
    assert (first.directory, len(first.against)) == (str(copy), 1)
    assert (second.directory, second.against) == (str(saved), ())


async def test_a_checkpoint_needs_another_word(settings: Settings, saved: Path) -> None:
    manifest = msgspec.structs.replace(manifests.read_manifest(saved), checkpoint=True)
    (saved / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="is a checkpoint") as told:
        await restore_request(settings, str(saved), only_copy=True)
    assert "--revert" in told.value.remedy
    assert (await restore_request(settings, str(saved), revert=True)).domain == "web1"
    [shown] = await saves(settings, [str(saved)])
    assert (shown.checkpoint, shown.against) == (True, ())


async def test_a_copied_disk_goes_where_it_was_or_where_it_is_wanted(
    settings: Settings, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is written over a device, all of it is read: it may be damaged."""
    manifest = manifests.read_manifest(saved)
    copy = manifests.Copy(device="block/disk0", format="raw", file=manifest.memory)
    manifest = msgspec.structs.replace(manifest, copies=(copy,), disks=())
    (saved / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="no save"):  # the copy itself is not there
        await restore_request(settings, str(saved))
    (saved / "disks").mkdir(mode=0o700)
    (saved / "disks" / "disk0").touch(mode=0o600)
    was = manifest.domain.block[0].path
    request = await restore_request(settings, str(saved))
    assert (request.options.disks, request.options.copies) == ({"disk0": was}, {"disk0"})
    request = await restore_request(settings, str(saved), disks={"disk0": "/srv/new"})
    assert (request.options.disks, request.examine) == ({"disk0": "/srv/new"}, False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_block_device", _always)
        assert (await restore_request(settings, str(saved), disks={"disk0": "/dev/vdb"})).examine
    with pytest.raises(UsageError, match="no such disk"):
        await restore_request(settings, str(saved), disks={"disk1": "/srv/new"})


async def test_what_speaks_against_a_save_is_shown(settings: Settings, saved: Path) -> None:
    manifest = manifests.read_manifest(saved)
    os.utime(manifest.disks[0].path)
    claim.take(saved, "2" * 32)
    [shown] = await saves(settings, [str(saved)])
    assert len(shown.against) == 2
    assert "is being restored" in shown.against[0]
    assert "was written to" in shown.against[1]
    (saved / "manifest.json").write_bytes(b"{")
    [shown] = await saves(settings, [str(saved)])
    assert (shown.domain, len(shown.against)) == ("", 1)
    with pytest.raises(UsageError, match="no directory"):
        await saves(settings, [f"{saved}/none"])


async def test_what_is_on_another_host_is_restored_there(settings: Settings) -> None:
    with pytest.raises(UsageError, match="is on root@b") as told:
        await restore_request(settings, "root@b:/backup/web1")
    assert told.value.remedy == "there: entourage restore /backup/web1"


async def test_a_save_that_cannot_be_looked_at_is_listed_with_the_others(
    settings: Settings, saved: Path
) -> None:
    shutil.copytree(saved, saved.with_name("a"))
    os.mkfifo(saved / "claim.json")
    (saved.with_name("file")).touch()
    first, second = await saves(settings, [str(saved.parent)])
    assert (first.domain, second.domain) == ("web1", "web1")
    assert "claim.json" in "".join(second.against)
    with pytest.raises(UsageError, match="no directory") as told:
        await saves(settings, [f"{saved.parent}/file"])
    assert told.value.remedy


@pytest.fixture
def copied(saved: Path) -> Path:
    """A save of a machine with a NIC, whose disk was copied into it."""
    manifest = manifests.read_manifest(saved)
    copy = manifests.Copy(device="block/disk0", format="raw", file=manifest.memory)
    nic = Net(id="net0", bridge="br0", mac="52:54:00:00:00:01", tap="tap7")
    domain = msgspec.structs.replace(manifest.domain, net=(nic,))
    manifest = msgspec.structs.replace(manifest, domain=domain, copies=(copy,), disks=())
    (saved / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (saved / "disks").mkdir(mode=0o700)
    (saved / "disks" / "disk0").touch(mode=0o600)
    return saved


OWN: dict[str, Any] = {"disks": {"disk0": "/srv/web2.raw"}, "nets": {"br0": "br9"}}


async def test_another_machine_is_made_of_it(settings: Settings, copied: Path) -> None:
    """It has its own name, UUID and MACs; whose copy of the save it is does not matter."""
    (copied / "memory").touch()
    request = await restore_request(settings, str(copied), another="web 2", **OWN)
    other = await restore_request(settings, str(copied), another="web 2", **OWN)
    assert request.domain == "web 2"
    assert request.connect != other.connect
    assert in_directory(request.connect or "") == str(copied)
    hypervisor, domain = await find_domain(settings, "web 2", request.connect)
    assert (hypervisor.name, domain.name) == (request.connect, "web 2")
    first = manifests.read_manifest(copied).domain
    assert domain.uuid not in {None, first.uuid}
    assert domain.net[0].mac not in {None, first.net[0].mac}
    assert (domain.net[0].tap, domain.net[0].bridge) == (None, "br0")
    machine = await hypervisor.machine("web 2")
    assert (machine.domain.uuid, machine.domain.net) == (domain.uuid, domain.net)
    assert machine.domain.block[0].path == f"{copied}/disks/disk0"
    typed = start_command(request.connect or "", "web 2")
    assert typed == f"entourage restore --as 'web 2' --disk … --net … {copied}"


async def test_another_machine_claims_nothing(settings: Settings, copied: Path) -> None:
    request = await restore_request(settings, str(copied), another="web2", **OWN)
    hypervisor, domain = await find_domain(settings, "web2", request.connect)
    machine = await hypervisor.machine("web2")
    await machine.disarm_deadman()
    assert claim.read_claim(copied) is None
    claim.take(copied, "2" * 32)
    await machine.disarm_deadman()
    await machine.release()
    await machine.abort()
    assert (claim.read_claim(copied) or claim.Claim(holder="", host="")).holder == "2" * 32
    again = await hypervisor.reattach_machine(domain)  # as recovery does
    assert again.domain.uuid == domain.uuid
    (copied / "manifest.json").write_bytes(b"{}")
    with pytest.raises(HypervisorError, match="is damaged"):
        await machine.disarm_deadman()
    shutil.rmtree(copied)
    gone = await hypervisor.reattach_machine(domain)
    assert gone.domain.uuid == domain.uuid
    await gone.abort()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"another": "web1"}, "a save of web1 itself"),
        ({"another": "a/b"}, "no name of a domain"),
        ({"revert": True}, "are of the machine itself"),
        ({"only_copy": True}, "are of the machine itself"),
        ({"disks": {}}, "web2 needs a place of its own"),
        ({"nets": {}}, "the MAC of web1's net0"),
        ({"nets": {"br0": "br0"}}, "the MAC of web1's net0"),
    ],
)
async def test_another_machine_has_no_place_of_the_first_ones(
    settings: Settings, copied: Path, more: dict[str, Any], says: str
) -> None:
    asked: dict[str, Any] = {"another": "web2", **OWN, **more}
    with pytest.raises(UsageError, match=says) as told:
        await restore_request(settings, str(copied), **asked)
    assert told.value.remedy


async def test_another_machine_is_on_no_bridge_of_the_first_ones_nics(
    settings: Settings, copied: Path
) -> None:
    """Each NIC goes to the bridge of the other one."""
    manifest = manifests.read_manifest(copied)
    second = msgspec.structs.replace(manifest.domain.net[0], id="net1", bridge="br1", tap="tap8")
    both = (manifest.domain.net[0], second)
    domain = msgspec.structs.replace(manifest.domain, net=both)
    changed = msgspec.structs.replace(manifest, domain=domain)
    (copied / "manifest.json").write_bytes(msgspec.json.encode(changed))
    crossed: dict[str, Any] = {**OWN, "nets": {"br0": "br1", "br1": "br0"}}
    with pytest.raises(UsageError, match="the MAC of web1's net0"):
        await restore_request(settings, str(copied), another="web2", **crossed)


async def test_storage_that_hangs_is_not_waited_for(
    settings: Settings, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.05)
    monkeypatch.setattr(manifests, "read_manifest", _hung(answers))
    with pytest.raises(HypervisorError, match="does not answer") as told:
        await restore_request(settings, str(copied))
    assert told.value.remedy
    answers.set()


def _hung(answers: threading.Event) -> Callable[[Path], None]:
    def wait(_directory: Path) -> None:
        answers.wait()

    return wait


def _always(_path: Path) -> bool:
    return True


async def test_another_machine_is_given_no_device_and_no_path_that_leads_nowhere(
    settings: Settings, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    disks = {"disk0": str(loop / "x")}
    with pytest.raises(UsageError) as told:
        await restore_request(settings, str(copied), another="web2", disks=disks, nets=OWN["nets"])
    assert told.value.remedy
    monkeypatch.setattr(Path, "is_block_device", _always)
    with pytest.raises(UsageError, match="is a device, and whose it is"):
        await restore_request(settings, str(copied), another="web2", **OWN)


async def test_another_machine_writes_over_no_disk_of_the_first(
    settings: Settings, copied: Path, tmp_path: Path
) -> None:
    disk = manifests.read_manifest(copied).domain.block[0].path
    (tmp_path / "link").symlink_to(disk)
    for path in (disk, f"{tmp_path}/link"):
        with pytest.raises(UsageError, match="is a disk of web1"):
            await restore_request(
                settings, str(copied), another="web2", nets=OWN["nets"], disks={"disk0": path}
            )


async def test_what_there_cannot_be_two_of_is_refused(settings: Settings, saved: Path) -> None:
    """At TEST, all of it at once."""
    manifest = manifests.read_manifest(saved)
    media = Block(id="cd0", path="/srv/cd.iso", model="ide-cd")
    domain = msgspec.structs.replace(
        manifest.domain,
        block=(*manifest.domain.block, media),
        tpm=(Tpm(id="tpm0"),),
        external=(External(id="fpga0", type="fpga"),),
    )
    manifest = msgspec.structs.replace(manifest, domain=domain)
    (saved / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    request = await restore_request(settings, str(saved), another="web2")
    hypervisor, _ = await find_domain(settings, "web2", request.connect)
    found = await (await hypervisor.machine("web2")).blockers()
    assert [one.device for one in found] == ["block/disk0", "tpm/tpm0", "external/fpga0"]
    assert "--disks=copy" in found[0].remedy
    assert all(one.remedy for one in found)


async def test_another_machine_of_a_libvirt_domain(
    settings: Settings, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told whose memory it is; a NIC that nobody meets may stay where it is."""

    def is_here(_name: str) -> bool:
        return True

    monkeypatch.setattr(requests, "is_here", is_here)
    manifest = manifests.read_manifest(copied)
    nics = (
        Net(id="net0", bridge="virbr0", attach="network", network="default"),
        Net(id="net1", bridge="user", attach="other"),
    )
    domain = msgspec.structs.replace(manifest.domain, net=nics)
    manifest = msgspec.structs.replace(
        manifest, hypervisor="qemu:///system", kept=b"said", domain=domain
    )
    (copied / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="on default with it"):
        await restore_request(settings, str(copied), another="web2", disks=OWN["disks"])
    request = await restore_request(
        settings, str(copied), another="web2", disks=OWN["disks"], nets={"default": "apart"}
    )
    assert request.route.there == "qemu:///system"
    hypervisor, domain = await find_domain(settings, "web2", request.connect)
    machine = await hypervisor.machine("web2")
    assert (await machine.facts())[RESTORES] == ANOTHER
    plan = msgspec.msgpack.decode(await machine.plan(domain), type=RestorePlan)
    assert (plan.first, plan.copied) == (manifest.domain, ("disk0",))
    nics = (Net(id="net0", bridge="vhostuser", attach="other"),)
    domain = msgspec.structs.replace(manifest.domain, net=nics)
    manifest = msgspec.structs.replace(manifest, domain=domain)
    (copied / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="of type vhostuser"):
        await restore_request(settings, str(copied), another="web2", disks=OWN["disks"])


async def test_no_other_machine_is_made_of_what_libvirt_has_sent(
    settings: Settings, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_here(_name: str) -> bool:
        return True

    monkeypatch.setattr(requests, "is_here", is_here)
    manifest = manifests.read_manifest(copied)
    manifest = msgspec.structs.replace(
        manifest, format=2, hypervisor="qemu:///system", kept=b"said", sent=True
    )
    (copied / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="cannot be made another machine") as told:
        await restore_request(settings, str(copied), another="web2", disks=OWN["disks"])
    assert "neither compressed nor encrypted" in told.value.remedy
    assert (await restore_request(settings, str(copied), paused=True)).paused


async def test_no_other_machine_is_made_of_a_xen_domains_save(
    settings: Settings, copied: Path
) -> None:
    manifest = manifests.read_manifest(copied)
    manifest = msgspec.structs.replace(manifest, hypervisor="xen")
    (copied / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="cannot be made another machine"):
        await restore_request(settings, str(copied), another="web2", disks=OWN["disks"])
    with pytest.raises(UsageError, match="does not leave it paused"):
        await restore_request(settings, str(copied), paused=True)
