"""What QEMU and swtpm say, and what is written down of domains."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from entourage.domain import Block, Boot, Domain, Net, Pci, Tpm, Usb
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.process import start_time
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors import swtpm
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.binary import (
    parse_machine_types,
    probe_firmware,
    tls_in_threads,
)
from entourage.hypervisors.qemu.checks import check_start
from entourage.hypervisors.qemu.errors import device_of, plain, start_failure
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.record import (
    Running,
    disown,
    entries,
    entry_of,
    read_running,
    write_owned,
    write_running,
)
from entourage.settings.model import PathSettings, Settings

DOMAIN = Domain(
    name="web1",
    uuid="3adaa9db-b504-4d7e-b775-13aaf542789b",
    memory=1 << 28,
    block=(
        Block(id="disk0", path="/srv/a.img", address="03.0"),
        Block(id="disk00", path="/srv/a.img.2", address="04.0"),
    ),
    pci=(Pci(id="edu", model="edu", address="05.0"), Pci(id="e", model="edu", address="15.0")),
    usb=(Usb(id="key", vendor=1, product=2),),
)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("State blocked by non-migratable device '0000:00:03.0/nvme'", "block/disk0"),
        ("State blocked by non-migratable device '0000:00:05.0:00.0/edu'", "pci/edu"),
        ("State blocked by non-migratable device '0000:00:15.0:00.0/edu'", "pci/e"),
        ('Failed to get "write" lock / Is another process using the image [/srv/a.img]?',
         "block/disk0"),
        ("Could not open '/srv/a.img.2': No such file or directory", "block/disk00"),
        ("Node 'm1-disk00' is busy", "block/disk00"),
        ("Node n0-disk0: no medium", "block/disk0"),
        ("Device 'usb-key' not found", "usb/key"),
        ("the machine is upset", ""),
        ("0000:00:06.0/x", ""),
    ],
)  # fmt: skip
def test_the_device_is_found_in_what_qemu_says(text: str, label: str) -> None:
    assert device_of(DOMAIN, text) == label


def test_a_line_without_what_nobody_wants_to_read() -> None:
    line = (
        "2026-11-23T02:38:00.1Z qemu-system-x86_64: -device"
        ' {"driver":"no-such","id":"pci-edu"}: '
        "'no-such' is not a valid device model name"
    )
    assert plain(line) == "-device: 'no-such' is not a valid device model name"


def test_why_qemu_does_not_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "of an earlier run: pci-e\n"
        "2026-11-23T02:38:00.1Z qemu-system-x86_64: warning: TCG is slow\n"
        '2026-11-23T02:38:00.2Z qemu-system-x86_64: -blockdev {"a":1}: Failed to get "write" lock\n'
        "Is another process using the image [/srv/a.img]?\n"
    )
    error = start_failure(DOMAIN, log, 25)
    assert error.device == "block/disk0"
    assert "warning" not in error.message
    assert "Failed to get" in error.message
    assert "other process" in error.remedy
    assert "said nothing" in start_failure(DOMAIN, tmp_path / "none", 0).message


def test_machine_types() -> None:
    text = (
        "Supported machines are:\n"
        "pc                   Standard PC (alias of pc-i440fx-7.2)\n"
        "pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n"
        "none                 empty machine\n"
    )
    assert parse_machine_types(text) == {
        "pc": "pc-i440fx-7.2",
        "pc-i440fx-7.2": "pc-i440fx-7.2",
        "none": "none",
    }


def test_the_probe_is_a_firmware() -> None:
    image = probe_firmware()
    assert len(image) == 0x10000
    assert image[0xFFF0] == 0xEA  # a far jump, to the code at its beginning
    assert image[0x5D:0x62] == bytes.fromhex("b010e6f4f4")  # where long mode is entered


def test_swtpm_capabilities() -> None:
    text = '{ "type": "swtpm", "features": [ "tpm-1.2", "tpm-2.0" ], "version": "0.7.1" }'
    facts = swtpm.parse_capabilities(text)
    assert facts.version == (0, 7, 1)
    assert facts.capabilities == {"tpm-1.2", "tpm-2.0"}
    assert swtpm.parse_capabilities("none").program == "swtpm"


def settings_in(root: Path) -> Settings:
    return Settings(paths=PathSettings(state=f"{root}/state", run=f"{root}/run", log=f"{root}/log"))


def test_tpm_state_is_made_and_erased(tmp_path: Path) -> None:
    where = places(settings_in(tmp_path), str(DOMAIN.uuid), "web1")
    ledger, tpm = MemoryLedger(), Tpm(id="tpm0")
    assert tpms.make_state(where, tpm, ledger)
    assert not tpms.make_state(where, tpm, ledger)
    directory = where.tpm_state("tpm0")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [kind for kind, _ in ledger.rows] == ["dir", "dir"]
    state = directory / "tpm2-00.permall"
    state.write_bytes(bytes.fromhex("0201000a000000000010") + b"secret")
    kept = os.open(state, os.O_RDONLY)
    swtpm.sync_state(directory)
    # What an swtpm that was taken over could put there, which runs as another user than this.
    other = tmp_path / "other"
    other.write_text("another's")
    os.link(other, directory / "linked")
    (directory / "link").symlink_to(other)
    os.mkfifo(directory / "fifo")
    (directory / "sub").mkdir()
    (directory / "endless").touch()
    os.truncate(directory / "endless", 1 << 42)  # more than there is memory
    tpms.erase_state(directory)
    assert os.read(kept, 20) == bytes(16)
    os.close(kept)
    assert other.read_text() == "another's"
    assert not where.state.exists()
    tpms.erase_state(directory)


@pytest.mark.parametrize("content", [None, b"", b"\2\1", bytes.fromhex("0201000a0000000000ff")])
def test_a_tpm_state_that_is_not_whole_is_noticed(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / ".lock").touch()
    if content is not None:
        (tmp_path / "tpm2-00.permall").write_bytes(content)
    with pytest.raises(HypervisorError, match="not written the TPM's state whole"):
        swtpm.sync_state(tmp_path)


def test_what_is_written_down(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    where = places(settings, str(DOMAIN.uuid), DOMAIN.name)
    assert entries(settings) == []
    write_owned(where, DOMAIN)
    entry = entry_of(settings, "web1")
    assert entry
    assert (entry.domain, entry.owned, entry.alive) == (DOMAIN, True, False)
    assert entry_of(settings, "web2") is None

    newer = msgspec.structs.replace(DOMAIN, net=(Net(id="n", bridge="b", tap="t"),))
    began = start_time(os.getpid())
    assert began
    running = Running(domain=newer, pid=os.getpid(), began=began, marker="m")
    where.run.mkdir(parents=True)
    write_running(where, running)
    assert read_running(where) == running
    entry = entry_of(settings, "web1")
    assert entry
    assert entry.alive
    assert entry.domain == newer

    write_running(where, msgspec.structs.replace(running, incoming=True))
    entry = entry_of(settings, "web1")
    assert entry
    assert not entry.owned
    disown(where)
    disown(where)
    assert not where.state.exists()
    assert entry_of(settings, "web1")
    write_running(where, msgspec.structs.replace(running, began=began + 1, incoming=True))
    assert entries(settings) == []  # it died on its way in: nothing of it is this host's


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    where = places(settings, str(DOMAIN.uuid), DOMAIN.name)
    where.state.mkdir(parents=True)
    where.record.write_text("{")
    with pytest.raises(HypervisorError, match=r"domain\.json cannot be read"):
        entries(settings)


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + bytes(512))
    domain = Domain(
        name="web1",
        memory=1 << 28,
        boot=Boot(kernel="/nowhere/vmlinuz"),
        block=(
            Block(id="a", path=str(image)),
            Block(id="b", path=str(tmp_path)),
            Block(id="c", path="/nowhere/disk"),
        ),
        net=(Net(id="n", bridge="no-such-bridge"),),
        tpm=(Tpm(id="t", type="external"),),
    )
    with pytest.raises(UsageError) as caught:
        check_start(domain)
    for part in (
        "/nowhere/vmlinuz",
        "begins like a qcow2 image",
        "neither a file nor a block device",
        "/nowhere/disk",
        "no bridge no-such-bridge",
        "no socket (none is named)",
    ):
        assert part in str(caught.value)
    with pytest.raises(UsageError) as one:
        check_start(msgspec.structs.replace(domain, boot=Boot(), block=(), tpm=()))
    assert one.value.device == "net/n"
    check_start(Domain(name="web1", memory=1 << 28))


def test_versions_that_abort_have_no_thread_for_encrypted_exports() -> None:
    abort = [(8, 2, 0), (8, 2, 2), (8, 2, 4), (9, 0, 0)]
    hold = [(7, 2, 22), (8, 1, 5), (8, 2, 5), (9, 0, 1), (10, 0, 2)]
    assert [version for version in abort + hold if tls_in_threads(version)] == hold
