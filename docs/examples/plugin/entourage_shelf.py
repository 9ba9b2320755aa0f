"""A hypervisor of another package, as far as `entourage list`, `entourage show` and TEST.

Its domains are domain files in a directory, and none of them ever runs: it is the least that a
backend can be. `entourage list --all --connect shelf/srv/web` shows those in /srv/web. A backend
that runs domains returns values with the methods of `Machine` and `Incoming`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import UsageError
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import Ledger
from entourage.hypervisors.backend import Backend
from entourage.hypervisors.base import DomainState, Hypervisor, Incoming, Machine
from entourage.settings.domainfile import load_domain
from entourage.settings.model import Settings
from entourage.steps import Refusal

PREFIX = "shelf"
USUAL = "shelf/var/lib/shelf"  # without a colon: a name that has one is libvirt's


class ShelfHypervisor:
    """The domains of one directory.

    Attributes:
        name: ``shelf/srv/web``, which is enough to find it again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._directory = Path(name.removeprefix(PREFIX))

    async def domains(self) -> Sequence[DomainState]:
        """Each domain file of the directory."""
        found = [load_domain(path) for path in sorted(self._directory.glob("*.toml"))]
        return [
            DomainState(
                name=one.name,
                uuid=one.uuid or "",
                state="shut off",
                memory=one.memory,
                vcpus=one.vcpus,
            )
            for one in found
        ]

    async def find(self, name: str) -> Domain:
        """The domain of that name."""
        path = self._directory / f"{name}.toml"
        if not path.is_file():
            raise UsageError(f"there is no {path}")
        return load_domain(path)

    async def machine(self, name: str) -> Machine:
        """No domain runs, so none can be moved."""
        raise UsageError(f"{name} does not run: nothing on a shelf does")

    async def reattach_machine(self, domain: Domain) -> Machine:
        """No migration of one was ever begun."""
        raise UsageError(f"{domain.name} was never moved from {self.name}")

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:  # noqa: ARG002 - it takes none
        """Never called: `test_incoming` refuses every domain."""
        raise UsageError(f"{self.name} takes no running domain")

    async def test_incoming(
        self,
        domain: Domain,  # noqa: ARG002 - whatever it is
        host: str,
        facts: Mapping[str, str],  # noqa: ARG002 - as above
    ) -> Sequence[Refusal]:
        """Step 0, on the target: a shelf runs nothing."""
        return [Refusal("domain", host, f"{self.name} takes no running domain", "name another one")]

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:  # noqa: ARG002
        """Nothing of this host is named by what runs nowhere."""
        return ()

    async def start(self, domain: Domain) -> None:
        """Nothing is ever started."""
        raise UsageError(f"{domain.name} cannot be started on {self.name}")

    async def stop(self, name: str, *, force: bool, patience: float) -> None:  # noqa: ARG002
        """Nothing ever runs."""
        raise UsageError(f"{name} does not run")


def _open(_settings: Settings, name: str) -> Hypervisor:
    return ShelfHypervisor(name)


BACKEND = Backend(
    kind="a shelf",
    names="shelf/DIRECTORY",
    usual=USUAL,
    answers_to=lambda name: name.startswith(f"{PREFIX}/"),
    is_here=Path(USUAL.removeprefix(PREFIX)).is_dir,
    open=_open,
    start_command=lambda _name, domain: f"entourage start {domain}.toml",
)
