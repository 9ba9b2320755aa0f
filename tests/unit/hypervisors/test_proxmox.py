"""Proxmox VE as a toolstack, with a directory for its cluster's and a stand-in for ``qm``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import subprocess
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts.programs import run
from entourage.hypervisors.attended import proxmox, proxmox_agent, proxmox_files
from entourage.hypervisors.attended.proxmox import ProxmoxToolstack
from entourage.hypervisors.attended.proxmox_notes import Notes
from entourage.hypervisors.attended.toolstack import Note, Shown
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
CONFIG = f"""#its notes: are no key
name: vm1
memory: 2048
smbios1: uuid={UUID.upper()},base64=1
{{}}
[before]
name: another
lock: migrate
"""
QM = """#!/bin/sh
# A STAND-IN for Proxmox's qm: it says what stands beside it.
case "$1" in guest)
    echo "$*" >>"$0.asked"
    read -r status <"$0.status"
    echo "qm: a warning, or what is wrong" >&2
    [ "$status" = 0 ] || exec >&2
    [ "$status" != hangs ] || exec sleep 60
    cat "$0.says"
    exit "$status";;
esac
[ "$1 $2" = "monitor 101" ] || { echo "this is a stand-in for qm" >&2; exit 2; }
echo "Entering QEMU Monitor for VM 101 - type 'help' for help"
while read -r line; do
    echo "$line" >>"$0.asked"
    [ "$line" != quit ] || break
    cat "$0.says" 2>/dev/null
