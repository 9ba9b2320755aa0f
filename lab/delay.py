"""A long way between two hosts: what they send each other arrives later, in order or not.

There is no netem in every kernel, so the frames take a detour: the port of the first host is taken
off the switch, and a program of its own hands every frame on between the two, those of the other
host after a while. What guests and the client send and get is not delayed.

Run as ``python -m lab.delay PORT SWITCH-PORT MAC MAC SECONDS SPREAD`` in the switch.
"""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import network
from lab.host import REPOSITORY

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from lab.hosts import Lab
    from lab.processes import HostProcess

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_HEADER = 10  # struct virtio_net_hdr: lets segments that are not cut yet pass as they are
_LARGEST = _HEADER + 18 + (1 << 16)
_BUFFER = 1 << 26
_BATCH = 64


@dataclass
class Delay:
    """A delay that is on; a context manager that takes it away again."""

    lab: Lab
    port: str
    process: HostProcess

    @classmethod
    def between(cls, lab: Lab, a: str, b: str, seconds: float, *, spread: float = 0) -> Self:
        """Whatever these two hosts send each other arrives so much later, each way.

        Args:
            lab: The two hosts.
            a: The name of the one.
            b: The name of the other.
            seconds: How much later, at least.
            spread: How much more than that at most, for each frame by chance: they overtake one
                another.
        """
        switch, port = lab.switch, network.port_of(a)
        network.ip_batch(
            switch.init_pid,
            [
                f"link set dev {port} nomaster",
                f"link set dev {port} promisc on",
                "link add name detour type veth peer name detour-end",
                f"link set dev detour master {network.SWITCH_BRIDGE} up",
                "link set dev detour-end promisc on",
                "link set dev detour-end up",
            ],
        )
        macs = [network.mac_of(lab[name].address) for name in (a, b)]
        argv = [sys.executable, "-S", "-m", "lab.delay", port, "detour-end", *macs]
        argv += [str(seconds), str(spread)]
        process = switch.popen(argv, cwd=str(REPOSITORY), stdout=subprocess.PIPE, stderr=None)
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the delay does not start")
        return cls(lab, port, process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """What they send each other arrives at once again."""
        self.process.kill()
        self.process.communicate()
        network.ip_batch(
            self.lab.switch.init_pid,
            [
                "link delete dev detour",
                f"link set dev {self.port} master {network.SWITCH_BRIDGE}",
            ],
        )


class Forwarder:
    """Hands frames on from one socket to another; some of them wait first.

    Args:
        source: Frames come from here, each with its virtio header.
        sink: And go there.
        late: Whether a frame is one that waits, by its two MACs (target, source).
        seconds: How long.
        spread: How much longer, at most, by chance.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        late: set[bytes],
        seconds: float,
        spread: float,
    ) -> None:
        self.source = source
        self.sink = sink
        self._late = late
        self._seconds = seconds
        self._spread = spread
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, bytes]] = []

    @property
    def due(self) -> float:
        """When the next waiting frame is to go, on the monotonic clock; never: infinity."""
        return self._queue[0][0] if self._queue else float("inf")

    def take(self) -> None:
        """Take what has come."""
        for _ in range(_BATCH):
            try:
                frame = self.source.recv(_LARGEST)
            except BlockingIOError:
                return
            if frame[_HEADER : _HEADER + 12] in self._late:
                late = self._seconds + random.random() * self._spread  # noqa: S311 - no secret
                due = time.monotonic() + late
                heapq.heappush(self._queue, (due, next(self._numbers), frame))
            else:
                self._send(frame)

    def release(self, now: float) -> None:
        """Send what has waited long enough."""
        while self._queue and self._queue[0][0] <= now:
            self._send(heapq.heappop(self._queue)[2])

    def _send(self, frame: bytes) -> None:
        try:
            self.sink.send(frame)
        except OSError:  # a full queue: as a wire does, it loses the frame
            return


def _open(port: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    raw.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    raw.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        raw.setsockopt(socket.SOL_SOCKET, option + 25, _BUFFER)  # …FORCE
    raw.bind((port, 0))
    raw.settimeout(0)
    return raw


def main() -> None:
    """Hand frames on until killed."""
    port, other, *macs, seconds, spread = sys.argv[1:]
    a, b = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    here, there = _open(port), _open(other)
    late = {a + b, b + a}
    ways = [
        Forwarder(*ends, late, float(seconds), float(spread))
        for ends in ((here, there), (there, here))
    ]
    print("ready", flush=True)
    while True:
        wait = min(way.due for way in ways) - time.monotonic()
        patience = None if wait == float("inf") else max(0.0, wait)
        ready = select.select([here, there], [], [], patience)[0]
        for way in ways:
            if way.source in ready:
                way.take()
            way.release(time.monotonic())


if __name__ == "__main__":
    main()
