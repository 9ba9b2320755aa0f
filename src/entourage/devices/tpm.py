"""TPMs: the class ``tpm``.

The state of an emulated TPM travels in the hypervisor's own stream. What is left to do here: can
the other host's emulator take it; is it on the target's disk before the target says for good that
it runs the guest; and is it erased on the source after that. A TPM's state is secret: a copy that
stays behind is a stolen TPM.

Any other TPM is out of the hypervisor's reach, and moves with an external tool or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from entourage.devices.base import Controller, Here, There
from entourage.devices.refusals import marked, no_way, refuse
from entourage.domain import Tpm
from entourage.hypervisors.base import TpmFacts
from entourage.steps import Planned, Refusal

# What the guest may have come to rely on; the rest is about how the emulator is started.
_GUEST_VISIBLE = "rsa-keysize-"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """TEST: what the target answers: its emulator, and whether its hypervisor takes a TPM."""

    facts: TpmFacts
    carries: bool


class TpmController(Controller[Tpm]):
    """A TPM's way: in the stream, then flushed there and erased here."""

    device_class = "tpm"

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Can the hypervisor carry it, and the target's emulator take it?"""
        tpm = self.device
        found = marked(here, tpm)
        if tpm.type == "passthrough":
            path = tpm.path or "/dev/tpm0"
            reason = f"it is this host's own TPM, {path}, whose state never leaves the chip"
            return [*found, no_way(tpm, here.source, reason)]
        if tpm.type == "external":
            reason = "its emulator is run by somebody else, and its state is not ours to move"
            return [*found, no_way(tpm, here.source, reason)]
        answer = await here.peer({}, Capabilities)
        state = here.machine.tpm
        if state is None:
            found.append(no_way(tpm, here.source, "the hypervisor cannot carry a TPM's state"))
        if not answer.carries:
            found.append(no_way(tpm, here.target, "the hypervisor cannot take a TPM's state"))
        if not found and state is not None:
            found += _compare(tpm, here, await state.facts(), answer.facts)
        return found

    def planned(self, here: Here) -> Planned:
        """Its state is in the stream, and erased here, unless it is what its user keeps here."""
        state = here.machine.tpm
        stays = state is not None and state.stays
        return Planned(action="with-memory", erased="" if stays else "its state")

    async def test_there(self, there: There, request: Any) -> Any:  # noqa: ARG002 - nothing to ask
        """Say what the emulator of this host can do."""
        state = there.incoming.tpm
        facts = TpmFacts() if state is None else await state.facts()
        return Capabilities(facts=facts, carries=state is not None)

    async def persist(self, there: There) -> None:
        """Put the state on the disk, before the source erases its own."""
        tpm, state = self.device_there(there), there.incoming.tpm
        if state is not None and tpm.type == "emulator":
            await state.sync(tpm)

    async def let_go(self, here: Here) -> None:
        """The target's state is on its disk: erase the one here."""
        if here.machine.tpm is not None and self.device.type == "emulator":
            await here.machine.tpm.erase(self.device)


def _compare(tpm: Tpm, here: Here, ours: TpmFacts, theirs: TpmFacts) -> list[Refusal]:
    """What the target's emulator lacks that the one here has."""
    program = ours.program or "swtpm"
    if not theirs.program:
        reason = f"{program} is not installed"
        return [refuse(tpm, here.target, reason, f"install {program} there")]
    wanted = f"tpm-{tpm.version}"
    if wanted not in theirs.capabilities:
        reason = f"{theirs.program} there cannot emulate a TPM {tpm.version}"
        return [refuse(tpm, here.target, reason, f"install one that has {wanted}")]
    if ours.program and theirs.program != ours.program:
        reason = f"it is emulated by {ours.program} here, and by {theirs.program} there"
        return [refuse(tpm, here.target, reason, f"install {ours.program} there")]
    # State is read by the same release or a newer one; patch levels do not change its form.
    if theirs.version and theirs.version[:2] < ours.version[:2]:
        here_version, there_version = _dotted(ours.version), _dotted(theirs.version)
        reason = (
            f"{program} {there_version} is older than the {here_version} that has made the state"
        )
        return [refuse(tpm, here.target, reason, f"install {program} {here_version} there")]
    lost = sorted(
        word for word in ours.capabilities - theirs.capabilities if word.startswith(_GUEST_VISIBLE)
    )
    if lost:
        reason = f"{program} there lacks what the guest may use: {', '.join(lost)}"
        return [
            refuse(tpm, here.target, reason, f"install the {program} and libtpms of the source")
        ]
    return []


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
