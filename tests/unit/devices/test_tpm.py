from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.devices.tpm import TpmController
from entourage.domain import Tpm
from entourage.hypervisors.base import TpmFacts
from entourage.steps import Refusal
from tests.unit.devices.test_harness import SWTPM, TwoHosts, domain_with


class Move:
    def __init__(self, tmp_path: Path, **fields: Any) -> None:
        tpm = Tpm(id="tpm0", **fields)
        self.hosts = TwoHosts(domain_with(tpm=(tpm,)), tmp_path)
        self.controller = TpmController(tpm)

    async def test(self) -> list[Refusal]:
        return await self.hosts.test(self.controller)


@pytest.mark.parametrize("version", ["1.2", "2.0"])
async def test_an_emulated_tpm_moves(tmp_path: Path, version: str) -> None:
    move = Move(tmp_path, version=version)
    assert await move.test() == []
    here = move.hosts.here(move.controller.test_there)
    await move.controller.persist(move.hosts.there)
    assert move.hosts.incoming.calls == [("sync_tpm", "tpm/tpm0")]
    assert move.hosts.machine.calls == []
    await move.controller.let_go(here)
    assert move.hosts.machine.calls == [("erase_tpm", "tpm/tpm0")]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("passthrough", "this host's own TPM, /dev/tpm0"), ("external", "run by somebody else")],
)
async def test_a_tpm_out_of_reach_needs_a_tool(tmp_path: Path, kind: str, reason: str) -> None:
    move = Move(tmp_path, type=kind)
    (refusal,) = await move.test()
    assert refusal.no_way
    assert refusal.host == "a"
    assert reason in refusal.reason
    assert refusal.remedy == "configure an external migration tool: [tool] tpm = …"
    await move.controller.persist(move.hosts.there)
    await move.controller.let_go(move.hosts.here(move.controller.test_there))
    assert move.hosts.machine.calls == move.hosts.incoming.calls == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"program": ""}, "swtpm is not installed"),
        ({"capabilities": frozenset({"tpm-1.2"})}, "swtpm there cannot emulate a TPM 2.0"),
        ({"program": "another"}, "it is emulated by swtpm here, and by another there"),
        ({"version": (0, 6, 9)}, "swtpm 0.6.9 is older than the 0.7.1 that has made the state"),
    ],
)
async def test_what_the_target_lacks(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    move = Move(tmp_path)
    move.hosts.incoming.swtpm = msgspec.structs.replace(SWTPM, **change)
    (refusal,) = await move.test()
    assert (refusal.host, refusal.reason) == ("b", reason)
    assert refusal.remedy
    assert not refusal.no_way


@pytest.mark.parametrize("version", [(0, 7, 0), (0, 10, 0), (1, 0), ()])
async def test_a_version_that_will_do(tmp_path: Path, version: tuple[int, ...]) -> None:
    move = Move(tmp_path)
    move.hosts.incoming.swtpm = msgspec.structs.replace(SWTPM, version=version)
    assert await move.test() == []


async def test_what_the_guest_may_use_must_be_there(tmp_path: Path) -> None:
    move = Move(tmp_path)
    words = {"rsa-keysize-3072", "rsa-keysize-2048", "cmdarg-seccomp"}
    move.hosts.machine.swtpm = TpmFacts(
        program="swtpm", version=(0, 7, 1), capabilities=SWTPM.capabilities | words
    )
    (refusal,) = await move.test()
    assert refusal.reason == (
        "swtpm there lacks what the guest may use: rsa-keysize-2048, rsa-keysize-3072"
    )


async def test_hypervisors_that_cannot_carry_it(tmp_path: Path) -> None:
    move = Move(tmp_path)
    move.hosts.machine.lacks = move.hosts.incoming.lacks = frozenset({"tpm"})
    refusals = await move.test()
    assert [refusal.host for refusal in refusals] == ["a", "b"]
    assert all(refusal.no_way for refusal in refusals)


async def test_what_the_hypervisor_marks_is_refused(tmp_path: Path) -> None:
    move = Move(tmp_path)
    move.hosts.blockers = (Refusal("tpm/tpm0", "a", "says no", "mend it"),)
    assert await move.test() == list(move.hosts.blockers)


@pytest.mark.parametrize(("lacks", "erased"), [((), "its state"), (("erasing",), "")])
def test_what_is_erased_is_told(tmp_path: Path, lacks: tuple[str, ...], erased: str) -> None:
    move = Move(tmp_path)
    move.hosts.machine.lacks = frozenset(lacks)
    here = move.hosts.here(move.controller.test_there)
    assert move.controller.planned(here).erased == erased
