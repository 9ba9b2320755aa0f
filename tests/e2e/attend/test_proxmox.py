"""Proxmox VE's ``qm migrate`` takes a VM's devices along, with a stand-in for ``qm``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from tests.e2e.attend.systemd import systemd
from tests.e2e.attend.world import DEVICES, HOOK, Attend, settings, steps
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, shared_storage
from tests.e2e.tool import Tool
from tests.unit.eventually import wait_until

QM = "/usr/local/sbin/qm"
SNIPPET = "/var/lib/vz/snippets/entourage"
SHARE = "/opt/entourage/share/entourage/hooks/qemu.d"
VMID = "101"
CONFIG = "name: vm1\nmemory: 128\nsmbios1: uuid=0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b\n"
ALL = ["1", "2", "3"]


class Cluster:
    """Two nodes, one file system for their configurations, and a VM."""

    def __init__(self, lab: Lab) -> None:
        self.nodes = (lab["a"], lab["b"])
        self.here, self.there = self.nodes

    def tool(self, body: str = "") -> Tool:
        tool = Tool(self.nodes)
        tool.write(body)
        return tool

    def migrate(self) -> CompletedProcess[str]:
        argv = ["qm", "migrate", VMID, self.there.name]
        return self.here.run(argv, check=False, timeout=PATIENCE)

    def came(self) -> None:
        self.here, self.there = self.there, self.here

    def status(self, node: Host) -> str:
        """Whether it runs there, as QEMU itself says."""
        done = node.run(["qm", "monitor", VMID], input="info status\n", check=False)
        return done.stdout.splitlines()[-1].strip() if done.stdout else done.stderr

    def is_here(self) -> None:
        """It runs on one node, the journals are settled, and it is attended."""
        deadline = time.monotonic() + PATIENCE
        while not self.attended or any(self.left(node) for node in self.nodes):
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)  # a daemon looks by itself, and tells nobody
        assert self.status(self.here) == "VM status: running", self.told()
        assert not self.there.path(f"/run/qemu-server/{VMID}.pid").exists()

    @property
    def attended(self) -> bool:
        done = self.here.run(["entourage", "attend", "--check", "vm1"], check=False)
        return done.returncode == 0

    def left(self, node: Host) -> list[object]:
        return json.loads(node.run(["entourage", "status", "--json"]).stdout)

    def told(self) -> str:
        return "\n".join(f"--- {each.name}\n{Attend.of(each).log}" for each in self.nodes)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Generator[Cluster]:
    with ExitStack() as stack:
        stack.enter_context(shared_storage(lab))
        one = Cluster(lab)
        for node in one.nodes:
            install(node)
            stack.callback(settings, node)
            stack.callback(node.run, ["umount", "/etc/pve"])
        one.here.path(f"/etc/pve/nodes/a/qemu-server/{VMID}.conf").write_text(CONFIG)
        one.here.run(["qm", "start", VMID])
        stack.callback(lambda: one.here.run(["qm", "stop", VMID]))
        for node in one.nodes:
            Attend.of(node).start()
            stack.callback(Attend.of(node).stop)
        one.is_here()
        yield one


def install(node: Host) -> None:
    """As docs/attend.md has it, but for ``qm`` itself."""
    node.run(["mkdir", "-p", "/etc/pve", f"{SHARED}/pve", SHARE, str(Path(SNIPPET).parent)])
    node.run(["mount", "--bind", f"{SHARED}/pve", "/etc/pve"])
    for name in ("a", "b"):
        node.run(["mkdir", "-p", f"/etc/pve/nodes/{name}/qemu-server", "/etc/entourage/domains"])
    for path, source in (
        (QM, REPOSITORY / "lab/qm.py"),
        (SNIPPET, REPOSITORY / "packaging/proxmox/entourage"),
        (f"{SHARE}/entourage", HOOK),
    ):
        node.path(path).write_bytes(source.read_bytes())
        node.path(path).chmod(0o755)
    node.path("/etc/entourage/domains/vm1.toml").write_text(DEVICES)
    settings(node, toolstack="proxmox")


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


@pytest.mark.parametrize("step", [2, 3])
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


def test_a_daemon_that_dies_between_go_and_load(cluster: Cluster) -> None:
    """There is no way back for the guest: systemd keeps QEMU's connection for the next daemon."""
    tool = cluster.tool('[ "$step:$recover" != 2:no ] || { touch /root/at-2; sleep 1; }')
    node, mark = cluster.there, cluster.here.path("/root/at-2")
    Attend.of(node).stop()
    with systemd(node) as keeper:
        daemon = keeper.start()
        moving = cluster.here.popen(["qm", "migrate", VMID, node.name])
        wait_until(mark.exists)
        mark.unlink()
        qemu = node.path(f"/run/qemu-server/{VMID}.pid").read_text().strip()
        node.run(["kill", "-STOP", qemu])  # it does not get as far as Load
        name, connection = keeper.kept()
        # The source has sent all, and its QEMU is about to be ended.
        config = node.path(f"/etc/pve/nodes/{node.name}/qemu-server/{VMID}.conf")
        wait_until(config.exists)
        daemon.kill()
        daemon.wait(PATIENCE)
        keeper.start(name, connection)
        os.close(connection)
        node.run(["kill", "-CONT", qemu])
        said = moving.communicate(timeout=PATIENCE)
        assert moving.returncode == 0, (said, cluster.told())
        cluster.came()
        cluster.is_here()
    Attend.of(node).start()
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


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