done
"""


def info(*allowed: str) -> str:
    """What an agent says of itself that allows only some of what is needed."""
    names = ("guest-exec", "guest-exec-status", "guest-ping")
    commands = [{"name": name, "enabled": name in allowed} for name in names]
    return json.dumps({"version": "8.0", "supported_commands": commands})


class Node:
    """Node a of a cluster of two."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.qm = place / "bin/qm"
        self.stack = ProxmoxToolstack(place / "etc", place / "run", "a")
        for name in ("etc/nodes/a/qemu-server", "etc/nodes/b/qemu-server", "run", "bin"):
            (place / name).mkdir(parents=True)
        self.qm.write_text(QM)
        self.qm.chmod(0o755)

    def has(self, node: str = "a", more: str = "") -> None:
        (self.place / f"etc/nodes/{node}/qemu-server/101.conf").write_text(CONFIG.format(more))

    def says(self, text: str) -> None:
        Path(f"{self.qm}.says").write_text(text)

    def ends(self, status: int) -> None:
        Path(f"{self.qm}.status").write_text(f"{status}\n")

    @property
    def asked(self) -> list[str]:
        return Path(f"{self.qm}.asked").read_text().splitlines()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    one = Node(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return one


@contextlib.contextmanager
def waiting(*words: str) -> Generator[int]:
    """A process that has these words in its command line; its id."""
    program = ["/usr/bin/python3", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        [*program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
def running(node: Node) -> Generator[None]:
    """A process whose command line is that of the VM's QEMU, as far as is looked at."""
    file = node.place / "run/101.pid"
    with waiting("-pidfile", str(file)) as pid:
        file.write_text(f"{pid}\n")
        yield


async def test_a_vm_is_read(node: Node) -> None:
    """Without what its snapshots say."""
    node.has()
    domain = await node.stack.read(UUID)
    assert (domain.name, domain.uuid, domain.memory) == ("vm1", UUID, 2 << 30)
    assert not await node.stack.migrates(UUID)
    node.has(more="lock: migrate")
    assert await node.stack.migrates(UUID)


async def test_one_that_is_off(node: Node) -> None:
    assert await node.stack.shown(UUID) is Shown.ABSENT
    node.has("b")
    assert await node.stack.shown(UUID) is Shown.ABSENT
    node.has("a")
    (node.place / "etc/nodes/b/qemu-server/101.conf").unlink()
    assert await node.stack.shown(UUID) is Shown.IDLE
    assert await node.stack.running() == []


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ("VM status: running", Shown.RUNNING),
        ("VM status: paused", Shown.PAUSED),
        ("VM status: paused (postmigrate)", Shown.HELD),
        ("VM status: paused (inmigrate)", Shown.HELD),
    ],
)
async def test_one_that_runs(node: Node, says: str, shown: Shown) -> None:
    node.has()
    node.says(f"{says}\n")
    assert await node.stack.shown(UUID) is shown
    assert await node.stack.running() == [UUID]


@pytest.mark.usefixtures("running")
async def test_one_that_comes_is_held(node: Node) -> None:
    """Its configuration is the other node's until all is over."""
    node.has("b")
    assert await node.stack.shown(UUID) is Shown.HELD


async def test_the_object_is_added(node: Node) -> None:
    node.has()
    await node.stack.add_object(UUID, "/run/x.sock")
    assert node.asked == [
        "object_del entourage-attend",
        "quit",
        "object_add dbus-vmstate,id=entourage-attend,addr=unix:path=/run/x.sock,id-list=entourage",
        "quit",
    ]
    node.says("Error: there is another one\x1b[31m\n")
    with pytest.raises(HypervisorError, match="there is another one") as told:
        await node.stack.add_object(UUID, "/run/x.sock")
    assert str(told.value).isprintable()


async def test_a_note_is_every_nodes(node: Node) -> None:
    node.has()
    note = Note(host="a", nonce="00ff")
    await node.stack.write_note(UUID, note)
    there = ProxmoxToolstack(node.place / "etc", node.place / "run", "b")
    coming = await there.arriving('{"vmid": "101", "source": "a"}')
    assert await there.note(UUID) == note
    assert (coming.name, coming.uuid, coming.note) == ("vm1", UUID, note)
    await node.stack.write_note(UUID, None)
    assert await node.stack.note(UUID) is None
    assert (await there.arriving('{"vmid": "101", "source": "a"}')).note is None


async def test_a_note_of_an_earlier_vm_or_node_is_none(node: Node) -> None:
    """Who had that number before, or had the VM, attends nothing."""
    node.has()
    path = node.place / "etc/priv/entourage/101.json"
    await node.stack.write_note(UUID, Note(host="a", nonce="00ff"))
    text = path.read_text()
    for other in (text.replace("0c5e", "1c5e"), text.replace('"a"', '"b"')):
        path.write_text(other)
        assert (await node.stack.arriving('{"vmid": "101", "source": "a"}')).note is None


@pytest.mark.parametrize("gone", ["off", "removed", "another"])
async def test_what_runs_here_no_more_has_no_note(node: Node, gone: str) -> None:
    """The number of a VM that was removed may be given to another one."""
    node.has()
    await node.stack.write_note(UUID, Note(host="a", nonce="00ff"))
    config = node.place / "etc/nodes/a/qemu-server/101.conf"
    if gone == "removed":
        config.unlink()
    elif gone == "another":
        config.write_text(config.read_text().replace("0C5E", "1C5E"))
    await node.stack.clear_notes()
    assert not (node.place / "etc/priv/entourage/101.json").exists()


@pytest.mark.usefixtures("running")
async def test_what_runs_on_keeps_it(node: Node) -> None:
    node.has()
    note = Note(host="a", nonce="00ff")
    await node.stack.write_note(UUID, note)
    await node.stack.clear_notes()
    assert await node.stack.note(UUID) == note


async def test_another_nodes_notes_are_its_own(node: Node) -> None:
    """Also where this node has handed the VM over, and the other one has not yet written."""
    node.has("b")
    for host in ("a", "b"):
        await node.stack.write_note(UUID, Note(host=host, nonce="00ff"))
        await node.stack.clear_notes()
        assert await node.stack.note(UUID) is not None


async def test_users_are_told_of_qm(node: Node) -> None:
    """Which refuses a VM whose configuration is locked, or is another node's."""
    node.has()
    domain = await node.stack.read(UUID)
    told = await node.stack.commands(domain)
    assert told.see == f"qm status 101 || ps -fp $(cat {node.place}/run/101.pid)"
    assert (told.resume, told.abort) == ("qm resume 101",) * 2
    assert told.end == f"kill $(cat {node.place}/run/101.pid)"
    (node.place / "etc/nodes/a/qemu-server/101.conf").unlink()
    told = await node.stack.commands(domain)
    assert (told.resume, told.end) == (
        "qm resume VMID",
        f"kill $(cat {node.place}/run/VMID.pid)",
    )
    node.has("b")
    told = await node.stack.commands(domain)
    assert told.resume == "qm resume 101  # on b, which has its configuration"


@pytest.mark.parametrize("lock", ["migrate", "backup"])
async def test_a_lock_is_not_taken_away_from_a_task_that_is_under_way(
    node: Node, lock: str
) -> None:
    """It would have the other copy run as well."""
    node.has(more=f"lock: {lock}")
    told = await node.stack.commands(await node.stack.read(UUID))
    if lock != "migrate":
        assert told.resume == "qm resume 101"
        return
    node.qm.write_text('#!/bin/sh\necho "$*" >>"$0.asked"\n')
    with waiting("task UPID:a:0001:0002:0003:qmigrate:101:root@pam:"):
        status, _, _ = await run("/bin/bash", "-c", told.resume)
        assert status
    status, _, _ = await run("/bin/bash", "-c", told.resume)
    assert status == 0
    assert node.asked == ["unlock 101", "resume 101"]


@pytest.mark.parametrize("what", ["iterdir", "read_text"])
async def test_a_cluster_whose_process_has_ended_is_told(
    node: Node, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """And is not taken for one without VMs."""
    node.has()
    domain = await node.stack.read(UUID)

    def ended(path: Path, **_how: str) -> str:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))

    monkeypatch.setattr(Path, what, ended)
    for asked in (
        node.stack.shown(UUID),
        node.stack.running(),
        node.stack.read(UUID),
        node.stack.migrates(UUID),
    ):
        with pytest.raises(HypervisorError, match="not connected") as told:
            await asked
        assert told.value.remedy
    assert (await node.stack.commands(domain)).resume == "qm resume VMID"


