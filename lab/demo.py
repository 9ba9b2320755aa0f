"""`make demo`: two hosts, a guest with disk, NIC and TPM, moved live; then a device that fails.

At the end virsh migrates a domain of libvirt's, and its device goes along.

Everything that it claims at the end was seen from outside. Exit status 0 only if all of it was.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL

from rich.console import Console
from rich.table import Table

from lab.domain_xml import domain_xml
from lab.guest import Disk, Guest, Tpm, disk_sequences, domain_toml
from lab.host import REPOSITORY, Host
from lab.hosts import Lab
from lab.leftovers import Snapshot
from lab.libvirtd import IMAGES, Libvirtd, ssh_uri, start_all
from lab.observer import Observer

DOMAIN = "web1"
DISK = "/srv/web1.raw"
# What a host remembers of a domain that left: its journal, empty directories, a lock nobody holds.
MEMORY = ("/var/lib/entourage", "/var/lib/entourage/*.db*", "/var/lib/entourage/domains",
          "/run/entourage", "/run/entourage/q", "/run/entourage/*.lock",
          "/run/entourage/kvm.json", "/run/entourage/links", "/run/entourage/links/*",
          "/srv/move-dongle.log")  # fmt: skip
# A licence dongle that the hypervisor has never heard of: only its tool knows it.
TOOL = "/srv/move-dongle"
TOOL_TEXT = """#!/bin/sh
# move-dongle -type dongle -step N -host DST -domname NAME [-recover]
echo "$4" >>"$0.log"
case "$*" in
    *-recover*) echo "the dongle is back";;
    *"-step 2"*) sleep 0.02; echo "the dongle is on its way";;
    *"-step 3"*) [ ! -e /srv/break-dongle ] || { echo "Error: the dongle fell off"; exit 1; };;
esac
"""
DONGLE = f"""
[[external]]
id = "dongle"
type = "dongle"
tool = "{TOOL}"
"""

HOOK = "/etc/libvirt/hooks/qemu.d/entourage"
HOW = ("--live", "--copy-storage-all", "--persistent", "--undefinesource")

console = Console(highlight=False)


@dataclass
class Proof:
    """What was checked, and whether it held."""

    rows: list[tuple[bool, str, str]] = field(default_factory=list[tuple[bool, str, str]])

    def check(self, claim: str, seen: str, *, holds: bool) -> None:
        """One claim, with what was seen of it."""
        self.rows.append((holds, claim, seen))

    @property
    def holds(self) -> bool:
        """All of them held."""
        return all(holds for holds, _, _ in self.rows)

    def show(self, title: str) -> None:
        """Print them."""
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for holds, claim, seen in self.rows:
            mark = "[green]✓[/]" if holds else "[bold red]✗[/]"
            table.add_row(mark, claim, seen)
        console.print(table)


def say(text: str) -> None:
    """A chapter's heading."""
    console.print(f"\n[bold]── {text}[/]")


def entourage(host: Host, *words: str) -> int:
    """Run it on a host, at this very terminal."""
    console.print(f"[dim]{host.name}#[/] entourage {' '.join(words)}")
    process = host.popen(["entourage", *words], stdin=sys.stdin, stdout=None, stderr=None)
    return process.wait()


def move(source: Host, target: Host) -> int:
    """Move the guest, at this terminal."""
    return entourage(source, "migrate", DOMAIN, target.name)


class Stage:
    """The guest and who watches it."""

    def __init__(self, seen: Observer, guest: Guest) -> None:
        self.seen = seen
        self.guest = guest
        self.tpm: Tpm = guest.tpm()

    def witness(self, expected: int, act: Callable[[], int], *, runs_on: Host) -> Proof:
        """Let something happen, and check from outside that the guest came through it."""
        proof = Proof()
        since = self.seen.mark()
        status = act()
        wanted = "moved" if expected == 0 else "rolled back"
        proof.check(f"exit status {expected}: {wanted}", f"{status}", holds=status == expected)
        report = self.seen.wait_progress()
        gap = self.seen.longest_gap(since)
        proof.check(
            "the guest answered a 1 ms pinger all the time but for",
            f"{gap.seconds * 1000:.0f} ms",
            holds=gap.seconds < 5,  # noqa: PLR2004 - it was no reboot; how fast is for bench/
        )
        proof.check(
            "it is the same guest, not rebooted, its TCP connection lives",
            f"boot {report.boot[:8]}, {report.connections} connection",
            holds=len(report.boots) == 1 and report.connections == 1 and not report.errors,
        )
        tpm = self.guest.tpm()
        proof.check(
            "the TPM's PCRs and NV counter are what they were",
            f"PCR 23 {tpm.pcr23[:8]}…, counter {tpm.nv}",
            holds=tpm == self.tpm,
        )
        self.guest.pause_writes()
        acked = self.seen.acked()["vda"]
        records = disk_sequences(runs_on.path(DISK))
        proof.check(
            f"every disk write that it had acknowledged is on {runs_on.name}",
            f"{acked} acknowledged, {records.last} there, {len(records.missing)} missing",
            holds=records.last >= acked and not records.missing,
        )
        self.guest.resume_writes()
        return proof


