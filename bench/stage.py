"""The stage: two hosts, guests of which one runs at a time, and everything that looks on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Self

from bench.figures import Move
from bench.guests import Told, Traveller
from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer

_BOOT = 180.0
_SURVIVES = 15.0
_CALM = 0.4  # seconds: after it was let run again, a guest has something to catch up with
_AFTER = 1.0  # seconds after the guest runs again in which a freeze is one of the move's
_MARGIN = 0.1  # seconds about the switchover in which the pinger's longest gap belongs to it
_PING = 0.001


class Stage:
    """Guests that are moved in turn; a context manager.

    Args:
        lab: With hosts a and b.
        travellers: They are started on a; while one is measured, the others stand still.
    """

    def __init__(self, lab: Lab, travellers: Sequence[Traveller]) -> None:
        self.lab = lab
        self.travellers = list(travellers)
        self.told: Told | None = None
        self._wire = Wire(lab["a"], lab["b"])
        addresses = [one.address for one in self.travellers]
        self._seen = Observer.start(lab, addresses, interval=_PING)

    def __enter__(self) -> Self:
        try:
            for traveller in self.travellers:
                traveller.start()
                self._seen.wait_for(
                    lambda report: report.up and bool(report.acked or not traveller.disks),  # noqa: B023 - called at once
                    _BOOT,
                    traveller.address,
                )
                self._rest(traveller)
        except BaseException:
            self._seen.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seen.stop()

    def measure(self, traveller: Traveller) -> Move:
        """Move a guest once, and say what was seen of it from outside."""
        with self._alone(traveller):
            boots = self._seen.report(traveller.address).boots
            self._wire.reset()
            told = self.told = traveller.move()
            lives = self._lives(traveller, boots)
            wire = self._wire.read()
            time.sleep(max(0.0, told.ended + _AFTER - time.time()))
        # Not well, and the guest is dead: its QEMU died of what TCG has lost, before all was over.
        if lives and not told.ok:
            raise RuntimeError(f"{traveller.party} has failed: {told.said[-2000:]}")
        cpu, memory = traveller.costs() if told.ok else ((0.0, 0.0), (0, 0))
        stop, resume = (told.stop, told.resume) if told.stop else self._switchover(traveller, told)
        return Move(
            party=traveller.party,
            survived=told.ok and lives,
            blackout=told.resume - told.stop,
            pinger=self._gap(traveller, stop - _MARGIN, resume + _MARGIN),
            early=self._gap(traveller, told.began, stop - 0.002),
            late=self._gap(traveller, resume + _MARGIN, resume + _AFTER),
            total=told.ended - told.began,
            cpu=cpu,
            memory=memory,
            wire=wire,
            spans=told.spans,
        )

    def fail(self, traveller: Traveller) -> Told:
        """A move that is to fail: what was told of it; the guest lives on where it was."""
        with self._alone(traveller):
            boots = self._seen.report(traveller.address).boots
            told = traveller.move()
            if not told.resume or not self._lives(traveller, boots):
                raise RuntimeError(f"{traveller.party} did not go back: {told.said[-2000:]}")
        return told

    @contextlib.contextmanager
    def _alone(self, traveller: Traveller) -> Generator[None]:
        self._seen.ping(traveller.address, on=True)
        traveller.resume()
        self._lives(traveller, self._seen.report(traveller.address).boots)
        time.sleep(_CALM)
        try:
            yield
        finally:
            self._rest(traveller)

    def _rest(self, traveller: Traveller) -> None:
        self._seen.ping(traveller.address, on=False)
        with contextlib.suppress(OSError):  # its QEMU has died, and the move is thrown out
            traveller.pause()

    def _lives(self, traveller: Traveller, boots: tuple[str, ...]) -> bool:
        try:
            report = self._seen.wait_progress(_SURVIVES, traveller.address)
        except TimeoutError:
            return False
        return report.boots == boots and not report.errors

    def _switchover(self, traveller: Traveller, told: Told) -> tuple[float, float]:
        """Of a party that does not say: the pinger's longest gap, on the wall clock."""
        offset = time.time() - time.monotonic()
        gap = self._seen.longest_gap(
            told.began - offset, told.ended - offset + _MARGIN, traveller.address
        )
        return gap.start + offset, gap.end + offset

    def _gap(self, traveller: Traveller, since: float, until: float) -> float:
        """The longest time without an answer; since and until are of the wall clock."""
        offset = time.time() - time.monotonic()
        if until <= since:
            return 0.0
        return self._seen.longest_gap(since - offset, until - offset, traveller.address).seconds


class Wire:
    """Counts the bytes between two hosts, on the first of them."""

    def __init__(self, here: Host, there: Host) -> None:
        self._host = here
        rules = [
            "table inet bench {",
            "counter wire {}",
            "chain out { type filter hook output priority 0;",
            f"ip daddr {there.address} counter name wire",
            "}",
            "chain in { type filter hook input priority 0;",
            f"ip saddr {there.address} counter name wire",
            "}",
            "}",
            "",
        ]
        here.run(["nft", "-f", "-"], input="\n".join(rules))

    def reset(self) -> None:
        """Begin again at nothing."""
        self._host.run(["nft", "reset", "counter", "inet", "bench", "wire"])

    def read(self) -> int:
        """How many bytes it were."""
        said = self._host.run(["nft", "-j", "list", "counter", "inet", "bench", "wire"]).stdout
        (counter,) = [one["counter"] for one in json.loads(said)["nftables"] if "counter" in one]
        return int(counter["bytes"])