async def test_what_changes_is_heard_when_the_cluster_is_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxmox, "_LOOK_EVERY", 0)
    node.has()
    changes, failed, seen = node.stack.changes(), asyncio.Event(), Path.iterdir
    loop = asyncio.get_running_loop()

    def ended(path: Path) -> Generator[Path]:
        loop.call_soon_threadsafe(failed.set)
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))

    assert await anext(changes) == ""
    monkeypatch.setattr(Path, "iterdir", ended)
    heard = asyncio.ensure_future(anext(changes))
    await failed.wait()
    monkeypatch.setattr(Path, "iterdir", seen)
    async with asyncio.timeout(10):
        assert await heard == UUID


async def test_a_cluster_that_hangs_is_read_in_a_thread(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all the daemon's guests would wait for it."""
    monkeypatch.setattr(proxmox_files, "ANSWERS_WITHIN", 0.01)
    node.has()
    back = threading.Event()

    def hangs(_path: Path, **_how: str) -> str:
        back.wait()
        raise OSError

    monkeypatch.setattr(Path, "iterdir", hangs)
    monkeypatch.setattr(Path, "read_text", hangs)
    try:
        for asked in (node.stack.running(), node.stack.arriving('{"vmid": "101", "source": "a"}')):
            with pytest.raises(HypervisorError, match="has not answered"):
                await asked
    finally:
        back.set()


async def test_a_note_that_was_given_up_does_not_replace_a_later_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes it goes on once the cluster's file system does."""
    node.has()
    await node.stack.write_note(UUID, None)
    back, write = threading.Event(), Path.write_bytes

    def hangs(path: Path, data: bytes) -> int:
        if b"00ff" in data:
            back.wait()
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", hangs)
    with monkeypatch.context() as patched:
        patched.setattr(proxmox_files, "ANSWERS_WITHIN", 0.01)
        with pytest.raises(HypervisorError, match="has not answered"):
            await node.stack.write_note(UUID, Note(host="a", nonce="00ff"))
    later = Note(host="a", nonce="11ff")
    writing = asyncio.create_task(node.stack.write_note(UUID, later))
    await node.stack.note(UUID)  # by then it would be written, were it not for the first
    back.set()
    await writing
    assert await node.stack.note(UUID) == later


def test_a_note_that_was_written_anew_is_not_cleared(tmp_path: Path) -> None:
    """By the other node, which has the VM meanwhile."""
    notes, later = Notes(tmp_path), Note(host="b", nonce="11ff")
    notes.write("101", UUID, Note(host="a", nonce="00ff"))

    def stays(vmid: str, uuid: str) -> bool:
        notes.write(vmid, uuid, later)
        return False

    notes.clear("a", stays)
    assert notes.read("101", UUID) == later


@pytest.mark.parametrize(
    ("status", "says", "why"),
    [
        (0, '{"exited": 1, "exitcode": 0}', ""),
        (0, '{"exited": 1, "exitcode": 1, "err-data": "not now"}', "ended with 1: not now"),
        (0, '{"exited": 1, "signal": 9}', "ended by signal 9"),
        (0, '{"pid": 7}', "has not ended within 30 s"),
        (0, "what?", "not understood"),
        (0, "[" * 100_000, "not understood"),
        (0, '{"exited": 1}', "is not known"),
        (255, "QEMU guest agent is not\x1b running", r"was not run: .*agent is not\\x1b running"),
    ],
)
async def test_the_guest_is_told(node: Node, status: int, says: str, why: str) -> None:
    node.has()
    node.says(says)
    node.ends(status)
    agent = node.stack.guest_agent(await node.stack.read(UUID))
    if why:
        with pytest.raises(HypervisorError, match=why) as told:
            await agent.run("/etc/moved", ("before", "b"))
        assert str(told.value).isprintable()
    else:
        await agent.run("/etc/moved", ("before", "b"))
    assert node.asked == ["guest exec 101 --timeout 30 -- /etc/moved before b"]


@pytest.mark.parametrize(
    ("status", "says", "found"),
    [
        (0, info("guest-exec", "guest-exec-status"), ""),
        (0, info("guest-exec-status"), "does not allow guest-exec"),
        (0, info("guest-exec"), "does not allow guest-exec-status"),
        (0, "[" * 100_000, "not understood"),
        (0, "{}", "not understood"),
        (255, "QEMU guest agent is not running", "no guest agent answers in it"),
    ],
)
async def test_its_agent_is_asked_for(node: Node, status: int, says: str, found: str) -> None:
    node.has()
    node.says(says)
    node.ends(status)
    agent = node.stack.guest_agent(await node.stack.read(UUID))
    objections = await agent.objections()
    assert [found in why for why, _ in objections] == ([True] if found else [])
    assert node.asked == ["guest cmd 101 info"]


@pytest.mark.usefixtures("running")
async def test_nothing_runs_in_a_guest_that_is_paused(node: Node) -> None:
    """qm says only that its agent does not run."""
    node.has()
    node.ends(255)
    node.says("VM status: paused\n")
    agent = node.stack.guest_agent(await node.stack.read(UUID))
    [(why, _)] = await agent.objections()
    assert "paused" in why
    with pytest.raises(HypervisorError, match="was not run: its guest is paused"):
        await agent.run("/etc/moved", ("before", "b"))


async def test_qm_that_hangs_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxmox_agent, "RUNS_WITHIN", 0.1)
    monkeypatch.setattr(proxmox_agent, "_QM_WITHIN", 0.1)
    node.has()
    Path(f"{node.qm}.status").write_text("hangs\n")
    agent = node.stack.guest_agent(await node.stack.read(UUID))
    async with asyncio.timeout(20):
        with pytest.raises(HypervisorError, match="has not ended within"):
            await agent.run("/etc/moved", ("before", "b"))


