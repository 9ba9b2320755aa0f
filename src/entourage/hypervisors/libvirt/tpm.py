"""The state of a libvirt domain's emulated TPM, on either host."""

from __future__ import annotations

import shutil
from pathlib import Path

from entourage.domain import Domain, Tpm
from entourage.errors import HypervisorError, plain_words
from entourage.hosts.threads import in_thread
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import TpmFacts
from entourage.hypervisors.files import is_on_local_storage

STATES = Path("/var/lib/libvirt/swtpm")


def states_of(domain: Domain) -> Path:
    """The directory of all that libvirt keeps of a domain's TPMs on this host."""
    return STATES / str(domain.uuid)


async def erase_states(domain: Domain) -> None:
    """Remove what libvirt has made of a domain's TPM that never ran here; none is no error.

    Where other hosts can see that directory as well, it may be another one's by now, and stays.

    Raises:
        HypervisorError: It is still there.
    """
    there = states_of(domain)
    try:
        if await in_thread(is_on_local_storage, STATES):
            await in_thread(shutil.rmtree, there)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HypervisorError(
            f"the TPM's state in {there}, which the restore has made, is still there:"
            f" {plain_words(error)}",
            remedy=f"rm -r {there}",
        ) from error


def state_of(domain: Domain, tpm: Tpm) -> Path:
    """The directory of a TPM's state on this host."""
    return states_of(domain) / ("tpm1.2" if tpm.version == "1.2" else "tpm2")


class SourceTpm:
    """Its state on the source.

    Args:
        domain: The running configuration.
    """

    stays = False

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    async def facts(self) -> TpmFacts:
        """What this host's swtpm can do."""
        if any(tpm.type == "emulator" for tpm in self._domain.tpm):
            return await swtpm.facts()
        return TpmFacts()

    async def erase(self, tpm: Tpm) -> None:
        """After ``release``, in which libvirt has erased it: see that it has.

        Raises:
            HypervisorError: It has not.
        """
        there = states_of(self._domain)
        if there.is_dir() and any(there.rglob("*.permall")):
            raise HypervisorError(
                f"libvirt has left the TPM's state in {there}",
                device=tpm.label,
                remedy="erase it, unless both hosts share that directory",
            )


class KeptTpm(SourceTpm):
    """The same of a domain that is saved: its state is of its definition, and both stay."""

    stays = True

    async def erase(self, tpm: Tpm) -> None:
        """The state is in the save, and here for who starts the domain from its disks."""


class TargetTpm:
    """Its state on the target.

    Args:
        domain: The domain as it arrives.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    async def facts(self) -> TpmFacts:
        """What this host's swtpm can do."""
        return await swtpm.facts()

    async def sync(self, tpm: Tpm) -> None:
        """Flush the TPM's state, file and directory, to this host's disk."""
        if (state := state_of(self._domain, tpm)).is_dir():
            await in_thread(swtpm.sync_state, state)
