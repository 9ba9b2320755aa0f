"""What the wheel brings for systemd is what the code and the documents call it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from entourage.hosts.process import SAVES_UNIT

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))


def test_the_unit_of_saves_is_packed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    for unit in UNITS:
        path = str(unit.relative_to(ROOT))
        assert packed[path] == f"lib/systemd/system/{unit.name}"
    assert SAVES_UNIT in {unit.name for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    copy = tmp_path / unit.name
    text = unit.read_text()
    # What it starts need not be installed here.
    copy.write_text(text.replace("=entourage ", "=/bin/true "))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not said, done.stderr
