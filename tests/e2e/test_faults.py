"""Each process and each host dies at chosen points; then ``recover``, then a move that succeeds.

What is to come of it is written down beforehand, in ``faults/matrix.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from lab import settings
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.dying import recover
from tests.e2e.faults import table
from tests.e2e.faults.inflict import Fault
from tests.e2e.faults.matrix import POINTS, Case, cases
from tests.e2e.run import Run
from tests.e2e.world import KEPT, World

SETTINGS = "/etc/entourage/entourage.toml"
QUICK = f"""
[tool]
external = "/usr/local/sbin/move-it"
call-at-test = true
[migration]
link-silence = "3s"
doubt-timeout = "5s"
{settings.SETTINGS}"""
FPGA = """
[[external]]
id = "fpga0"
type = "fpga"
"""
FILES = ("/srv/disk0.raw", "/srv/filler", "/etc/clock")
SLOWLY = ("--bandwidth", "4MiB/s")
BUDGET = 2  # seconds


class Ground:
    """The guest that all cases share; after one that failed a new one, on new hosts."""

    def __init__(self, lab: Lab, observer: Observer) -> None:
        self._lab = lab
        self._observer = observer
        self._number = 0
        self.world = self._begin()
        self.sound = True

    def stand(self) -> World:
        """A guest that is well, on hosts that have nothing else on them."""
        if not self.sound:
            self._lab.mend_all()
            for host in (self._lab["a"], self._lab["b"]):
                if host.is_on:
                    host.power_cut()
                host.power_on()
                host.run(["find", "/var/lib/entourage", "-mindepth", "1", "-delete"])
                host.run(["rm", "-f", *FILES])
            self.world = self._begin()
        self.sound = False
        return self.world

    def _begin(self) -> World:
        self._number += 1
        name = f"web{self._number}"
        return World.begin(self._lab, self._observer, name, extra=FPGA, allocated=True)


@pytest.fixture(scope="module")
def ground(lab: Lab) -> Generator[Ground]:
    hosts = (lab["a"], lab["b"])
    for host in hosts:
        host.config.files[SETTINGS] = QUICK
        host.write_files({SETTINGS: QUICK})
    with Observer.start(lab) as seen:
        ground = Ground(lab, seen)
        yield ground
        ground.stand().end()
    for host in hosts:
        host.config.files[SETTINGS] = settings.SETTINGS
        host.write_files({SETTINGS: settings.SETTINGS})


@pytest.fixture(scope="module")
def seen(pytestconfig: pytest.Config) -> Generator[list[table.Row]]:
    rows: list[table.Row] = []
    yield rows
    if path := pytestconfig.getoption("faults_table"):
        table.write(Path(path), rows)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_fault(ground: Ground, seen: list[table.Row], case: Case) -> None:
    world = ground.stand()
    point = POINTS[case.point]
    on_source, on_target = ([point], []) if point.startswith("source.") else ([], [point])
    options = SLOWLY if case.point == "pre-copy" else ()
    options += ("--max-blackout", f"{BUDGET}s") if case.frozen else ()
    source, target = world.here, world.there
    fault = Fault(world, case.fault, case.point)
    run: Run | None = None
    with world.under(
        *on_source, options=options, on_target=on_target, env=fault.environment
    ) as under:
        under.wait(point)
        began = world.seen.mark()
        fault.inflict(under)
        under.open()
        fault.passed_on(under)
        with contextlib.suppress(ValueError):  # it was killed in the middle of a line
            run = under.end()
    fault.over()
    # Either order must do; the target first is the harder one.
    waits = recover(target)
    said = recover(source) + (recover(target) if waits else "")
    assert not said, f"{said}\n{run}"
    owner = world.find()
    assert owner in case.owners, f"{owner} has it\n{run}"
    if owner == "target":
        world.here, world.there = target, source
    lives = case.survives or world.is_well()
    if lives:
        world.lives()
    else:
        world.restart()
    out = world.seen.longest_gap(began).seconds
    left = world.there.wait_clean(world.clean[world.there.name], ignore=KEPT)
    status = run.status if run and run.status >= 0 else None
    seen.append(table.Row(case, status, owner, lives, out, str(left)))
    assert not case.in_budget or out < BUDGET + 1, f"{out} s without the guest\n{run}"
    assert not left, f"left over on {world.there.name}:\n{left}\n{run}"
    world.moved(world.migrate())
    ground.sound = True
