"""The lab itself tells the truth."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.guest import RECORD, Disk, Guest, disk_sequences
from lab.handmade import HandMadeGuest
from lab.host import REPOSITORY
from lab.hosts import Lab
from lab.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.host import Host

# Hosts ----------------------------------------------------------------------------------------


def test_a_host_is_a_machine_of_its_own(a: Host, b: Host) -> None:
    a.run(["sh", "-c", "echo here | tee /srv/x /etc/x /root/x /var/lib/entourage/x >/dev/null"])
    assert a.run(["cat", "/etc/x"]).stdout == "here\n"
    assert b.run(["cat", "/srv/x", "/etc/x", "/root/x"], check=False).stdout == ""
    assert not Path("/etc/x").exists()
    assert not Path("/srv/x").exists()
    assert a.run(["hostname"]).stdout == "a\n"
    assert a.run(["cat", "/etc/machine-id"]).stdout != b.run(["cat", "/etc/machine-id"]).stdout
    processes = a.run(["ps", "-e", "-o", "comm="]).stdout.split()
    assert "sshd" in processes
    assert "pytest" not in processes


def test_ssh_works_without_a_question_and_checks_the_host_key(a: Host) -> None:
    assert a.run(["ssh", "b", "hostname; command -v entourage"]).stdout.splitlines() == [
        "b",
        f"{sys.prefix}/bin/entourage",
    ]
    known = a.path("/root/.ssh/known_hosts")
    right = known.read_text()
    known.write_text(right.replace("b,10.77.0.2", "nobody"))
    try:
        refused = a.run(["ssh", "b", "hostname"], check=False)
    finally:
        known.write_text(right)
    assert refused.returncode == 255
    assert "verification failed" in refused.stderr


def test_signals_reach_the_program(a: Host) -> None:
    program = a.popen(
        ["sh", "-c", "trap 'echo caught; exit 7' TERM; echo up; sleep 9 >/dev/null 2>&1 & wait"]
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    program.terminate()
    assert program.communicate(timeout=5)[0] == "caught\n"
    assert program.returncode == 7


def test_a_timeout_ends_the_program(a: Host) -> None:
    before = a.snapshot()
    with pytest.raises(subprocess.TimeoutExpired):
        a.run(["sleep", "30"], timeout=0.2)
    assert not a.leftovers(before)


def test_another_lab_beside_it(lab: Lab, b: Host) -> None:
    with Lab.up(hosts=("a",), name=f"beside-{os.getpid()}") as other:
        assert other["a"].address == lab["a"].address
        assert other["a"].run(["hostname"]).stdout == "a\n"
        unknown = other["a"].run(["ssh", "-o", "ConnectTimeout=1", b.address, "true"], check=False)
        assert unknown.returncode == 255


def test_nothing_is_left_of_a_killed_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lab.hosts import Lab\n"
        "lab = Lab.up(hosts=('a',), name='killed', state_dir=Path(sys.argv[1]))\n"
        "print(*(host.init_pid for host in lab.hosts.values()), flush=True)\n"
        "lab['a'].popen(['sleep', '600'])\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        pids = [int(word) for word in run.stdout.readline().split()]
        assert run.stdout.readline() == "ready\n"
        backing = f"{tmp_path}/killed/hosts/a/disk.img"
        assert backing in loop_backings()
        run.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    wait_until(lambda: backing not in loop_backings())
    with Lab.up(hosts=(), name="next", state_dir=tmp_path):
        assert not (tmp_path / "killed").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def loop_backings() -> set[str]:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return {file.read_text().strip() for file in files}


def wait_until(condition: object, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Power and wires ------------------------------------------------------------------------------


def test_a_power_cut_loses_what_was_not_flushed(a: Host, b: Host) -> None:
    b.run(["sh", "-c", "echo kept >/srv/kept; sync /srv/kept /srv; echo lost >/srv/lost"])
    assert b.run(["cat", "/srv/lost"]).stdout == "lost\n"
    b.popen(["sleep", "600"], stdout=None, stderr=None)
    b.power_cut()
    assert not b.is_on
    b.power_on()
    assert b.run(["cat", "/srv/kept"]).stdout == "kept\n"
    assert "lost" not in b.run(["ls", "/srv"]).stdout.split()
    assert "sleep" not in b.run(["ps", "-e", "-o", "comm="]).stdout.split()
    assert a.run(["ssh", "b", "hostname"]).stdout == "b\n"


def listener_on(host: Host, port: int) -> socket.socket:
    listener = host.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host.address, port))
    listener.listen()
    return listener


def connection_between(a: Host, b: Host, port: int) -> tuple[socket.socket, socket.socket]:
    with listener_on(b, port) as listener:
        left = a.socket()
        left.settimeout(2)
        left.connect((b.address, port))
        right, _ = listener.accept()
        right.settimeout(0.3)
    return left, right


def test_nobody_hears_of_a_power_cut(a: Host, b: Host) -> None:
    program = (
        "import socket; s = socket.create_connection(('a', 7)); print('up', flush=True); s.recv(1)"
    )
    with listener_on(a, 7) as listener:
        b.popen([sys.executable, "-c", program], stdout=None, stderr=None)
        connection, _ = listener.accept()
    with connection:
        b.power_cut()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    b.power_on()


def test_drop_loses_packets_silently_and_one_way_only_if_asked(lab: Lab, a: Host, b: Host) -> None:
    left, right = connection_between(a, b, 7000)
    with left, right:
        lab.cut("a", "b", direction="a-b")
        left.send(b"x")
        right.send(b"y")
        assert left.recv(1) == b"y"
        with pytest.raises(TimeoutError):
            right.recv(1)
        lab.mend("a", "b")
        right.settimeout(5)
        assert right.recv(1) == b"x"  # sent again by TCP: nothing but packets was lost
        lab.cut("a", "b")
        with a.socket() as late:
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect((b.address, 22))
        lab.mend("a", "b")


def test_traffic_can_be_cut_apart(lab: Lab, a: Host, b: Host) -> None:
    left, right = connection_between(a, b, 7000)
    with left, right:
        lab.cut("a", "b", traffic="data")
        left.send(b"x")
        with pytest.raises(TimeoutError):
            right.recv(1)
        assert a.run(["ssh", "b", "hostname"]).stdout == "b\n"
        lab.mend("a", "b")
        lab.cut("a", "b", traffic="ssh")
        right.settimeout(5)
        assert right.recv(1) == b"x"
        assert a.run(["ssh", "-oConnectTimeout=1", "b", "true"], check=False).returncode == 255
        lab.mend("a", "b")


def test_reset_resets_and_refuses(lab: Lab, a: Host, b: Host) -> None:
    left, right = connection_between(a, b, 7000)
    with left, right:
        lab.cut("a", "b", how="reset")
        for end in (left, right):
            with pytest.raises(ConnectionError):
                end.recv(1)
        with a.socket() as late:
            late.settimeout(2)
            with pytest.raises(ConnectionRefusedError):
                late.connect((b.address, 22))
        lab.mend("a", "b")
        assert a.run(["ssh", "b", "hostname"]).stdout == "b\n"


# Leftovers ------------------------------------------------------------------------------------


def test_leftovers_of_every_kind_are_seen(b: Host) -> None:
    before = b.snapshot()
    assert not b.leftovers(before)
    b.run(["ip", "tuntap", "add", "dev", "tap-left", "mode", "tap"])
    b.run(["touch", "/srv/left.raw", "/run/keys.psk"])
    sleeper = b.popen(["sleep", "600"])
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('/run/left.sock'); s.listen()\n"
        "t = socket.socket(); t.bind(('', 4444)); t.listen()\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    server = b.popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    left = b.leftovers(before, ignore=["/run/*.psk"])
    assert left.interfaces == ("tap-left",)
    assert left.files == ("/run/left.sock", "/srv/left.raw")
    assert left.sockets == ("/run/left.sock",)
    assert left.ports == ("tcp 4444",)
    assert [text.split()[1] for text in left.processes] == ["sleep", sys.executable]
    assert "/run/keys.psk" in b.leftovers(before).files
    for process in (sleeper, server):
        process.kill()
        process.communicate()
    b.run(["ip", "link", "delete", "dev", "tap-left"])
    b.run(["rm", "/srv/left.raw", "/run/keys.psk", "/run/left.sock"])
    assert not b.wait_clean(before), str(b.leftovers(before))


# Guest and observer ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(lab: Lab) -> Generator[Observer]:
    with Observer.start(lab) as observer:
        yield observer


@pytest.fixture(scope="module")
def machine(lab: Lab, seen: Observer) -> Generator[HandMadeGuest]:
    disks = [Disk("/srv/one.raw"), Disk("/srv/two.qcow2", "qcow2")]
    for disk in disks:
        disk.create(lab["a"])
    with HandMadeGuest(lab["a"], "by-hand", disks=disks) as machine:
        try:
            seen.wait_for(lambda report: report.up and len(report.acked) == 2, 60)
        except TimeoutError as error:
            error.add_note(lab["a"].path(machine.serial).read_text(errors="replace"))
            raise
        yield machine


@pytest.mark.usefixtures("machine")
def test_the_guest_writes_and_says_so(seen: Observer, lab: Lab) -> None:
    seen.wait_progress()
    report = seen.report()
    assert report.boots == (report.boot,)
    assert not report.errors
    status = Guest(lab).status()
    assert status.boot == report.boot
    assert status.ticks >= report.ticks
    assert set(status.disks) == {"vda", "vdb"}


def test_a_stopped_guest_is_a_gap(machine: HandMadeGuest, seen: Observer) -> None:
    seen.wait_answer()
    mark = seen.mark()
    machine.qmp("stop")
    time.sleep(0.3)  # the gap to be seen
    machine.qmp("cont")
    seen.wait_answer()
    gap = seen.longest_gap(mark)
    assert 0.28 < gap.seconds < 0.6
    assert gap.lost <= gap.sent
    assert gap.send_pause < 0.1
    seen.wait_progress()
    assert not seen.report().errors


def test_acknowledged_writes_are_in_the_images(
    machine: HandMadeGuest, seen: Observer, lab: Lab
) -> None:
    seen.wait_progress()
    machine.qmp("stop")
    for disk, path, kind in (
        ("vda", "/srv/one.raw", "raw"),
        ("vdb", "/srv/two.qcow2", "qcow2"),
    ):
        records = disk_sequences(lab["a"].path(path), kind)
        assert records.disk == disk
        assert records.boot == seen.report().boot
        assert records.last >= seen.acked()[disk] > 0
        assert records.missing == ()
    machine.qmp("cont")
    assert Guest(lab).pause_writes().paused
    assert not Guest(lab).resume_writes().paused
    seen.wait_progress()


@pytest.mark.usefixtures("machine")
def test_the_tpm_keeps_registers_and_counts(lab: Lab) -> None:
    first = Guest(lab).tpm()
    assert int(first.pcr16, 16) == 0
    assert int(first.pcr23, 16) != 0
    assert first.nv >= 1
    second = Guest(lab).nv_increment()
    assert second.nv == first.nv + 1
    assert second.pcr23 == first.pcr23


@pytest.mark.matrix
def test_a_reboot_does_not_go_unnoticed(machine: HandMadeGuest, seen: Observer, lab: Lab) -> None:
    before = seen.report()
    counted = Guest(lab).tpm()
    machine.qmp("system_reset")
    after = seen.wait_for(lambda report: report.boot != before.boot and bool(report.acked), 60)
    assert after.boots == (before.boot, after.boot)
    assert after.ticks < before.ticks
    seen.wait_for(lambda report: report.up, 60)
    assert Guest(lab).tpm().nv == counted.nv + 1
    assert Guest(lab).tpm().pcr23 != counted.pcr23


def record(number: int, boot: str = "b1") -> bytes:
    return f"entourage-lab vda {number} {boot}".encode().ljust(RECORD - 1) + b"\n"


def test_missing_writes_are_found(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * RECORD)
        assert disk_sequences(image).last == -1
        for number in (0, 1, 2, 4, 5):
            file.seek(number * RECORD)
            file.write(record(number))
        file.seek(6 * RECORD)
        file.write(record(6, "another boot"))
        file.seek(7 * RECORD)
        file.write(record(7)[:2000])  # torn
    records = disk_sequences(image)
    assert (records.last, records.missing) == (5, (3,))


def test_writes_go_round(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        for number in range(10):
            file.seek(number % 4 * RECORD)
            file.write(record(number))
    records = disk_sequences(image)
    assert (records.last, records.missing) == (9, ())


def test_a_process_of_the_lab_obeys_kill_while_stopped(a: Host) -> None:
    program = a.popen(["sleep", "600"], stdout=None, stderr=None)
    program.send_signal(signal.SIGSTOP)
    program.kill()
    assert program.wait(5) == -signal.SIGKILL
