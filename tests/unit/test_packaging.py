"""What a package brings beside the program."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from entourage.attend import daemon, domains
from entourage.fleet.page.serve import listen_at
from entourage.hosts.process import SAVES_UNIT
from entourage.hypervisors.qemu.access import USUAL_USER
from entourage.settings.load import load_settings
from entourage.settings.model import FleetSettings

ROOT = Path(__file__).parents[2]
SYSUSERS = ROOT / "packaging" / "sysusers.d" / "entourage.conf"
FLEET_SYSUSERS = SYSUSERS.with_name("entourage-fleet.conf")
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))


def test_the_wheel_brings_what_a_host_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared[str(SYSUSERS.relative_to(ROOT))] == "lib/sysusers.d/entourage.conf"
    assert all((ROOT / path).is_file() for path in shared)
    told = "".join(
        (ROOT / "docs" / name).read_text() for name in ("attend.md", "fleet.md", "saving.md")
    )
    for path in shared.values():
        assert path == "lib/sysusers.d/entourage.conf" or f"/opt/entourage/{path}" in told
    for unit in UNITS:
        assert shared[str(unit.relative_to(ROOT))] == f"lib/systemd/system/{unit.name}"
    assert SAVES_UNIT in {unit.name for unit in UNITS}


def test_the_daemons_unit_leaves_it_the_time_that_it_takes() -> None:
    """To bring migrations back, to end what it is at, and to let domains go."""
    text = (ROOT / "packaging/systemd/entourage-attend.service").read_text()
    [limit] = [line for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    takes = (daemon._COMES_BACK_WITHIN, daemon._ENDS_WITHIN, domains._CLOSES_WITHIN)  # pyright: ignore[reportPrivateUsage]
    assert sum(takes) < float(limit.partition("=")[2])
    assert "RuntimeDirectoryMode=0711" in text.splitlines()


def test_qemus_user_is_who_the_package_makes() -> None:
    [line] = [line for line in SYSUSERS.read_text().splitlines() if not line.startswith("#")]
    assert line.split()[:2] == ["u", USUAL_USER]
    assert line.endswith(" /usr/sbin/nologin")


def test_the_controllers_unit_runs_as_who_the_package_makes_and_may_do_nothing_else() -> None:
    lines = (ROOT / "packaging/systemd/entourage-fleet.service").read_text().splitlines()
    [made] = [line for line in FLEET_SYSUSERS.read_text().splitlines() if line[0] != "#"]
    _, user, _ = made.split(maxsplit=2)
    assert {f"User={user}", f"Group={user}", f"StateDirectory={user}"} <= set(lines)
    assert f"/var/lib/{user} /usr/sbin/nologin" in made
    assert {"CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(lines)
    assert "RuntimeDirectoryPreserve=yes" in lines  # controllers' locks outlive a restart
    [command] = [line for line in lines if line.startswith("ExecStart=")]
    words = command.partition("/bin/entourage ")[2].split()
    where = listen_at(words[words.index("--listen") + 1], FleetSettings())
    assert where.path.startswith(f"/run/{user}/")
    [variables] = [line for line in lines if line.startswith("Environment=")]
    paths = dict(each.split("=") for each in variables.removeprefix("Environment=").split())
    settings = load_settings(environ={**paths, "ENTOURAGE_CONFIG": "/dev/null"})
    assert (settings.paths.state, settings.paths.run) == (f"/var/lib/{user}", f"/run/{user}")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="there is no systemd")
@pytest.mark.parametrize(
    ("path", "user"), [(SYSUSERS, USUAL_USER), (FLEET_SYSUSERS, "entourage-fleet")]
)
def test_systemd_makes_that_user(path: Path, user: str, tmp_path: Path) -> None:
    command = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"Creating user '{user}'" in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/entourage/bin/entourage", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_the_daemons_unit_stays_hardened(tmp_path: Path) -> None:
    """It is root's, and reaches the network and libvirt; what else systemd knows to take is taken.

    Of 100, as ``systemd-analyze security`` counts; 96 is a unit that says nothing.
    """
    unit = tmp_path / "entourage-attend.service"
    unit.write_bytes((ROOT / "packaging/systemd/entourage-attend.service").read_bytes())
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=52", str(unit)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
