"""Two nodes of Proxmox VE, with a stand-in for ``qm``."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess

from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from tests.e2e.attend.world import DEVICES, HOOK, Attend, settings
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, shared_storage
from tests.e2e.tool import Tool

QM = "/usr/local/sbin/qm"
SNIPPET = "/var/lib/vz/snippets/entourage"
SHARE = "/opt/entourage/share/entourage/hooks/qemu.d"
VMID = "101"
CONFIG = "name: vm1\nmemory: 128\nsmbios1: uuid=0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b\n"


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


@contextmanager
def two_nodes(lab: Lab) -> Generator[Cluster]:
    """Have them on two hosts of a lab, whose daemons do not run yet."""
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
