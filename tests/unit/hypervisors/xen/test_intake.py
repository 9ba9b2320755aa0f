"""The agent and xl's receiver, with a small program in the place of xl that speaks as it does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, Protocol

import pytest

from entourage.errors import HypervisorError, Refused
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen.arrivals import Arrivals
from entourage.hypervisors.xen.copying import Sending
from entourage.hypervisors.xen.intake import Intake
from entourage.hypervisors.xen.join import REFUSED
from entourage.hypervisors.xen.receiver import Said
from entourage.steps import Refusal

SIZE = 3 << 20
SECRET = bytes(range(32))
CONFIG: dict[str, Any] = {"c_info": {"name": "web1"}, "disks": []}
HEADER = header.header_of(CONFIG)
# As migrate_receive() of xl_migrate.c: what is not all there, or no GO, destroys the copy.
RECEIVER = f"""#!{sys.executable}
import sys
from entourage.hypervisors.xen.constants import BANNER, GO, READY, REPORT
out, take = sys.stdout.buffer, sys.stdin.buffer.read
def say(data):
    out.write(data)
    out.flush()
say(BANNER)
begins = {HEADER!r}
if take(len(begins)) != begins:
    sys.exit("migration target: another header")
if len(take({SIZE})) < {SIZE}:
    sys.exit("migration target: Domain creation failed")
say(READY)
if take(len(GO)) == GO:
    say(REPORT + bytes(1))
else:
    say(REPORT + bytes([3]) + GO)
    sys.exit("migration target: Failure, destroying our copy.")
"""


@pytest.fixture
def looked_at() -> list[dict[str, Any]]:
    """The configurations that were seen."""
    return []


@pytest.fixture
async def arrivals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: list[dict[str, Any]]
) -> AsyncGenerator[Arrivals]:
    xl = tmp_path / "bin" / "xl"
    xl.parent.mkdir()
    xl.write_text(RECEIVER)
    xl.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{xl.parent}:{os.environ['PATH']}")
    intake = Intake(f"test.{os.getpid()}.{tmp_path.name}", tmp_path / "log", tmp_path / "note")
    (tmp_path / "disk").write_bytes(bytes(SIZE))

    async def look(config: dict[str, Any]) -> None:
        looked_at.append(config)
        if config != CONFIG:
            refusal = Refusal("block/xvda", "b", "it may not", "do something")
            raise Refused([refusal])

    arrivals = Arrivals(tmp_path / "s", SECRET, intake, {"xvda": str(tmp_path / "disk")}, look)
    await arrivals.listen()
    yield arrivals
    await intake.end(5)
    await arrivals.close()


class Bring(Protocol):
    """Starts what brings a stream, with what that begins with."""

    def __call__(self, what: str, secret: bytes = SECRET) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def bring(arrivals: Arrivals) -> Generator[Bring]:
    """What sshd starts on the target."""
    with contextlib.ExitStack() as stack:

        def start(what: str, secret: bytes = SECRET) -> subprocess.Popen[bytes]:
            joined = subprocess.Popen(
                [sys.executable, "-m", "entourage", "agent", "--join", arrivals.path, what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.enter_context(joined)
            assert joined.stdin is not None
            os.write(joined.stdin.fileno(), secret)
            stack.callback(joined.kill)
            return joined

        yield start


async def memory(bring: Bring, size: int = SIZE, begins: bytes = HEADER) -> subprocess.Popen[bytes]:
    joined = bring("memory")
    assert joined.stdin is not None
    await asyncio.to_thread(joined.stdin.write, begins + bytes(size))
    await asyncio.to_thread(joined.stdin.flush)
    return joined


async def ended(arrivals: Arrivals, joined: subprocess.Popen[bytes]) -> int:
    """It ends with the agent's socket, and not before."""
    assert joined.poll() is None
    await arrivals.close()
    return await asyncio.to_thread(joined.wait, 20)


async def test_a_domain_arrives_and_runs_at_go_only(arrivals: Arrivals, bring: Bring) -> None:
    joined = await memory(bring)
    await arrivals.intake.reaches(Said.READY)
    assert joined.stdin is not None
    joined.stdin.close()  # the source has gone: no failure any more
    assert await arrivals.intake.go() is Said.RUNS
    assert await ended(arrivals, joined) == 0


async def test_a_stream_that_ends_early_makes_the_receiver_give_up(
    arrivals: Arrivals, bring: Bring
) -> None:
    joined = await memory(bring, SIZE - 1)
    assert joined.stdin is not None
    joined.stdin.close()
    with pytest.raises(HypervisorError, match="creation failed"):
        await arrivals.intake.reaches(Said.READY)
    assert await ended(arrivals, joined) == 0


async def test_without_go_the_receiver_destroys_its_copy(arrivals: Arrivals, bring: Bring) -> None:
    joined = await memory(bring)
    await arrivals.intake.reaches(Said.READY)
    await arrivals.intake.end(20)
    assert arrivals.intake.said is Said.DESTROYED
    assert "destroying our copy" in arrivals.intake.log.read_text()
    assert await ended(arrivals, joined) == 0


async def test_a_receiver_that_is_killed_gives_no_report(
    arrivals: Arrivals, bring: Bring, tmp_path: Path
) -> None:
    joined = await memory(bring)
    await arrivals.intake.reaches(Said.READY)
    receiver = int((tmp_path / "note").read_text().split()[0])
    os.kill(receiver, signal.SIGKILL)
    with pytest.raises(EOFError):
        await arrivals.intake.go()
    assert await ended(arrivals, joined) == 0


