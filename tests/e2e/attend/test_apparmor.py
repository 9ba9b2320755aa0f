"""Debian's profile for libvirt's QEMUs, with our local abstraction, lets them reach their bus."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.apparmor import NoAppArmorError, unpacked
from lab.host import REPOSITORY

OURS = REPOSITORY / "packaging/apparmor/libvirt-qemu"
RULE = "/run/entourage-attend/*.sock rw,"


@pytest.fixture(scope="module")
def packages() -> Path:
    """Return where AppArmor's parser and the profiles of libvirt's package are."""
    try:
        return unpacked()
    except NoAppArmorError as error:
        pytest.skip(f"AppArmor's packages cannot be had: {error}")


def parsed(packages: Path, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Parse a domain's profile, which is made of libvirt's template for it."""
    template = (packages / "etc/apparmor.d/libvirt/TEMPLATE.qemu").read_text()
    profile = place / "libvirt-0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
    profile.write_text(template.replace("LIBVIRT_TEMPLATE", profile.name))
    parser = [packages / "sbin/apparmor_parser", "--skip-kernel-load", "--skip-cache"]
    base = ["--base", place / "apparmor.d"]
    return subprocess.run(
        [*parser, *base, *options, profile], check=False, capture_output=True, text=True
    )


def test_qemu_may_reach_its_bus(packages: Path, tmp_path: Path) -> None:
    """As docs/attend.md has it installed; without it the profile says nothing of the bus."""
    base = tmp_path / "apparmor.d"
    shutil.copytree(packages / "etc/apparmor.d", base)
    local = base / "local/abstractions/libvirt-qemu"
    local.parent.mkdir(parents=True, exist_ok=True)
    local.touch()  # as the package does when it is installed
    without = parsed(packages, tmp_path, "--preprocess")
    assert (without.returncode, RULE in without.stdout) == (0, False), without.stderr
    with local.open("a") as file:
        file.write(OURS.read_text())
    assert RULE in parsed(packages, tmp_path, "--preprocess").stdout
    compiled = parsed(packages, tmp_path, "--debug")
    assert compiled.returncode == 0, compiled.stderr
