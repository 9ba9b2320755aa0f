"""The transport, the receiver, the engine or the agent dies; then ``recover``."""

from __future__ import annotations

import pytest

from tests.e2e.xen.world import NAME, SETTINGS, XenWorld

TRANSPORT, RECEIVER = r"^\S*python3 -I -m \S*transport", "xl migrate-receive$"
ENGINE, AGENT = r"python3 \S*entourage migrate", r"python3 \S*entourage agent$"
PRE_COPY, LANDED = "source.policy-changed", "source.memory-landed"
HELD, GO_SAID, GO_STANDS = (
    "source.after.disarm-deadman",
    "source.go-sent",
    "target.after.flush-go",
)
HASTY = "/etc/entourage/hasty.toml"


def test_the_transport_is_killed_under_the_stream(world: XenWorld) -> None:
    before = world.lives()
    with world.under(PRE_COPY) as under:
        under.wait(PRE_COPY)
        world.kill(world.here, TRANSPORT)
        run = under.end()
    assert run.status == 4, run
    world.stayed(before)
    assert "nothing" in world.recover(world.here).lower()


def test_the_receiver_is_killed_once_all_of_the_domain_is_there(world: XenWorld) -> None:
    before = world.lives()
    with world.under(LANDED) as under:
        under.wait(LANDED)
        world.kill(world.there, RECEIVER)
        run = under.end()
    # Its copy is whole, and has not run: what it would have done at GO, the agent does.
    world.moved(run, before)


@pytest.mark.matrix
def test_the_engine_is_killed_before_go_and_xl_resumes(world: XenWorld) -> None:
    before = world.lives()
    source = world.here
    with world.under(LANDED) as under:
        under.wait(LANDED)
        world.kill(source, ENGINE)
    # The transport is the deadman: the guest goes on before anybody types anything.
    world.lives(before)
    world.is_quiet(source)
    world.recover(source)
    world.stayed(before)


@pytest.mark.matrix
def test_a_frozen_engine_holds_the_guest_for_its_budget(world: XenWorld) -> None:
    before = world.lives()
    with world.under(LANDED, options=("--max-blackout", "40s")) as under:
        under.wait(LANDED)  # and there it stands, as with kill -STOP
        world.lives(world.tick(world.here))
        run = under.end()
    assert run.status == 4, run
    world.stayed(before)


@pytest.mark.matrix
def test_the_engine_is_killed_at_go_and_recover_finds_out(world: XenWorld) -> None:
    before = world.lives()
    source = world.here
    with world.under(GO_SAID) as under:
        under.wait(GO_SAID)
        # The engine dies with GO on its way: xl's copy stands, renamed, and nobody knows.
        world.kill(source, ENGINE)
        assert list(world.domains(source)) == [f"{NAME}--migratedaway"]
    world.is_quiet(source)
    assert "Domain state is now undefined" in world.log(source)
    world.recover(source)
    world.arrived(before)


def test_the_link_is_cut_before_go_and_recover_brings_it_back(world: XenWorld) -> None:
    before = world.lives()
    source = world.here
    source.write(HASTY, SETTINGS.replace("90s", "5s"))
    with world.under(HELD, options=("--config", HASTY)) as under:
        under.wait(HELD)
        source.run(["ip", "link", "set", "eth1", "down"])
        under.pass_on(HELD)
        run = under.end()
    assert run.status == 6, run
    world.is_quiet(source)
    assert list(world.domains(source)) == [f"{NAME}--migratedaway"]
    # The target heard no GO in time, and decided; the source can only learn of it now.
    world.is_quiet(world.there)
    source.run(["ip", "link", "set", "eth1", "up"])
    world.recover(source)
    world.stayed(before)


@pytest.mark.matrix
def test_the_agent_is_killed_with_go_on_its_disk(world: XenWorld) -> None:
    before = world.lives()
    with world.under(GO_STANDS) as under:
        under.wait(GO_STANDS)
        world.kill(world.there, AGENT)
        run = under.end()
    # The receiver saw the end of its input instead of GO, and could not report that: it ends and
    # leaves its copy, which never ran. GO stands, so the next agent lets it run.
    assert "failed to write success/failure report" in world.log(world.there)
    world.moved(run, before)
