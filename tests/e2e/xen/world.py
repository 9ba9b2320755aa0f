"""Two Xen hosts and a guest, looked at from outside: by what xl, Entourage and the guest say."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab.xen.guest import Tick, config, tick
from lab.xen.hosts import XenHost, XenLab
from tests.e2e.points import Points
from tests.e2e.run import Run, far

NAME = "web1"
DISK, SHARED = f"/srv/{NAME}.raw", "/dev/vdb"
SIZE = 4 << 20
LOG = f"/var/log/entourage/{NAME}.log"
SIDE = f"/etc/entourage/domains/{NAME}.toml"
PATIENCE = 240.0
# Half a minute for software emulation to encrypt, copy and decrypt what is a moment elsewhere.
SETTINGS = """\
[migration]
max-blackout = "120s"
link-silence = "30s"
doubt-timeout = "90s"
[agent]
devices = ["/dev/vdb"]
boot-directories = ["/srv/guest"]
"""
_DISKS = (
    f"format=raw,vdev=xvda,access=rw,target={DISK}",
    f"format=raw,vdev=xvdb,access=rw,target={SHARED}",
)
# How many of the records 1, 2, … the disk holds without a gap.
_COUNT = """
import sys
with open(sys.argv[1], 'rb') as file:
    file.seek(2 * 512)
    count = 0
    while file.read(512).split() == f'boot {sys.argv[2]} tick {count + 1}'.encode().split():
        count += 1
