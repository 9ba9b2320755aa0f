"""What a package brings beside the program."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from entourage.hypervisors.qemu.access import USUAL_USER

ROOT = Path(__file__).parents[2]
SYSUSERS = ROOT / "packaging" / "sysusers.d" / "entourage.conf"


def test_the_wheel_brings_what_makes_qemus_user() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["shared-data"] == {
        str(SYSUSERS.relative_to(ROOT)): "lib/sysusers.d/entourage.conf"
    }
    [line] = [line for line in SYSUSERS.read_text().splitlines() if not line.startswith("#")]
    assert line.split()[:2] == ["u", USUAL_USER]
    assert line.endswith(" /usr/sbin/nologin")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="there is no systemd")
def test_systemd_makes_that_user(tmp_path: Path) -> None:
    command = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(SYSUSERS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"Creating user '{USUAL_USER}'" in done.stdout + done.stderr
