"""The file of a UEFI firmware's variables: from what it is made, and when it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from entourage.domain import Block, Boot, Domain
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.files import boot_problems
from entourage.hypervisors.qemu.checks import check_start
from entourage.hypervisors.qemu.nvram import firmware_problems, make_variables, notes

CODE_SIZE = 3653632
VARIABLES = b"variables".ljust(132 << 12)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A firmware as packages have it, with its template beside it."""
    (tmp_path / "VARS_4M.fd").write_bytes(VARIABLES)
    code = tmp_path / "CODE_4M.fd"
    code.write_bytes(bytes(CODE_SIZE))
    return code


def uefi(code: Path, **boot: str) -> Domain:
    variables = str(code.parent / "web1-vars.fd")
    return Domain(
        name="web1", memory=1 << 28, boot=Boot(firmware=str(code), nvram=variables, **boot)
    )


def problem(domain: Domain) -> UsageError:
    [error] = firmware_problems(domain)
    assert error.remedy
    with pytest.raises(UsageError):
        check_start(domain)
    return error


@pytest.mark.parametrize(
    ("firmware", "template"),
    [
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"),
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"),
        ("edk2-x86_64-code.fd", "edk2-x86_64-vars.fd"),
    ],
)
def test_it_is_made_from_the_template_of_that_name(
    tmp_path: Path, firmware: str, template: str
) -> None:
    (tmp_path / firmware).write_bytes(bytes(CODE_SIZE))
    (tmp_path / template).write_bytes(VARIABLES)
    domain = uefi(tmp_path / firmware)
    assert domain.variables is not None
    check_start(domain)
    make_variables(domain, MemoryLedger())
    made = Path(domain.variables.path)
    assert made.read_bytes() == VARIABLES
    assert made.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_it_is_made_from_the_template_that_is_named(code: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    domain = uefi(code, nvram_template=str(tmp_path / "mine"))
    make_variables(domain, MemoryLedger())
    assert (tmp_path / "web1-vars.fd").read_bytes() == b"mine"


def test_what_is_there_is_kept(code: Path, tmp_path: Path) -> None:
    kept = b"kept".ljust(132 << 12)
    (tmp_path / "web1-vars.fd").write_bytes(kept)
    ledger = MemoryLedger()
    check_start(uefi(code))
    make_variables(uefi(code), ledger)
    assert (tmp_path / "web1-vars.fd").read_bytes() == kept
    assert not ledger.rows


async def test_a_start_that_fails_takes_it_back(code: Path, tmp_path: Path) -> None:
    ledger = MemoryLedger()
    make_variables(uefi(code), ledger)
    assert await ledger.undo() == []
    assert not (tmp_path / "web1-vars.fd").exists()


def test_where_it_cannot_be_written_is_told(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(code.parent))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HypervisorError, match=r"web1-vars\.fd cannot be made: .*no space left"):
        make_variables(uefi(code), MemoryLedger())


def test_code_alone_is_no_bios(code: Path, tmp_path: Path) -> None:
    error = problem(Domain(name="web1", memory=1 << 28, boot=Boot(firmware=str(code))))
    assert f"{code} (3653632 bytes) is no BIOS" in error.message
    assert "add nvram = " in error.remedy
    bios = tmp_path / "bios-256k.bin"
    bios.write_bytes(bytes(256 << 10))
    domain = Domain(name="web1", memory=1 << 28, boot=Boot(firmware=str(bios)))
    check_start(domain)
    assert notes(domain) == []
    # A build of 2 MiB starts as a BIOS, and forgets.
    code.write_bytes(bytes(30 << 16))
    domain = Domain(name="web1", memory=1 << 28, boot=Boot(firmware=str(code)))
    check_start(domain)
    assert "lost at each stop" in notes(domain)[0]
    assert notes(uefi(code)) == []


def test_what_it_cannot_be_made_from_is_told(code: Path, tmp_path: Path) -> None:
    (tmp_path / "VARS_4M.fd").write_bytes(b"")
    assert "is no template of variables: it has 0 bytes" in problem(uefi(code)).message
    (tmp_path / "VARS_4M.fd").unlink()
    error = problem(uefi(code))
    assert f"no template {tmp_path}/VARS_4M.fd" in error.message
    assert "nvram-template" in error.remedy
    boot = Boot(firmware=str(code), nvram="/nowhere/vars.fd")
    error = problem(Domain(name="web1", memory=1 << 28, boot=boot))
    assert "no directory /nowhere" in error.message
    variables = Block(id="nvram", path=str(tmp_path / "v"), model="pflash")
    error = problem(Domain(name="web1", memory=1 << 28, block=(variables,)))
    assert "none is given" in error.message


@pytest.mark.parametrize("name", ["web1-vars.fd", "VARS_4M.fd", "CODE_4M.fd"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes(4095), "it has 4095 bytes, not a multiple of 4096"),
        (bytes(8 << 20), "it has 8388608 bytes"),
        (b"", "it has 0 bytes"),
        (b"QFI\xfb".ljust(64 << 10), "it is a qcow2 image, and must be raw"),
    ],
)
def test_what_qemu_does_not_take_as_a_flash_is_told(
    code: Path, name: str, content: bytes, said: str
) -> None:
    (code.parent / name).write_bytes(content)
    error = problem(uefi(code))
    assert f"{code.parent / name} is no" in error.message.replace("does not hold", "is no")
    assert said in error.message


def test_a_link_to_nothing_is_told(code: Path, tmp_path: Path) -> None:
    (tmp_path / "web1-vars.fd").symlink_to(tmp_path / "gone")
    assert "is a link to a file that is not there" in problem(uefi(code)).message


async def test_another_host_s_template_is_no_secret_of_this_one() -> None:
    """A stranger's domain could have the next start here copy any file for its guest to read."""
    boot = Boot(firmware="/usr/share/f", nvram="/srv/v", nvram_template="/etc/shadow")
    domain = Domain(name="web1", memory=1 << 28, boot=boot)
    assert "/etc/shadow" in domain.boot.files  # which must lie beneath agent.boot-directories,
    found = await boot_problems(domain, "b", {})  # and be what the source has
    assert len(found) == 2
