"""A libvirt domain is saved into a directory and restored: here, there, and in one place only."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.saved import (
    CODE,
    DIR,
    DISK,
    OTHER,
    PART,
    TEMPLATE,
    UEFI,
    forget,
    is_gone,
    lives,
    module_world,
    names,
    partial,
    ready,
    reasons,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import save_without_room
from tests.e2e.shared import SHARED
from tests.e2e.world import other_bridge

__all__ = ["module_world", "ready"]


def test_twice_in_a_row(ready: LibvirtWorld) -> None:
    world = ready
    saved = save(world)
    assert saved.status == 0, str(saved)
    assert not saved.of("warned"), str(saved)
    is_gone(world)
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert f"entourage restore {DIR}" in refused.stderr
    went_on(world, restore(world))
    again = restore(world)
    assert again.status == 3, str(again)
    assert f"it was restored on {world.here.name}" in reasons(again), str(again)
    assert save(world, OTHER).status == 0
    is_gone(world, OTHER)
    went_on(world, restore(world, OTHER))


@pytest.mark.matrix
def test_on_the_other_host(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world).status == 0
    shown = json.loads(world.there.run(["entourage", "saved", "--json", SHARED]).stdout)
    assert [(one["domain"], one["host"], one["against"]) for one in shown] == [
        (world.name, world.here.name, [])
    ]
    done = restore(world, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    forget(world, world.there)
    lives(world)
    lost = restore(world, host=world.there)
    assert lost.status == 3, str(lost)
    assert f"it was restored on {world.here.name}" in reasons(lost), str(lost)


@pytest.mark.matrix
def test_on_a_host_with_another_bridge(ready: LibvirtWorld) -> None:
    """The definition that is written down there has it too; and it moves on as any domain."""
    world = ready
    assert save(world).status == 0
    with other_bridge(world.there):
        refused = restore(world, host=world.there)
        assert "there is no bridge br0" in refused.refusals["net/net0"], str(refused)
        done = restore(world, DIR, "--net", "br0=br7", host=world.there)
        assert done.status == 0, str(done)
        world.here, world.there = world.there, world.here
        forget(world, world.there)
        lives(world)
        shown = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
        assert "bridge='br7'" in shown, shown
        done = world.migrate("--tool", str(world.tool()), "--net", "br7=br0")
        assert done.status == 0, str(done)
    world.arrived()


@pytest.mark.matrix
@pytest.mark.skipif(not Path(CODE).exists(), reason="OVMF is not installed")
@pytest.mark.parametrize("how", ["written", "sent"])
def test_uefis_variables_are_in_the_save(ready: LibvirtWorld, how: str) -> None:
    """They come back where their file was lost, or is older than memory."""
    host = ready.here
    variables = f"{SHARED}/uefi-vars.fd"
    template = Path(TEMPLATE).read_bytes()[:PART]
    daemon = Libvirtd(host)
    host.path("/root/uefi.xml").write_text(UEFI.format(variables=variables))
    daemon.virsh("define", "/root/uefi.xml")
    daemon.virsh("start", "uefi")
    try:
        deadline = time.monotonic() + PATIENCE
        while host.path(variables).read_bytes()[:PART] == template:
            assert time.monotonic() < deadline, "the firmware has written nothing"
            time.sleep(0.1)  # nothing tells that a firmware has come so far
        options = ["--compress"] if how == "sent" else []
        host.run(["entourage", "save", *options, "uefi", DIR], timeout=PATIENCE)
        host.run(["cp", TEMPLATE, variables])
        host.run(["entourage", "restore", DIR], timeout=PATIENCE)
        assert host.path(variables).read_bytes()[:PART] != template
    finally:
        daemon.virsh("destroy", "uefi", check=False)
        daemon.virsh("undefine", "--nvram", "uefi")
        host.run(["rm", "-f", "/root/uefi.xml"])


@pytest.mark.matrix
def test_a_transient_domain(ready: LibvirtWorld) -> None:
    """It is transient wherever it is restored; what it was defined with is nobody's business."""
    world = ready
    daemon = Libvirtd(world.here)
    kept = daemon.virsh("dumpxml", "--inactive", "--security-info", world.name).stdout
    daemon.virsh("undefine", "--keep-tpm", world.name)
    assert save(world).status == 0
    assert world.domains(world.here) == {}
    done = restore(world)
    assert done.status == 0, str(done)
    assert daemon.virsh("dominfo", world.name).stdout.count("Persistent:     no") == 1
    world.lives()
    world.here.path("/root/kept.xml").write_text(kept)
    daemon.virsh("define", "/root/kept.xml")
    world.here.path("/root/kept.xml").unlink()
    daemon.virsh("autostart", world.name)


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world).status == 0
    done = restore(world, DIR, "--paused")
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    done = save(world, OTHER)
    assert done.status == 0, str(done)
    done = restore(world, OTHER)
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    lives(world)