def by_virsh(lab: Lab) -> Proof:
    """Boot a libvirt domain with the dongle, and have virsh migrate it; the daemons attend that."""
    a, b = lab["a"], lab["b"]
    hook = (REPOSITORY / "src/entourage/hypervisors/attended/hook.py").read_text()
    for host in (a, b):
        host.run(["mkdir", "-p", str(Path(HOOK).parent)])
        host.write_files({HOOK: hook})
        host.path(HOOK).chmod(0o755)
    start_all([a, b])
    command = ["entourage", "attend"]
    daemons = [host.popen(command, stdout=DEVNULL, stderr=DEVNULL) for host in (a, b)]
    try:
        disk = Disk(f"{IMAGES}/{DOMAIN}.qcow2", "qcow2")
        disk.create(a, "64M")
        a.write_files({"/root/web1.xml": domain_xml(DOMAIN, disks=[disk], metadata=DONGLE)})
        daemon = Libvirtd(a)
        daemon.virsh("define", "/root/web1.xml")
        with Observer.start(lab, interval=0.001) as seen:
            daemon.virsh("start", DOMAIN, timeout=120)
            seen.wait_for(lambda report: report.up and bool(report.acked), timeout=120)
            wait_attended(a)
            proof, since = Proof(), seen.mark()
            status = virsh(a, "migrate", *HOW, DOMAIN, ssh_uri(b))
            proof.check("exit status 0: moved, by virsh alone", f"{status}", holds=status == 0)
            report = seen.wait_progress()
            gap = seen.longest_gap(since)
            proof.check(
                "the guest answered a 1 ms pinger all the time but for",
                f"{gap.seconds * 1000:.0f} ms",
                holds=gap.seconds < 5,  # noqa: PLR2004 - see above
            )
            proof.check(
                "it is the same guest, not rebooted",
                f"boot {report.boot[:8]}",
                holds=len(report.boots) == 1 and not report.errors,
            )
        entourage(a, "attend", "--timeline", DOMAIN)
        calls = a.path(f"{TOOL}.log").read_text().split()
        proof.check(
            "the dongle went along: its tool was called in steps",
            " ".join(calls[-3:]),
            holds=calls[-3:] == ["1", "2", "3"],
        )
        return proof
    finally:
        for process in daemons:
            process.kill()
            process.wait(10)


def virsh(host: Host, *words: str) -> int:
    """Run it on a host, at this very terminal."""
    console.print(f"[dim]{host.name}#[/] virsh {' '.join(words)}")
    command = ["virsh", "--quiet", *words]
    return host.popen(command, stdin=sys.stdin, stdout=None, stderr=None).wait()


def wait_attended(host: Host) -> None:
    """Wait until the daemon has seen that the domain runs."""
    deadline = time.monotonic() + 30
    while host.run(["entourage", "attend", "--check", DOMAIN], check=False).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError("the domain is not attended")
        time.sleep(0.1)


def nothing_left(proof: Proof, host: Host, before: Snapshot) -> None:
    """Check that a host is as it was before the guest came."""
    left = host.wait_clean(before, ignore=MEMORY)
    proof.check(
        f"nothing is left on {host.name}: no process, tap, socket, port, key or file",
        "nothing" if not left else str(left),
        holds=not left,
    )


def main() -> int:
    """Run the demo; 0 only if everything was seen to be as claimed."""
    if os.geteuid() != 0:
        console.print(
            "The demo makes namespaces, loop devices and bridges of its own: run it as root."
        )
        return 1
    began = time.monotonic()
    say("two hosts on this machine, each with its own network, files, processes and sshd")
    with Lab.up(hosts=("a", "b"), name="demo") as lab:
        a, b = lab["a"], lab["b"]
        console.print("   a 10.77.0.1 ─── br0 ─── switch ─── br0 ─── 10.77.0.2 b")
        for host in (a, b):
            host.write_files({TOOL: TOOL_TEXT})
            host.path(TOOL).chmod(0o755)
        a.write_files({"/srv/web1.toml": domain_toml(DOMAIN, disks=[DISK], tpm=True) + DONGLE})
        empty_a, empty_b = a.snapshot(), b.snapshot()

        say("a guest with a disk, a NIC, a TPM 2.0, and a dongle that only a tool knows")
        Disk(DISK).create(a, "256M")
        if entourage(a, "start", "/srv/web1.toml"):
            return 1
        with Observer.start(lab, interval=0.001) as seen:
            seen.wait_for(lambda report: report.up and bool(report.acked), timeout=120)
            stage = Stage(seen, Guest(lab))

            say("moved live, from a to b")
            there = stage.witness(0, lambda: move(a, b), runs_on=b)
            nothing_left(there, a, empty_a)
            there.show("Seen from outside:")

            say("and back again, from b to a")
            back = stage.witness(0, lambda: move(b, a), runs_on=a)
            nothing_left(back, b, empty_b)
            back.show("Seen from outside:")

            say("now the dongle fails in the last step, when the guest stands still already")
            a.write_files({"/srv/break-dongle": ""})
            failed = stage.witness(4, lambda: move(a, b), runs_on=a)
            nothing_left(failed, b, empty_b)
            failed.show("Seen from outside:")

            a.path("/srv/break-dongle").unlink()
            entourage(a, "stop", "--force", DOMAIN)
        say("and what other people's tools do: plain `virsh migrate`, attended")
        attended = by_virsh(lab)
        attended.show("Seen from outside:")
    console.print(f"\n{time.monotonic() - began:.0f} s in all.")
    if all(proof.holds for proof in (there, back, failed, attended)):
        return 0
    console.print("[bold red]Not everything was as it should be.[/]")
    return 1


if __name__ == "__main__":
    sys.exit(main())
