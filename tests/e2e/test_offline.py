"""One of Entourage's own machines moves while it is off."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.guest import Disk, domain_toml
from lab.host import Host
from lab.hosts import Lab
from tests.e2e.off import CORE_POINTS, NAME, Off, is_made_sure_of, moves_and_comes_back
from tests.e2e.shared import SHARED, shared_storage


@pytest.fixture(scope="module")
def off(lab: Lab) -> Generator[Off]:
    """A machine on a whose disk both hosts see."""
    disk = Disk(f"{SHARED}/rests.qcow2", "qcow2")
    with shared_storage(lab):
        a = lab["a"]
        disk.create(a, "16M")
        text = domain_toml(NAME, disks=[disk], tpm=False, memory="128M")
        a.write_files({f"/srv/{NAME}.toml": text})
        a.run(["entourage", "start", f"/srv/{NAME}.toml"])
        a.run(["entourage", "stop", "--force", NAME])
        yield Off(lab, disk.path)
        for name in ("a", "b"):
            lab[name].run(["find", "/var/lib/entourage", "-mindepth", "1", "-delete"])


def test_it_moves_and_comes_back(off: Off) -> None:
    def starts(host: Host) -> None:
        assert host.run(["entourage", "start", NAME]).returncode == 0

    moves_and_comes_back(off, starts)


@pytest.mark.parametrize("point", CORE_POINTS)
def test_killed_at_any_moment_it_is_made_sure_of(off: Off, point: str) -> None:
    is_made_sure_of(off, point)


def test_what_is_not_shared_stays_and_says_why(off: Off) -> None:
    """A disk of a's own; and a TPM, whose state is a's."""
    a = off.lab["a"]
    disk = Disk("/srv/alone.img")
    disk.create(a, "16M")
    text = domain_toml("alone", disks=[disk], tpm=True, net=False, memory="128M")
    a.write_files({"/srv/alone.toml": text})
    a.run(["entourage", "start", "/srv/alone.toml"])
    run = a.run(["entourage", "migrate", "--offline", "alone", "b"], check=False)
    assert run.returncode == 2
    assert "alone is not off" in run.stderr
    a.run(["entourage", "stop", "--force", "alone"])
    run = a.run(["entourage", "migrate", "--offline", "alone", "b"], check=False)
    assert run.returncode == 3
    assert "tpm/tpm0 on a: its state is on this host" in run.stdout
    assert f"{disk.path} is not seen to be the same there" in run.stdout
    assert "nothing was touched" in run.stdout
    assert off.claims() == []
