"""A host is emptied: what can move has moved, and of what cannot it is said why."""

from __future__ import annotations

import json
import signal

import pytest

from tests.e2e.fleet.world import GUESTS, SPARE, FleetWorld, ended

SLOWLY = ("--bandwidth", "8MiB/s")
"""So that a move lasts some seconds: what is done meanwhile is a command, and takes one as well."""


def test_a_host_is_emptied_and_what_cannot_move_stays(world: FleetWorld) -> None:
    """One guest is on a bridge that only its host has; c has room for one; d is closed.

    And who controls is killed in the middle, and the campaign gone on with.
    """
    a = world.lab["a"]
    a.run(["ip", "link", "add", SPARE, "type", "bridge"])
    a.run(["ip", "link", "set", SPARE, "up"])
    world.start("web9", bridge=SPARE)
    world.settings("c", 'domains-memory = "130MiB"\narrivals = 1')
    assert world.run("cordon", "--reason", "its fan is loud", host="d").status == 0
    process = world.begin_run("evacuate", "a", "--name", "empty-a", "--at-once", "2")
    world.wait_until_one_moves("empty-a")
    process.send_signal(signal.SIGKILL)
    said = ended(process).stderr
    assert "web9 stays on a" in said
    assert f"there is no bridge {SPARE}" in said
    assert "d: it takes no domains (cordon by-hand)" in said
    run = world.run("campaign", "resume", "empty-a")
    assert run.status == 4, str(run)
    assert set(world.moves("empty-a").values()) == {"moved"}
    where = world.where()
    assert where.pop("web9") == "a"
    assert sorted(where) == sorted(GUESTS)
    assert "a" not in where.values(), str(run)
    assert "d" not in where.values(), str(run)
    assert list(where.values()).count("c") <= 1, str(run)
    assert world.run("uncordon", host="d").status == 0
    world.check()
    assert a.run(["entourage", "stop", "web9", "--force"]).returncode == 0
    a.run(["ip", "link", "delete", SPARE])


@pytest.mark.matrix
def test_what_is_emptied_takes_nothing_meanwhile(world: FleetWorld) -> None:
    moved = world.run("migrate", "web3", "b")
    assert moved.status == 0, str(moved)
    process = world.begin_run("evacuate", "a", "--name", "closed-a", "--at-once", "1")
    world.wait_until_one_moves("closed-a")
    back = world.run("migrate", "web3", "a", "--json", host="b")
    assert back.status == 3, str(back)
    assert "it takes no domains (cordon closed-a" in str(back.refusals["domain"])
    run = ended(process)
    assert run.status == 0, str(run)
    world.check()


@pytest.mark.matrix
def test_ctrl_c_pauses_and_it_is_gone_on_with(world: FleetWorld) -> None:
    process = world.begin_run("evacuate", "a", "--name", "paused", "--at-once", "1")
    world.wait_until_one_moves("paused")
    process.send_signal(signal.SIGINT)
    run = ended(process)
    assert run.status == 4, str(run)
    assert "entourage campaign resume paused" in run.stdout
    moves = world.moves("paused")
    assert "moves" not in moves.values()
    assert "waits" in moves.values()
    run = world.run("campaign", "resume", "paused")
    assert run.status == 0, str(run)
    world.check()


@pytest.mark.matrix
@pytest.mark.parametrize("take_back", [False, True])
def test_it_is_aborted_from_another_terminal(world: FleetWorld, *, take_back: bool) -> None:
    name = "taken-back" if take_back else "aborted"
    options = ("--take-back",) if take_back else ()
    process = world.begin_run("evacuate", "a", "--name", name, "--at-once", "1", *SLOWLY)
    world.wait_until_one_moves(name)
    run = world.run("campaign", "abort", name, *options)
    assert run.status == 0, str(run)
    run = ended(process)
    assert run.status == 4, str(run)
    moves = world.moves(name)
    assert "moves" not in moves.values()
    assert "waits" in moves.values()
    if take_back:
        assert set(moves.values()) == {"waits"}, str(run)
    world.check(away=False)
    run = world.run("campaign", "retry", name)
    assert run.status == 0, str(run)
    world.check()


