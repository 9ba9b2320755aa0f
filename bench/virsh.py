"""Domains of libvirt's: moved by virsh, which people use today, and by Entourage."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from bench.guests import Shape, Told, Traveller, mebibytes_of, read_events, usage
from lab.domain_xml import domain_xml
from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import IMAGES, LOCAL, Libvirtd, ssh_uri

_PATIENCE = 60.0


class Virsh(Traveller):
    """A libvirt domain with the same memory, disks and TPM, moved by virsh.

    It says nothing of its own about the moments of stop and resume: the pinger tells both.

    Args:
        lab: Where.
        shape: What the guest consists of.
        index: Its number in the lab.
        party: What it is called among the others.
        options: More for ``virsh migrate``.
    """

    metadata = ""

    def __init__(
        self, lab: Lab, shape: Shape, index: int, party: str, options: Sequence[str] = ()
    ) -> None:
        self.party = party
        super().__init__(lab, shape, index)
        self.name = f"virsh{index}"
        self.disks = [f"{IMAGES}/{self.name}.{n}.raw" for n in range(len(shape.disks))]
        self._options = options

    def start(self) -> None:
        """Start the guest on a, running."""
        for host in (self.source, self.target):
            daemon = Libvirtd(host)
            if not host.path("/run/libvirtd.pid").exists():
                daemon.start()
        self._make_disks()
        xml = domain_xml(
            self.name,
            disks=[Disk(path) for path in self.disks],
            tpm=self.shape.tpm,
            memory=mebibytes_of(self.shape.memory),
            address=self.address,
            metadata=self.metadata,
        )
        self.source.write_files({f"/root/{self.name}.xml": xml})
        self._virsh("pool-refresh", "default")
        self._virsh("define", f"/root/{self.name}.xml")
        self._virsh("start", self.name)

    def pause(self) -> None:
        """Stop the guest."""
        self._virsh("suspend", self.name)

    def resume(self) -> None:
        """Let it run again."""
        self._virsh("resume", self.name)

    def move(self) -> Told:
        """Move it to the other host."""
        words = ["migrate", "--live", "--copy-storage-all", "--persistent", "--undefinesource"]
        argv = [*self._timed("source"), "virsh", "--connect", LOCAL, *words, *self._options]
        began = time.time()
        process = self.source.popen([*argv, self.name, ssh_uri(self.target)])
        _, errors = process.communicate(timeout=_PATIENCE)
        ended = time.time()
        ok = process.returncode == 0
        if ok:
            # What Entourage does by itself.
            for path in self.disks:
                self._virsh("vol-delete", path)
            self._swap()
        return Told(ok=ok, began=began, ended=ended, said=errors)

    def costs(self) -> tuple[tuple[float, float], tuple[int, int]]:
        """Those of virsh alone: libvirtd's, which does most of it, are not its own."""
        seconds, memory = usage(self.target, self.name, "source")  # they have changed places
        return (seconds, 0.0), (memory, 0)

    def _virsh(self, *words: str) -> None:
        self.source.run(["virsh", "--quiet", "--connect", LOCAL, *words])


class OnLibvirt(Virsh):
    """The same domain, moved by ``entourage migrate``."""

    def move(self) -> Told:
        """Move it to the other host."""
        remote = shlex.join([*self._timed("target"), "entourage"])
        argv = [*self._timed("source"), "entourage", "migrate", self.name, self.target.name]
        began = time.time()
        process = self.source.popen([*argv, "--json", "--no-tls", "--remote-command", remote])
        output, errors = process.communicate(timeout=_PATIENCE)
        told = read_events(output, began, time.time(), errors)
        if told.ok:
            self._swap()
        return told

    def costs(self) -> tuple[tuple[float, float], tuple[int, int]]:
        """Of Entourage at both ends, without libvirtd's."""
        return Traveller.costs(self)
