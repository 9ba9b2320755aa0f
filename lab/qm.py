#!/usr/bin/python3 -IS
"""A STAND-IN for Proxmox VE's ``qm``, for tests: no Proxmox is here.

It does what Proxmox's own does of a VM's start, monitor and migration, in the same order, as far as
its sources tell: the lock in the configuration, the guest hookscript on the target, no return path,
the configuration moved before the guest is resumed, the source ended whatever became of the target.
Its VMs have no processor: QEMU without a machine, which can be stopped, migrated and resumed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QEMU = "/usr/bin/qemu-system-x86_64"
ETC, RUN = Path("/etc/pve"), Path("/run/qemu-server")
HOOK = "/var/lib/vz/snippets/entourage"
PORT = 60000
HERE = socket.gethostname()


def config(vmid: str, node: str = HERE) -> Path:
    """The configuration of a VM, on the node that has it."""
    return ETC / "nodes" / node / "qemu-server" / f"{vmid}.conf"


class Monitor:
    """QEMU's, by its socket."""

    def __init__(self, vmid: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(RUN / f"{vmid}.qmp"))
        self._lines = self._socket.makefile("rwb")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What it answers to a command."""
        asked = {"execute": command, "arguments": arguments}
        self._lines.write(json.dumps(asked).encode() + b"\n")
        self._lines.flush()
        for line in self._lines:
            told = json.loads(line)
            if "error" in told:
                raise SystemExit(f"{command}: {told['error'].get('desc')}")
            if "return" in told:
                return told["return"]
        raise SystemExit("QEMU went away")

    def close(self) -> None:
        """Let another one ask."""
        self._lines.close()
        self._socket.close()


def told(vmid: str, command: str, **arguments: Any) -> Any:
    """What QEMU answers to one command."""
    monitor = Monitor(vmid)
    try:
        return monitor.ask(command, **arguments)
    finally:
        monitor.close()


def hook(vmid: str, phase: str, source: str = "") -> int:
    """Call the guest hookscript; its exit status."""
    environment = {**os.environ, **({"PVE_MIGRATED_FROM": source} if source else {})}
    return subprocess.run([HOOK, vmid, phase], env=environment, check=False).returncode


def start(vmid: str, source: str = "") -> None:
    """Start a VM; on a target, for a stream from ``source``."""
    RUN.mkdir(exist_ok=True)
    if hook(vmid, "pre-start", source):
        raise SystemExit(f"hookscript error for {vmid} on pre-start")
    incoming = ["-incoming", f"tcp:0:{PORT}", "-S"] if source else []
    command = [
        QEMU, "-M", "none", "-nodefaults", "-display", "none", "-daemonize",
        "-pidfile", f"{RUN}/{vmid}.pid", "-qmp", f"unix:{RUN}/{vmid}.qmp,server=on,wait=off",
        *incoming,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    hook(vmid, "post-start", source)


def end(vmid: str) -> None:
    """End a VM."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((RUN / f"{vmid}.pid").read_text()), signal.SIGKILL)
    for name in (f"{vmid}.pid", f"{vmid}.qmp"):
        (RUN / name).unlink(missing_ok=True)


def monitor(vmid: str) -> None:
    """Hand lines from standard input to QEMU's human monitor."""
    if not config(vmid).exists():
        raise SystemExit(f"Configuration file '{config(vmid)}' does not exist")
    print(f"Entering QEMU Monitor for VM {vmid} - type 'help' for help")
    for line in sys.stdin:
        if line.strip() in {"q", "quit"}:
            return
        print(told(vmid, "human-monitor-command", **{"command-line": line.strip()}), end="")


def _check(status: str) -> None:
    if status != "completed":
        raise SystemExit(f"migration problems: {status}")


def migrate(vmid: str, target: str) -> None:
    """Migrate a VM that runs here."""
    own = config(vmid)
    text = own.read_text()
    own.write_text(f"{text}lock: migrate\n")
    there = ["ssh", target, "qm"]
    try:
        subprocess.run([*there, "incoming", vmid, HERE], check=True)
        told(vmid, "migrate-set-capabilities", capabilities=[
            {"capability": "return-path", "state": False},
            {"capability": "auto-converge", "state": True},
        ])  # fmt: skip
        told(vmid, "migrate", uri=f"tcp:{target}:{PORT}")
        while (status := told(vmid, "query-migrate").get("status")) in {
            "setup",
            "active",
            "device",
        }:
            time.sleep(0.05)
        _check(status)
    except (subprocess.CalledProcessError, SystemExit) as error:
        subprocess.run([*there, "stop", vmid], check=False)
        with contextlib.suppress(SystemExit):  # of one that runs already, or has ended
            told(vmid, "cont")
        own.write_text(text)
        raise SystemExit(f"migration aborted: {error}") from error
    own.write_text(text)
    own.rename(config(vmid, target))
    status = subprocess.run([*there, "resume", vmid], check=False).returncode
    end(vmid)
    raise SystemExit(status)


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["start", vmid]:
            start(vmid)
        case ["incoming", vmid, source]:
            start(vmid, source)
        case ["resume", vmid]:
            print(told(vmid, "cont"))
        case ["stop", vmid]:
            end(vmid)
        case ["monitor", vmid]:
            monitor(vmid)
        case ["migrate", vmid, target]:
            migrate(vmid, target)
        case _:
            raise SystemExit("this is a stand-in for qm: start, stop, monitor, migrate")


if __name__ == "__main__":
    main(sys.argv[1:])
