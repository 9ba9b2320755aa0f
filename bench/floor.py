"""The floor: what QEMU's own commands cost when nothing is checked and nothing is written down.

A program of its own, run on the source as ``python -I -S floor.py PLAN``: a script as somebody who
knows QEMU well would write it by hand. It does the same QEMU commands as Entourage over the same
ssh, event by event, and nothing else: no checks, no journal, no deadman, no undo. PLAN is JSON:

    host        the target, as ssh knows it
    prepare     a shell script for the target: starts everything, QEMU paused with -incoming
    usage       a command to put before the shell that runs the script, time(1) say
    here, there the QMP sockets of the source's and of the target's QEMU
    address     of the target, for memory and disks
    ports       of memory and of disks
    psk         a directory with keys.psk on both hosts; empty: no TLS
    ciphers     what else QEMU's key objects are told
    disks       node names
    downtime    milliseconds that QEMU may take for the last memory
    live        false: the guest is stopped first
    tools       argument lists, run one after the other while the guest stands still, as in 2006
    back        "before" or "after": instead of the hand-over, let the guest run again at the source
                while memory is still under way, or once all of it has landed

It prints JSON: moments by name, in seconds since the epoch, from QEMU's own stamps where the
moment is an event of QEMU's.
"""

import json
import select
import shlex
import socket
import subprocess
import sys
import time
from typing import Any


class Monitor:
    """A QMP connection. Events are kept; ``stamps`` has the moments of those that matter."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.stamps: dict[str, float] = {}
        self.done: set[str] = set()
        self._rest = b""
        self._number = 0
        self._answers: dict[int, Any] = {}
        wait(lambda: "greeting" in self.done, self)
        self.run("qmp_capabilities")
        # QEMU says first what it could not say to who was connected before.
        self.done.clear()
        self.stamps.clear()

    def read(self) -> None:
        """Take in what has come."""
        got = self.socket.recv(1 << 16)
        if not got:
            self.done.add("closed")
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            if line.strip():
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "QMP" in message:
            self.done.add("greeting")
        elif "event" in message:
            stamp = message["timestamp"]
            data = message.get("data", {})
            name = str(data.get("status", "")) if message["event"] == "MIGRATION" else ""
            name = name or message["event"] + str(data.get("device", ""))
            self.stamps[name] = stamp["seconds"] + stamp["microseconds"] / 1e6
            self.done.add(name)
        else:
            self._answers[message["id"]] = message

    def send(self, command: str, **arguments: Any) -> int:
        """Send a command; returns its number."""
        self._number += 1
        words = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": words, "id": self._number}
        self.socket.sendall(json.dumps(request).encode())
        return self._number

    def result(self, number: int) -> Any:
        """Wait for the answer to a command."""
        wait(lambda: number in self._answers, self)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise SystemExit(f"QEMU: {answer['error']['desc']}")
        return answer["return"]

    def run(self, command: str, **arguments: Any) -> Any:
        """Send a command and wait for its answer."""
        return self.result(self.send(command, **arguments))


def wait(test: Any, *monitors: Monitor) -> None:
    """Read from the monitors until something is so."""
    while not test():
        for monitor in monitors:
            if "closed" in monitor.done or "failed" in monitor.done:
                raise SystemExit("QEMU's migration failed, or QEMU ended")
        for ready in select.select([monitor.socket for monitor in monitors], [], [])[0]:
            for monitor in monitors:
                if monitor.socket is ready:
                    monitor.read()


def capabilities(*on: str) -> list[dict[str, Any]]:
    """The argument of ``migrate-set-capabilities``."""
    return [{"capability": name, "state": True} for name in on]


def prepare_there(there: Monitor, plan: dict[str, Any], tls: dict[str, str]) -> None:
    """The target waits for disks and memory."""
    if tls:
        there.run(
            "object-add", qom_type="tls-creds-psk", id=tls["tls_creds"], dir=plan["psk"],
            endpoint="server", **plan["ciphers"],
        )  # fmt: skip
    there.run(
        "migrate-set-capabilities", capabilities=capabilities("events", "late-block-activate")
    )
    there.run("migrate-set-parameters", announce_rounds=0, **tls)
    memory, disks = plan["ports"]
    if plan["disks"]:
        where = {"type": "inet", "data": {"host": plan["address"], "port": str(disks)}}
        there.run("nbd-server-start", addr=where, max_connections=0, **tls)
    for disk in plan["disks"]:
        there.run("block-export-add", type="nbd", id=disk, node_name=disk, name=disk, writable=True)
    there.run("migrate-incoming", uri=f"tcp:{plan['address']}:{memory}")


def prepare_here(here: Monitor, plan: dict[str, Any], tls: dict[str, str]) -> None:
    """The source mirrors its disks, all at once, and knows how to migrate."""
    if tls:
        here.run(
            "object-add", qom_type="tls-creds-psk", id=tls["tls_creds"], dir=plan["psk"],
            endpoint="client", username="bench", **plan["ciphers"],
        )  # fmt: skip
    here.run(
        "migrate-set-capabilities", capabilities=capabilities("events", "pause-before-switchover")
    )
    here.run(
        "migrate-set-parameters", max_bandwidth=plan["bandwidth"] or 1 << 40,
        downtime_limit=plan["downtime"], tls_hostname="", **tls,
    )  # fmt: skip
    server = {"type": "inet", "host": plan["address"], "port": str(plan["ports"][1])}
    for disk in plan["disks"]:
        here.run(
            "blockdev-add", driver="nbd", node_name=f"to-{disk}", server=server, export=disk,
            discard="unmap", **tls,
        )  # fmt: skip
        here.run(
            "blockdev-mirror", job_id=f"to-{disk}", device=disk, target=f"to-{disk}",
            sync="full", copy_mode="write-blocking",
        )  # fmt: skip
    ready = {f"BLOCK_JOB_READYto-{disk}" for disk in plan["disks"]}
    wait(lambda: ready <= here.done, here)


def switch_over(here: Monitor, there: Monitor, plan: dict[str, Any]) -> dict[str, float]:
    """From the guest's stop to its running on the target, or on the source again."""
    moments: dict[str, float] = {}
    wait(lambda: "pre-switchover" in here.done, here)
    for tool in plan["tools"]:
        subprocess.run(tool, check=True)
    moments["tools done"] = time.time()
    for disk in plan["disks"]:
        here.send("block-job-cancel", device=f"to-{disk}")
    settled = {f"BLOCK_JOB_COMPLETEDto-{disk}" for disk in plan["disks"]}
    wait(lambda: settled <= here.done, here)
    moments["disks settled"] = time.time()
    here.send("migrate-continue", state="pre-switchover")
    if plan["back"] == "before":
        time.sleep(plan["hold"])
        moments["verdict"] = time.time()
        here.run("migrate_cancel")
        wait(lambda: here.done & {"cancelled", "completed"}, here)
        here.send("cont")
        wait(lambda: "RESUME" in here.done, here)
        return moments
    wait(lambda: "completed" in here.done and "completed" in there.done, here, there)
    moments["landed"] = time.time()
    if plan["back"] == "after":
        time.sleep(plan["hold"])
        moments["verdict"] = time.time()
        here.send("cont")
        wait(lambda: "RESUME" in here.done, here)
        return moments
    if plan["disks"]:
        there.send("nbd-server-stop")
    there.send("cont")
    wait(lambda: "RESUME" in there.done, there)
    return moments


