"""A Xen domain, moved by stock xl and by Entourage, on the two nested hosts of the lab."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.figures import Move, Round
from bench.guests import Told, read_events
from lab.xen.guest import ADDRESS, Tick, config, tick
from lab.xen.hosts import XenHost, XenLab
from lab.xen.wheels import install

_NAME = "bench1"
_SETTINGS = """\
[migration]
max-blackout = "120s"
link-silence = "30s"
doubt-timeout = "90s"
[agent]
devices = ["/dev/vdb"]
boot-directories = ["/srv/guest"]
"""
_PATIENCE = 300.0
_SURVIVES = 60.0
# Pings each 10 ms until its input ends, and says the longest time without an answer.
_PINGER = """
import select, socket, struct, sys, time
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.connect((sys.argv[1], 0))
def checked(number):
    words = struct.pack('!BBHHH', 8, 0, 0, 0xBE, number)
    total = sum(struct.unpack('!4H', words))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack('!BBHHH', 8, 0, ~total & 0xFFFF, 0xBE, number)
number, longest, heard, due = 0, 0.0, 0.0, time.monotonic()
while True:
    readable, _, _ = select.select([ping, sys.stdin], [], [], max(0, due - time.monotonic()))
    now = time.monotonic()
    if sys.stdin in readable:
        break
    if ping in readable and ping.recv(256)[20:21] == bytes(1):
        if not heard:
            print('up', flush=True)
        longest, heard = max(longest, now - heard if heard else 0.0), now
    if now >= due:
        number, due = number + 1 & 0xFFFF, now + 0.01
        try:
            ping.send(checked(number))
        except OSError:
            pass
print(max(longest, time.monotonic() - heard))
"""


def turns(count: int, log: Callable[[str], None]) -> list[Round]:
    """So many rounds of both, on one guest with a disk that both hosts see.

    Args:
        count: How many.
        log: Told what each move was like.
    """
    rounds: list[Round] = []
    with XenLab.up() as lab:
        install((lab.a, lab.b))
        for host in (lab.a, lab.b):
            host.write("/etc/entourage/entourage.toml", _SETTINGS)
        guest = _Guest(lab, lab.a, lab.b)
        guest.start()
        for number in range(count):
            order = ("xl", "entourage") if number % 2 else ("entourage", "xl")
            one: dict[str, Move] = {}
            for party in order:
                move = one[party] = guest.move(party)
                fate = "" if move.survived else "  the guest did not survive"
                log(f"{party:>10}: by pinger {move.pinger:.2f} s, in all {move.total:.1f} s{fate}")
                if not move.survived:
                    return [*rounds, one]
            rounds.append(one)
    return rounds


@dataclass
class _Guest:
    """The one domain that both move in turn, and where it is."""

    lab: XenLab
    here: XenHost
    there: XenHost

    def start(self) -> None:
        """Start it on the first host, and wait until it ticks."""
        path = f"/etc/xen/{_NAME}.cfg"
        disk = "format=raw,vdev=xvda,access=rw,target=/dev/vdb"
        self.here.write(path, config(_NAME, [disk]))
        self.here.run(["xl", "create", path], timeout=_PATIENCE)
        if not self._lives(Tick("", 0, "")):
            raise RuntimeError("the guest does not come up")

    def move(self, party: str) -> Move:
        """Move it to the other host, and look on."""
        before = tick(self.here)
        with self._pinged() as gap:
            told = self._entourage() if party == "entourage" else self._xl()
            if not told.ok:
                raise RuntimeError(f"{party} has failed: {told.said[-2000:]}")
            self.here, self.there = self.there, self.here
            survived = self._lives(before)
        return Move(
            party=party,
            survived=survived,
            blackout=told.resume - told.stop,
            pinger=gap[0],
            total=told.ended - told.began,
            spans=told.spans,
        )

    def _entourage(self) -> Told:
        argv = ["entourage", "migrate", "--json", _NAME, self.there.name]
        began = time.time()
        output, errors = self.here.popen(argv).communicate(timeout=_PATIENCE)
        return read_events(output, began, time.time(), errors)

    def _xl(self) -> Told:
        began = time.time()
        done = self.here.run(
            ["xl", "migrate", _NAME, self.there.name], check=False, timeout=_PATIENCE
        )
        said = done.stdout + done.stderr
        return Told(ok=done.returncode == 0, began=began, ended=time.time(), said=said)

    def _lives(self, before: Tick) -> bool:
        """It ticks on: where it came to, its console has begun anew."""
        deadline = time.monotonic() + _SURVIVES
        while time.monotonic() < deadline:
            now = tick(self.here)
            if now.number > before.number:
                return before.boot in {"", now.boot}
            time.sleep(0.2)
        return False

    @contextmanager
    def _pinged(self) -> Generator[list[float]]:
        """Pinged from host a, whichever it is on; the longest gap is there at the end."""
        gap: list[float] = []
        argv = self.lab.a.argv(["python3", "-c", _PINGER, ADDRESS])
        pinger = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if pinger.stdout is None or pinger.stdout.readline().strip() != "up":
                raise RuntimeError("the guest does not answer")
            yield gap
            output, _ = pinger.communicate(timeout=_PATIENCE)
            gap.append(float(output))
        finally:
            pinger.kill()
            pinger.wait()
