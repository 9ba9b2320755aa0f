"""Proxmox VE's ``qm migrate`` takes a VM's devices along, with a stand-in for ``qm``."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from tests.e2e.attend.cluster import SNIPPET, VMID, Cluster, two_nodes
from tests.e2e.attend.world import Attend, steps

ALL = ["1", "2", "3"]


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Generator[Cluster]:
    with two_nodes(lab) as one:
        yield one


def test_the_stand_in_says_that_it_is_one(cluster: Cluster) -> None:
    assert "stand-in" in cluster.here.run(["qm"], check=False).stderr


def test_there_and_back(cluster: Cluster) -> None:
    for _ in range(2):
        tool = cluster.tool()
        done = cluster.migrate()
        assert done.returncode == 0, (done, cluster.told())
        cluster.came()
        cluster.is_here()
        assert steps(tool) == {"dongle": ALL, "meter": ALL}


def test_a_refusal_stands_in_the_tasks_log(cluster: Cluster) -> None:
    tool = cluster.tool()
    cluster.here.path(tool.path).unlink()
    done = cluster.migrate()
    assert done.returncode != 0
    assert "external/dongle on" in done.stderr
    cluster.is_here()
    assert tool.calls() == []


@pytest.mark.parametrize("step", [2, pytest.param(3, marks=pytest.mark.matrix)])
def test_a_device_that_fails(cluster: Cluster, step: int) -> None:
    """Before QEMU has sent anything from which there is no way back."""
    tool = cluster.tool(f'[ "$type:$step:$recover" != dongle:{step}:no ] || exit 1')
    done = cluster.migrate()
    assert done.returncode != 0, (done, cluster.told())
    cluster.is_here()
    assert steps(tool)["dongle"] == [*ALL[:step], f"r{step - 1}"], done


def test_a_target_without_a_daemon(cluster: Cluster) -> None:
    tool = cluster.tool()
    Attend.of(cluster.there).stop()
    done = cluster.migrate()
    Attend.of(cluster.there).start()
    assert done.returncode != 0
    assert "its daemon does not answer" in done.stderr
    cluster.is_here()
    assert tool.calls() == []


@pytest.mark.matrix
def test_a_hook_that_fails_after_the_start(cluster: Cluster) -> None:
    """Nobody minds its status: QEMU has no object, and the guest must not be sent to it."""
    tool = cluster.tool()
    snippet = cluster.there.path(SNIPPET)
    ours, socket = snippet.read_text(), f"/run/qemu-server/{VMID}.qmp"
    away = f'[ "$2" != post-start ] || mv {socket} {socket}.away\n'
    back = f"status=$?\n[ ! -e {socket}.away ] || mv {socket}.away {socket}\nexit $status\n"
    shebang, rest = ours.split("\n", 1)
    snippet.write_text(f"{shebang}\n{away}{rest.replace('exec ', '')}\n{back}")
    done = cluster.migrate()
    snippet.write_text(ours)
    assert done.returncode != 0, (done, cluster.told())
    cluster.is_here()
    assert steps(tool) == {"dongle": ["1", "r1"], "meter": ["1", "r1"]}, done