def main() -> None:
    """Move the guest, and tell when what happened."""
    plan: dict[str, Any] = {
        "usage": [],
        "live": True,
        "tools": [],
        "back": "",
        "hold": 0.0,
        "bandwidth": 0,
    }
    plan |= json.loads(sys.argv[1])
    # A machine that has arrived has its server's credentials still.
    client, server = [{"tls_creds": end} if plan["psk"] else {} for end in ("client", "server")]
    moments: dict[str, float] = {"began": time.time()}
    script = f"{plan['prepare']}\necho up; read -r end"
    forwarded = f"{plan['here']}.there"
    ssh = subprocess.Popen(
        ["ssh", "-T", "-o", "StreamLocalBindUnlink=yes", "-L", f"{forwarded}:{plan['there']}",
         "--", plan["host"], shlex.join([*plan["usage"], "sh", "-c", script])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    here = Monitor(plan["here"])
    moments["open"] = time.time()
    if ssh.stdout is None or ssh.stdout.readline() != b"up\n":
        raise SystemExit("the target's machine cannot be started")
    there = Monitor(forwarded)
    moments["up there"] = time.time()
    prepare_there(there, plan, server)
    prepare_here(here, plan, client)
    moments["prepared"] = time.time()
    if not plan["live"]:
        here.run("stop")
    here.run("migrate", uri=f"tcp:{plan['address']}:{plan['ports'][0]}")
    moments |= switch_over(here, there, plan)
    if not plan["back"]:
        there.run("announce-self", initial=50, max=550, rounds=5, step=100)
        moments |= {"stop": here.stamps["STOP"], "resume": there.stamps["RESUME"]}
        moments["pre-switchover"] = here.stamps["pre-switchover"]
        moments["completed there"] = there.stamps["completed"]
        moments["completed here"] = here.stamps["completed"]
        here.send("quit")
        wait_closed(here)
    else:
        moments |= {"stop": here.stamps["STOP"], "resume": here.stamps["RESUME"]}
        there.send("quit")
        for disk in plan["disks"]:
            here.run("blockdev-del", node_name=f"to-{disk}")
        if client:
            here.run("object-del", id=client["tls_creds"])
    there.socket.close()  # ssh waits for what it forwards
    ssh.communicate(b"end\n")
    moments["ended"] = time.time()
    print(json.dumps(moments))


def wait_closed(monitor: Monitor) -> None:
    """QEMU ends, and closes its monitor."""
    while "closed" not in monitor.done:
        monitor.read()


if __name__ == "__main__":
    main()