async def test_xl_is_given_what_was_looked_at_and_nothing_else(
    arrivals: Arrivals, bring: Bring, looked_at: list[dict[str, Any]]
) -> None:
    """Its text is made anew: what another parser could read otherwise does not come through."""
    text = b'{ "c_info" : {"name":"web\\u0031"},\n"disks":[]}\0\0'
    rest = struct.pack("=I", len(text)) + text + b"and more"
    begins = struct.pack("=32sIIII", HEADER[:32], 0x01020304, 3, 7, len(rest)) + rest
    joined = await memory(bring, begins=begins)
    await arrivals.intake.reaches(Said.READY)
    assert looked_at == [CONFIG]
    assert await ended(arrivals, joined) == 0


async def broken(arrivals: Arrivals) -> HypervisorError:
    async with asyncio.timeout(20):
        return await arrivals.broken()


async def test_what_is_refused_reaches_no_xl(
    arrivals: Arrivals, bring: Bring, tmp_path: Path
) -> None:
    joined = await memory(bring, 0, header.header_of({"c_info": {"name": "web2"}}))
    error = await broken(arrivals)
    assert (error.message, error.device, error.remedy) == (
        *("it may not", "block/xvda", "do something"),
    )
    assert not (tmp_path / "note").exists()
    assert await ended(arrivals, joined) == 0


@pytest.mark.parametrize("mandatory", [1, 2, 7])
async def test_no_other_kind_of_stream_reaches_xl(
    arrivals: Arrivals, bring: Bring, tmp_path: Path, mandatory: int
) -> None:
    begins = HEADER[:36] + struct.pack("=I", mandatory) + HEADER[40:]
    await memory(bring, 0, begins)
    assert "in a form that is not known" in (await broken(arrivals)).message
    assert not (tmp_path / "note").exists()


async def test_a_stream_without_a_configuration(arrivals: Arrivals, bring: Bring) -> None:
    joined = await memory(bring, 0, HEADER[:-1])
    assert joined.stdin is not None
    joined.stdin.close()
    assert "ended before the domain's configuration" in (await broken(arrivals)).message


async def test_a_stream_that_says_nothing_ends_with_the_arrival(
    arrivals: Arrivals, bring: Bring
) -> None:
    joined = bring("memory")
    await memory(bring, 0, HEADER[:8])
    async with asyncio.timeout(20):
        await arrivals.close()
        assert await asyncio.to_thread(joined.wait) in {0, 1}


async def test_there_is_one_stream_of_memory(arrivals: Arrivals, bring: Bring) -> None:
    await memory(bring)
    await arrivals.intake.reaches(Said.READY)
    await memory(bring, 0)
    assert "there is a stream of its memory already" in (await broken(arrivals)).message


async def test_a_disk_is_written_and_proven(
    arrivals: Arrivals, bring: Bring, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.write_bytes(os.urandom(SIZE))
    joined = bring("disk xvda")
    assert joined.stdin is not None
    assert joined.stdout is not None
    out, back = joined.stdin.fileno(), joined.stdout.fileno()
    sending = Sending(str(here), out, back, blank=True)
    await asyncio.to_thread(sending.send_changes)
    await asyncio.to_thread(sending.verify)
    sending.close()
    assert (tmp_path / "disk").read_bytes() == here.read_bytes()
    assert await ended(arrivals, joined) == 0


@pytest.mark.parametrize(("what", "device"), [("disk xvda", "block/xvda"), ("memory", "")])
async def test_a_full_disk_is_told_with_what_to_do(
    arrivals: Arrivals, bring: Bring, monkeypatch: pytest.MonkeyPatch, what: str, device: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def no_start(*_: Any) -> None:
        full()

    monkeypatch.setattr("entourage.hypervisors.xen.arrivals.receive", full)
    monkeypatch.setattr(arrivals.intake, "start", no_start)
    bring(what)
    error = await broken(arrivals)
    assert error.device == device
    assert error.message.endswith(": no space left on device")
    assert error.remedy == "make room on that filesystem"


async def test_what_does_not_belong_is_not_taken(arrivals: Arrivals, bring: Bring) -> None:
    joined = bring("disk ../../etc/passwd")
    async with asyncio.timeout(20):
        assert "nothing that belongs here" in str(await arrivals.broken())
    assert await ended(arrivals, joined) == 0


def test_a_join_without_an_agent_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "entourage", "agent", "--join", tmp_path / "none", "memory"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert "the agent does not take the stream" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("secret", [bytes(32), SECRET[:-1] + b"x", SECRET[:8], b""])
async def test_a_stream_without_the_secret_is_not_taken_and_ends_nothing(
    arrivals: Arrivals, bring: Bring, secret: bytes
) -> None:
    """Of whoever else has a key for the agent."""
    for what in ("memory", "disk xvda", "disk ../../etc/passwd"):
        joined = bring(what, secret)
        assert joined.stdin is not None
        joined.stdin.close()  # else it is waited for
        assert await asyncio.to_thread(joined.wait, 20) == 1
        assert joined.stderr is not None
        assert b"takes no such stream" in joined.stderr.read()
    await memory(bring)
    async with asyncio.timeout(20):
        await arrivals.intake.reaches(Said.READY)
    assert not arrivals._broken.done()  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]


async def test_who_connects_and_says_nothing_is_let_go_and_holds_up_nobody(
    arrivals: Arrivals, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(arrivals.path))
        await memory(bring)
        async with asyncio.timeout(20):
            await arrivals.intake.reaches(Said.READY)
    monkeypatch.setattr("entourage.hypervisors.xen.arrivals._SAYS_WITHIN", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(arrivals.path))
        silent.settimeout(20)
        assert await asyncio.to_thread(silent.recv, 1) == REFUSED