@pytest.mark.matrix
def test_all_move_by_name_and_what_was_evacuated_comes_home(world: FleetWorld) -> None:
    """What was moved by name is at home where it is then; only an evacuation is undone."""
    run = world.run("migrate", "--all", "b", "--at-once", "2")
    assert run.status == 0, str(run)
    assert set(world.where().values()) == {"b"}
    run = world.run("evacuate", "b", "--to", "c,d", "--order", "name")
    assert run.status == 0, str(run)
    assert set(world.where().values()) <= {"c", "d"}
    host = world.where()["web3"]
    run = world.run("migrate", "web3*", "d" if host == "c" else "c", host=host)
    assert run.status == 0, str(run)
    run = world.run("restore-home", "a")
    assert run.status == 0, str(run)
    assert "nothing of a runs elsewhere" in run.stdout
    run = world.run("restore-home", "b", "--dry-run")
    assert run.status == 0, str(run)
    assert "b" not in world.where().values()
    run = world.run("restore-home", "b")
    assert run.status == 0, str(run)
    assert set(world.where().values()) == {"b"}
    world.check()


@pytest.mark.matrix
def test_a_plan_that_was_changed_is_carried_out(world: FleetWorld) -> None:
    """What it leaves out stays, and that is told."""
    run = world.run("plan", "a", "--json")
    assert run.status == 0, str(run)
    plan = json.loads(run.stdout)
    for move in plan["moves"]:
        move["target"] = "d"
    *plan["moves"], left = plan["moves"]
    world.lab["a"].write_files({"/root/plan.json": json.dumps(plan)})
    run = world.run("evacuate", "--plan", "/root/plan.json", "--name", "changed")
    assert run.status == 4, str(run)
    assert f"{left['name']} stays on a:\n  ✗ the plan does not move it" in run.stderr, str(run)
    where = world.where()
    assert {where[move["name"]] for move in plan["moves"]} == {"d"}
    assert where[left["name"]] == "a"
    world.check(away=False)


@pytest.mark.matrix
def test_two_campaigns_that_cross(world: FleetWorld) -> None:
    """What one moves away from its host must not be where the other one goes."""
    for name in GUESTS[:1]:
        run = world.run("migrate", name, "b")
        assert run.status == 0, str(run)
    both = [
        world.begin_run("evacuate", host, "--to", "c,d", "--name", f"cross-{host}")
        for host in ("a", "b")
    ]
    runs = [ended(process) for process in both]
    assert [run.status for run in runs] == [0, 0], "\n".join(map(str, runs))
    assert set(world.where().values()) <= {"c", "d"}
    world.check()


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["b", "a"])
def test_the_power_of_a_host_is_cut(world: FleetWorld, host: str) -> None:
    """The target's: what was on its way there goes elsewhere. The source's: nothing is lost."""
    process = world.begin_run(
        "evacuate", "a", "--to", "b,c", "--name", f"cut-{host}", "--at-once", "1", *SLOWLY, host="d"
    )
    try:
        world.wait_until_one_moves(f"cut-{host}", host="d")
        world.lab[host].power_cut()
        run = ended(process, 280)  # its source is asked again and again
    finally:
        if not world.lab[host].is_on:
            world.lab[host].power_on()
    where = world.where()
    assert not [name for name, on in where.items() if "+" in on], f"{where}\n{run}"
    world.is_spent = True
    if host == "b":
        assert set(where) == set(GUESTS), f"{where}\n{run}"


@pytest.mark.matrix
def test_the_power_of_the_controllers_host_is_cut(world: FleetWorld) -> None:
    """It has no guest: what moves goes on, and the campaign once that host is there again."""
    words = ("evacuate", "a", "--to", "b,c", "--name", "dark", "--at-once", "1")
    process = world.begin_run(*words, host="d")
    world.wait_until_one_moves("dark", host="d")
    world.lab["d"].power_cut()
    ended(process)
    world.lab["d"].power_on()
    run = world.run("campaign", "resume", "dark", host="d")
    assert run.status == 0, str(run)
    assert set(world.moves("dark", host="d").values()) == {"moved"}
    world.check()