@pytest.mark.matrix
def test_a_paused_guest_that_is_not_saved_stays_paused(ready: LibvirtWorld) -> None:
    world = ready
    Libvirtd(world.here).virsh("suspend", world.name)
    done = save_without_room(world.here, saving(world), None)
    assert done.status == 4, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    lives(world)


@pytest.mark.matrix
def test_what_has_changed_is_refused(ready: LibvirtWorld) -> None:
    """A disk that was written to; a definition that was started meanwhile."""
    world = ready
    assert save(world).status == 0
    disk = world.here.path(DISK.path)
    was = disk.stat()
    world.here.run(["touch", DISK.path])
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/vda"], str(refused)
    os.utime(disk, ns=(was.st_mtime_ns, was.st_mtime_ns))
    went_on(world, restore(world))


@pytest.mark.matrix
def test_what_cannot_be_saved(ready: LibvirtWorld) -> None:
    world = ready
    daemon = Libvirtd(world.here)
    daemon.virsh("checkpoint-create-as", world.name, "before")
    refused = save(world)
    daemon.virsh("checkpoint-delete", world.name, "before")
    assert refused.status == 3, str(refused)
    assert "checkpoints of it (before)" in refused.refusals["domain"], str(refused)
    assert "virsh checkpoint-delete" in refused.refusals["domain"], str(refused)
    lives(world)
    assert not partial(world)


@pytest.mark.matrix
def test_no_room(ready: LibvirtWorld) -> None:
    """A disk that fills up while memory is written: the guest goes on, and nothing is left.

    Its own disk is there as well: QEMU stops it before what was saved is removed.
    """
    world, daemon = ready, Libvirtd(ready.here)

    def wants_room() -> bool:
        asked = ("qemu-monitor-command", world.name, '{"execute": "query-status"}')
        status = json.loads(daemon.virsh(*asked).stdout)["return"]["status"]
        why = daemon.virsh("domstate", "--reason", world.name).stdout.strip()
        return (status, why) == ("io-error", "paused (I/O error)")

    done = save_without_room(world.here, saving(world), wants_room)
    assert done.status == 4, str(done)
    assert "libvirt cannot save it" in done.finished["message"], str(done)
    assert not partial(world)
    assert not world.here.path(DIR).exists()
    lives(world)


def saving(world: LibvirtWorld) -> list[str]:
    return ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]


@pytest.mark.matrix
def test_a_directory_that_is_taken_in_the_last_moment(ready: LibvirtWorld) -> None:
    """The rename fails when GO stands: the domain, which is still there, goes on."""
    world, point = ready, "target.after.flush-go"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        world.here.run(["mkdir", DIR])
        world.here.run(["touch", f"{DIR}/mine"])
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert names(world.here, DIR) == ["mine"]
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_what_would_be_done(ready: LibvirtWorld) -> None:
    """Both commands say so, and touch nothing."""
    world = ready
    would = save(world, DIR, "--dry-run")
    assert would.status == 0, str(would)
    [planned] = would.of("planned")
    erased = {one["device"]: one["erased"] for one in planned["devices"] if one["erased"]}
    assert not erased, planned
    assert not world.here.path(DIR).exists()
    lives(world)
    assert save(world).status == 0
    would = restore(world, DIR, "--dry-run")
    assert would.status == 0, str(would)
    is_gone(world)
    went_on(world, restore(world))


@pytest.mark.matrix
def test_interrupted_while_memory_is_written(ready: LibvirtWorld) -> None:
    """Ctrl-C: libvirt's job is ended, and the guest goes on."""
    world = ready
    point = "source.step-started.2"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert done.finished["problems"] == [], str(done)
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_a_guest_that_somebody_resumes_is_not_saved(ready: LibvirtWorld) -> None:
    world, point = ready, "source.before.disarm-deadman"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        Libvirtd(world.here).virsh("resume", world.name)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert "somebody has let the guest run on" in done.finished["message"], str(done)
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_a_definition_that_is_started_spends_the_save(ready: LibvirtWorld) -> None:
    """It boots from its disks, as with ``virsh save``; its memory is not let loose on them."""
    world = ready
    assert save(world).status == 0
    world.start_again()
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "here already, running" in refused.refusals["domain"], str(refused)
    Libvirtd(world.here).virsh("destroy", world.name)
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/vda"], str(refused)
    world.start_again()
    lives(world)
