"""External tools: how they are called, and all the ways in which they misbehave."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.run import PATIENCE, Run
from tests.e2e.world import EMULATED, World

# A shell that saw this would leave /root/pwned behind, which is looked for.
NAME = """web 1 'q' "$(touch pwned)" `touch pwned`; touch pwned"""
FPGA = """
[[external]]
id = "fpga0"
type = "fpga"
subtype = "v2"
"""
TYPES = {
    "vbd": "block/disk0",
    "vif": "net/net0",
    "vtpm": "tpm/tpm0",
    "vusb": "usb/tablet",
    "pci": "pci/rng",
    "fpga": "external/fpga0",
}
QUICK = "/usr/local/etc/quick.toml"
BAD = {
    "prints-error": "echo 'Error: no way'",
    "exits-1": "echo sorry >&2; exit 1",
    "hangs": "exec sleep 1000",
    "ignores-term": "trap '' TERM; while :; do sleep 1000; done",
    "floods": "yes 'what a lot' | head -c 20000000; exit 1",
    "prints-binary": "head -c 100000 /dev/urandom; exit 3",
    "leaves-a-child": "sleep 1000 & exit 1",
    "is-killed": "kill -KILL $$",
}


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    for name in ("a", "b"):
        text = '[tool]\ntimeout = "1s"\n[migration]\nmax-blackout = "2s"\n'
        lab[name].path(QUICK).write_text(text)
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, NAME, extra=EMULATED + FPGA)
        yield world
        world.end()


# Those that `make test` tries: one that says so, that never ends, that says too much, that leaves
# something behind.
CORE = {("prints-error", 2), ("ignores-term", 1), ("floods", 2), ("leaves-a-child", 2)}


@pytest.mark.parametrize(
    ("bad", "step"),
    [
        pytest.param(bad, step, marks=() if (bad, step) in CORE else pytest.mark.matrix)
        for bad in BAD
        for step in (1, 2)
    ],
)
def test_fault_of_a_tool(world: World, bad: str, step: int) -> None:
    tool = world.tool(f'[ "$type$step$recover" != vtpm{step}no ] || {{ {BAD[bad]}; }}')
    run = world.migrate("--tool", str(tool), "--config", QUICK)
    world.stayed(run)
    assert run.finished["message"], str(run)
    assert said(run).isprintable()
    recoveries = {call[1]: int(call[3]) for call in tool.calls() if call[-1] == "-recover"}
    assert set(recoveries) == set(TYPES), tool.calls()
    assert recoveries["vtpm"] == step - 1
    assert set(recoveries.values()) <= {step - 1, step}
    assert {TYPES[kind]: told for kind, told in recoveries.items()} == run.recovered
    [failed] = run.of("rollback-started")
    # Where the blackout's budget has run out, the reason names who was not ready.
    assert "tpm/tpm0" in failed["device"] + failed["reason"], str(run)


def said(run: Run) -> str:
    """All that the tools said, and what was said of them."""
    lines = [one["line"] for one in run.of("tool-said")]
    assert sum(map(len, lines)) < 200_000
    return "".join([*lines, run.finished["message"]])


def test_the_arguments_of_2006(world: World) -> None:
    tool = world.tool()
    here, there = world.here.name, world.there.name
    world.moved(world.migrate("--tool", f"{tool} 'first word'"))
    calls = tool.calls()
    for kind in TYPES:
        subtype = ["-subtype", "v2"] if kind == "fpga" else []
        of_it = [call for call in calls if call[2] == kind]
        for step, call in enumerate(of_it, start=1):
            words = ["-type", kind, "-step", str(step), "-host", there, "-domname", NAME]
            assert call == ["first word", *words, *subtype]
        assert len(of_it) == 3
    steps = [int(call[4]) for call in calls]
    assert steps == sorted(steps)
    assert world.here.name != here


def test_a_tool_for_one_class_and_step_0(world: World) -> None:
    """From a file; and what the tool refuses at step 0 is a refusal."""
    tool = world.tool('[ "$step" != 0 ] || { echo "Error: not today"; exit 1; }')
    config = "/usr/local/etc/tpm.toml"
    world.here.path(config).write_text(f'[tool]\ntpm = "{tool}"\ncall-at-test = true\n')
    run = world.migrate("--config", config)
    world.stayed(run, status=3)
    assert "not today" in run.refusals["tpm/tpm0"]
    # No tool is named for what only a tool can move.
    assert "external/fpga0" in run.refusals
    assert [call[1] for call in tool.calls() if call[-1] != "-recover"] == ["vtpm"]


def test_a_config_of_xend(world: World) -> None:
    """Its tool is for TPMs alone; without one the FPGA is refused, and nothing is called."""
    tool = world.tool()
    config = "/usr/local/etc/xend-config.sxp"
    world.here.path(config).write_text(f"(external-migration-tool '{tool}')\n")
    run = world.migrate("--config", config)
    world.stayed(run, status=3)
    assert set(run.refusals) == {"external/fpga0"}
    assert tool.calls() == []


@pytest.mark.matrix
def test_recover_knows_a_tool_of_another_file(world: World) -> None:
    """The migration had its settings from a file that nobody names any more."""
    tool = world.tool()
    config = "/usr/local/etc/once.toml"
    world.here.path(config).write_text(f'[tool]\ncommand = "{tool}"\n')
    with world.under("source.step-started.2", options=("--config", config)) as under:
        under.wait("source.step-started.2")
        under.process.kill()
    world.here.run(["rm", config])
    done = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert done.returncode == 0, done
    told = {call[1] for call in tool.calls() if call[-1] == "-recover"}
    assert told == set(TYPES)
    world.is_as_before()


def test_a_tool_that_is_not_there(world: World) -> None:
    run = world.migrate("--tool", "/usr/local/sbin/nothing")
    world.stayed(run, status=3)
    assert set(run.refusals) == set(TYPES.values())
    assert all("/usr/local/sbin/nothing" in reason for reason in run.refusals.values())
