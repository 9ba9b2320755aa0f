from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from entourage.devices.tool.controller import ToolCall
from entourage.errors import DeviceError
from entourage.steps import Step

DOCS = Path(__file__).parents[4] / "docs" / "tool.md"
SSH = """#!/bin/sh
[ "$1 $2 $3" = "-o BatchMode=yes --" ] || exit 255
echo "$4" >>"$FPGA_TARGET_ROOT/hosts"
exec sh -c "$5"
"""


async def test_the_documented_example_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    here, there, programs = (tmp_path / name for name in ("here", "there", "bin"))
    name = "web 'x' \"y\" $(touch pwned)"
    for path, text in ((programs / "move fpga", script), (programs / "ssh", SSH)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    state = here / name
    state.mkdir(parents=True)
    there.mkdir()
    (state / "bit stream").write_text("1")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FPGA_ROOT", str(here))
    monkeypatch.setenv("FPGA_TARGET_ROOT", str(there))

    async def call(step: Step, *, type_: str = "fpga", recover: bool = False) -> None:
        await ToolCall(
            command="'move fpga'",
            type=type_,
            step=step,
            source="a",
            target="b",
            domain=name,
            recover=recover,
        ).run(10)

    await call(Step.TEST)
    await call(Step.PREPARE)
    (state / "bit stream").write_text("2")
    with pytest.raises(DeviceError, match="Error: what arrived differs"):
        await call(Step.SYNC)
    await call(Step.TRANSFER)
    await call(Step.SYNC)
    assert (there / name / "bit stream").read_text() == "2"
    await call(Step.SYNC, recover=True)
    assert [path.name for path in there.iterdir()] == ["hosts"]
    assert set((there / "hosts").read_text().split()) == {"b"}
    with pytest.raises(DeviceError, match="Error: no FPGA: vtpm"):
        await call(Step.TEST, type_="vtpm")