print(count)
"""


@dataclass
class Under:
    """An ``entourage migrate`` under way, held at points of either host."""

    process: subprocess.Popen[str]
    here: Points
    there: Points

    def wait(self, point: str) -> None:
        """Wait until it stands there."""
        points = self.here if point.startswith("source.") else self.there
        try:
            points.wait(point, lambda: self.process.poll() is None, PATIENCE)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.end()}") from error

    def pass_on(self, point: str) -> None:
        """Let it go on from there."""
        (self.here if point.startswith("source.") else self.there).pass_on(point)

    def end(self) -> Run:
        """Let it go on to its end."""
        self.here.open()
        self.there.open()
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return Run(self.process.returncode, stdout, stderr)


@dataclass
class XenWorld:
    """The guest, and where it is."""

    lab: XenLab
    here: XenHost
    there: XenHost

    @classmethod
    def begin(cls, lab: XenLab) -> XenWorld:
        """Boot the guest on a."""
        world = cls(lab, lab.a, lab.b)
        for host in (lab.a, lab.b):
            host.write("/etc/entourage/entourage.toml", SETTINGS)
        world._create()
        return world

    def _create(self) -> None:
        host = self.here
        host.write(f"/etc/xen/{NAME}.cfg", config(NAME, _DISKS))
        host.run(["rm", "-f", DISK])
        host.run(["truncate", "-s", str(SIZE), DISK])
        host.run(["xl", "create", f"/etc/xen/{NAME}.cfg"], timeout=PATIENCE)
        self.lives()

    def start_over(self) -> None:
        """After a test that failed: a new guest on a, and nothing else."""
        for host in (self.lab.a, self.lab.b):
            host.run(["kill", "-KILL", *self.pids(host, "")], check=False)
            for name in self.domains(host):
                host.run(["xl", "destroy", name], check=False)
            host.run(["sh", "-c", f"rm -rf /run/entourage /var/lib/entourage {SIDE} {DISK}"])
            host.write("/etc/entourage/entourage.toml", SETTINGS)
        self.here, self.there = self.lab.a, self.lab.b
        self._create()

    # What is seen ------------------------------------------------------------------------------

    def domains(self, host: XenHost) -> dict[str, str]:
        """The domains that xl knows on a host but dom0, and their states (``-b----``)."""
        lines = host.run(["xl", "list"]).stdout.splitlines()[2:]
        return {line.split()[0]: line.split()[4] for line in lines}

    def config(self, host: XenHost) -> dict[str, Any]:
        """What xl says that the guest is made of."""
        [entry] = [
            each
            for each in json.loads(host.run(["xl", "list", "-l"]).stdout)
            if each["config"]["c_info"]["name"] == NAME
        ]
        return entry["config"]

    def bridge(self) -> str:
        """The bridge that its NIC is on; xl's own where its configuration names none."""
        return self.config(self.here)["nics"][0].get("bridge", "xenbr0")

    def tick(self, host: XenHost) -> Tick:
        """What the guest said last on a host's console."""
        return tick(host)

    def lives(self, since: Tick | None = None) -> Tick:
        """It ticks here, the same one as before, and writes to its disk; returns its tick.

        Args:
            since: What it said before; its ticks go on from there.
        """
        deadline = time.monotonic() + PATIENCE
        last = self.tick(self.here)  # said before: by another guest perhaps, or before it was saved
        before = since or last

        def is_new(now: Tick) -> bool:
            if since is None and now.boot != before.boot:
                return True
            return now.boot == before.boot and now.number > before.number and now != last

        # One that has just begun has written nothing yet.
        while not is_new(now := self.tick(self.here)) or now.disk != "written":
            assert time.monotonic() < deadline, (now, self.what_is_there())
            time.sleep(0.2)  # the guest tells nobody but its console
        return now

    def records(self, host: XenHost, boot: str) -> int:
        """How many records the copied disk of that host holds, from the first one on."""
        return int(host.run(["python3", "-c", _COUNT, DISK, boot]).stdout)

    def is_clean(self, host: XenHost) -> None:
        """Nothing of the guest is on a host, nor of a migration."""
        assert self.domains(host) == {}
        left = "ls -d /srv/web1.raw /srv/.entourage* /run/entourage/xen-* 2>/dev/null"
        self.is_quiet(host)
        assert host.run(["sh", "-c", left], check=False).stdout == ""
        assert "migrate-receive" not in self.processes(host)
        self.is_settled(host)

    def is_quiet(self, host: XenHost) -> None:
        """Nobody works on a migration there any more; what ends by itself has a while to do so.

        What xl leaves of a receiver to watch over a domain that runs is none of it.
        """
        deadline = time.monotonic() + PATIENCE
        while any("migrate-receive" not in line for line in self.processes(host).splitlines()):
            assert time.monotonic() < deadline, self.processes(host)

    def is_settled(self, host: XenHost) -> None:
        """Entourage has nothing more to do there, and says so."""
        said = host.run(["entourage", "status"]).stdout
        assert NAME not in said, said

    def processes(self, host: XenHost) -> str:
        """The processes of a migration there."""
        show = "busybox ps -o pid,args | grep -E 'xl migrate|entourage' | grep -v grep"
        return host.run(["sh", "-c", show], check=False).stdout

    def pids(self, host: XenHost, pattern: str) -> list[str]:
        """The processes of a migration there whose command lines match, the oldest first."""
        lines = [line.split(None, 1) for line in self.processes(host).splitlines()]
        found = [int(pid) for pid, command in lines if re.search(pattern, command)]
        return [str(pid) for pid in sorted(found)]

    def kill(self, host: XenHost, pattern: str) -> None:
        """Kill the oldest process there whose command line matches; there must be one."""
        found = self.pids(host, pattern)
        assert found, self.processes(host)
        host.run(["kill", "-KILL", found[0]])

    def log(self, host: XenHost) -> str:
        """What xl said there, in the migrations of this test."""
        return host.read(LOG)

    def what_is_there(self) -> str:
        """All that may tell why a test has failed."""
        parts: list[str] = []
        for host in (self.lab.a, self.lab.b):
            with contextlib.suppress(Exception):
                log = "\n".join(self.log(host).splitlines()[-12:])
                parts.append(
                    f"-- {host.name}\n{self.domains(host)}\n{self.tick(host)}\n"
                    f"{self.processes(host)}\n{log}"
                )
        return "\n".join(parts)

    # What is done ------------------------------------------------------------------------------

    def migrate(self, *options: str) -> Run:
        """Move it to the other host."""
        process = self.here.popen(self._command(options))
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return Run(process.returncode, stdout, stderr)

    def _command(self, options: Sequence[str]) -> list[str]:
        return ["entourage", "migrate", "--json", NAME, self.there.name, *options]

    @contextmanager
    def under(self, *points: str, options: Sequence[str] = ()) -> Generator[Under]:
        """Begin to move it; it stops at these points."""
        ours = [point for point in points if point.startswith("source.")]
        theirs = [point for point in points if not point.startswith("source.")]
        with (
            Points(self.here, *ours) as here,
            Points(self.there, *theirs) as there,
            forwarded(self.here, here.path) if ours else contextlib.nullcontext(),
            forwarded(self.there, there.path) if theirs else contextlib.nullcontext(),
        ):
            remote = ("--remote-command", far(**there.env)) if theirs else ()
            environment = [f"{name}={value}" for name, value in here.env.items() if ours]
            process = self.here.popen(["env", *environment, *self._command([*options, *remote])])
            try:
                yield Under(process, here, there)
            finally:
                # Who stands at a point does not hear that its terminal is gone.
                here.open()
                there.open()
                process.kill()
                process.communicate(timeout=PATIENCE)

    def recover(self, host: XenHost) -> str:
        """Run ``entourage recover`` there, which must succeed; returns what it said."""
        return host.run(["entourage", "recover", NAME], timeout=PATIENCE).stdout

    def swap(self) -> None:
        """It has moved."""
        self.here, self.there = self.there, self.here

    def moved(self, run: Run, since: Tick) -> None:
        """A migration has succeeded: it lives there, with all that it has written."""
        assert run.status == 0, run
        assert run.finished["outcome"] == "moved"
        self.arrived(since)

    def arrived(self, since: Tick) -> None:
        """It lives on the other host, whoever brought it there; nothing is left on this one."""
        self.swap()
        self.stayed(since)

    def stayed(self, since: Tick) -> None:
        """It lives on here, and nothing of it is on the other host."""
        assert list(self.domains(self.here)) == [NAME]
        now = self.lives(since)
        assert self.records(self.here, now.boot) >= now.number
        self.is_quiet(self.here)
        with ThreadPoolExecutor() as pool:  # each is some seconds of software emulation
            settled = pool.submit(self.is_settled, self.here)
            self.is_clean(self.there)
            settled.result()


@contextmanager
def forwarded(host: XenHost, path: str) -> Generator[None]:
    """A socket on a host that leads to the one of that name here."""
    forward = ("-N", "-oControlPath=none", "-oExitOnForwardFailure=yes")
    argv = host.argv([], *forward, "-R", f"{path}:{host.path(path)}")
    process = subprocess.Popen(argv[:-1], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while host.run(["test", "-S", path], check=False).returncode:
            assert process.poll() is None
            assert time.monotonic() < deadline
        yield
    finally:
        process.kill()
        process.wait()
        host.run(["rm", "-f", path], check=False)