@pytest.mark.parametrize(
    "said",
    [
        "",
        "{}",
        '{"vmid": "101", "source": "../../../tmp"}',
        '{"vmid": "../101", "source": "a"}',
        '{"vmid": "102", "source": "a"}',
        '{"more": ' + "[" * 100_000,
    ],
)
async def test_what_the_hookscript_cannot_mean(node: Node, said: str) -> None:
    node.has()
    with pytest.raises(HypervisorError):
        await node.stack.arriving(said)


async def test_two_of_one_uuid_cannot_be_told_apart(node: Node) -> None:
    node.has("a")
    node.has("b")
    with pytest.raises(HypervisorError, match="2 VMs"):
        await node.stack.read(UUID)


async def test_a_cluster_that_cannot_be_read_does_not_say_that_a_vm_is_gone(node: Node) -> None:
    """Nor do two with its UUID."""
    node.has("a")
    node.has("b")
    with pytest.raises(HypervisorError, match="2 VMs"):
        await node.stack.shown(UUID)
    (node.place / "etc/nodes").rename(node.place / "etc/away")
    with pytest.raises(HypervisorError, match="is not there") as told:
        await node.stack.shown(UUID)
    assert "pve-cluster" in told.value.remedy


async def test_nothing_is_heard_of_a_vm(node: Node) -> None:
    """So that one that is off may have run: see ``AttendedIncoming.run``."""
    watch = await node.stack.watch(UUID)
    with pytest.raises(HypervisorError):
        await watch.resumed()


