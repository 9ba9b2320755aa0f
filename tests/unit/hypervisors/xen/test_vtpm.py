"""A vTPM of xl's is another domain: a site's tool of 2006 moves it, or nothing does.

Neither Xen nor a vTPM manager is here: what xl would print and send is written out.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from entourage.device_steps import source_controllers
from entourage.devices.base import AnyController
from entourage.devices.tool.controller import Tooled
from entourage.hypervisors.xen.configuration import Entry, read_domain
from entourage.hypervisors.xen.header import Changes
from entourage.settings.load import load_settings
from entourage.settings.model import Settings
from entourage.steps import Step
from tests.unit.devices.test_harness import CARRIES_RAW, TwoHosts
from tests.unit.devices.tool.harness import tool
from tests.unit.hypervisors.xen.test_header import CONFIG, there

DOMAIN = read_domain(Entry(domid=7, config=CONFIG))


def vtpm(settings: Settings) -> AnyController:
    """The controller of its vTPM."""
    [found] = [c for c in source_controllers(DOMAIN, settings) if c.device.label == "tpm/vtpm0"]
    return found


@pytest.fixture
def hosts(tmp_path: Path) -> TwoHosts:
    made = TwoHosts(DOMAIN, tmp_path)
    made.machine.copies = made.incoming.copies = CARRIES_RAW
    return made


async def test_it_is_refused_without_a_tool(hosts: TwoHosts) -> None:
    (refusal,) = await hosts.test(vtpm(Settings()))
    assert (refusal.device, refusal.host, refusal.no_way) == ("tpm/vtpm0", "a", True)
    assert "[tool] tpm =" in refusal.remedy


async def test_the_tool_of_xend_config_sxp_moves_it(hosts: TwoHosts, tmp_path: Path) -> None:
    program = tool(tmp_path, 'echo "$*" >>$HERE/calls')
    sxp = tmp_path / "xend-config.sxp"
    sxp.write_text(
        f"# Of 2006\n(xend-relocation-server yes)\n(external-migration-tool {program})\n"
    )
    hosts.settings = load_settings(sxp, environ={})
    controller = vtpm(hosts.settings)
    assert isinstance(controller, Tooled)
    assert await hosts.test(controller) == []
    await hosts.prepare(controller)
    await hosts.connect(controller)
    here = hosts.here(controller.transfer_there)
    await controller.transfer(here)
    await controller.sync(here)
    await controller.recover(here, Step.SYNC)
    assert (tmp_path / "calls").read_text().splitlines() == [
        *(f"-type vtpm -step {step} -host b -domname web1" for step in (1, 2, 3)),
        "-type vtpm -step 3 -host b -domname web1 -recover",
    ]
    # Nothing else of the domain is that tool's: in 2006 it was for vTPMs alone.
    others = [c for c in source_controllers(DOMAIN, hosts.settings) if c.device.id != "vtpm0"]
    assert not any(isinstance(other, Tooled) for other in others)


def test_the_targets_xl_is_told_of_the_same_back_end() -> None:
    changes = Changes(paths={"xvda": "/elsewhere"}, nets={"lan": "lan2"}, passthrough=True)
    assert there(changes)["vtpms"] == CONFIG["vtpms"]
    assert msgspec.to_builtins(DOMAIN.tpm)[0]["type"] == "external"