@pytest.fixture
async def qemu(node: Node) -> AsyncGenerator[FakeQmp]:
    """One of a VM that comes: its configuration is the other node's."""
    node.has("b")
    async with FakeQmp(node.place / "run/101.qmp").serving() as fake:
        yield fake


async def test_the_monitor_of_one_that_comes_is_qemus_own(node: Node, qemu: FakeQmp) -> None:
    qemu.before_answer = b'{"event": "RESUME"}\n'
    said = ["Error: there is none\n", ""]
    qemu.answers["human-monitor-command"] = lambda _: said.pop(0)
    await node.stack.add_object(UUID, "/run/x.sock")
    asked = [asked["command-line"] for command, asked in qemu.commands if "human" in command]
    assert [line.partition(" ")[0] for line in asked] == ["object_del", "object_add"]


@pytest.mark.parametrize(
    "said",
    [
        '{"error": {"desc": "no\\u001b"}}',
        '{"return": {"a": ' + "[" * 50_000,
        '{"return": 1}',
        "[",
    ],
)
async def test_nor_is_qemu_believed(node: Node, qemu: FakeQmp, said: str) -> None:
    """Its guest may have taken it over: that must not end who asks."""
    qemu.before_answer = f"{said}\n".encode()
    with pytest.raises(HypervisorError) as told:
        await node.stack.add_object(UUID, "/run/x.sock")
    assert str(told.value).isprintable()


async def test_one_that_goes_away_says_nothing(node: Node, qemu: FakeQmp) -> None:
    def goes(_asked: object) -> str:
        qemu.hang_up()
        return ""

    qemu.answers["qmp_capabilities"] = goes
    with pytest.raises(HypervisorError, match="QEMU went away"):
        await node.stack.add_object(UUID, "/run/x.sock")


async def test_a_monitor_that_cannot_be_asked_is_told(node: Node) -> None:
    node.has()
    node.qm.unlink()
    with pytest.raises(HypervisorError, match="cannot be asked"):
        await node.stack.add_object(UUID, "/run/x.sock")
