"""A guest's console on a terminal: raw while it lasts, as it was afterwards, and one at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entourage.__main__ import main
from entourage.cli.console import taken
from entourage.cli.terminal import Ended, attach
from entourage.domain import Domain
from entourage.hypervisors.base import DomainState

LEAVE = b"\x1d"
PATIENCE = 10


@dataclass
class Pair:
    """A terminal: what a user sits at, and what a program has of it."""

    user: int
    program: int

    def types(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def shows(self, wanted: bytes) -> None:
        seen = b""
        while not seen.endswith(wanted):
            seen += os.read(self.user, 1000)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.program)[3] & (termios.ICANON | termios.ECHO)


@pytest.fixture
def terminal() -> Generator[Pair]:
    pair = Pair(*os.openpty())
    yield pair
    os.close(pair.user)
    os.close(pair.program)


class Console(threading.Thread):
    """A program that has a console on a terminal."""

    def __init__(self, terminal: Pair) -> None:
        super().__init__(daemon=True)
        self.guest, self._ours = socket.socketpair()
        self.guest.settimeout(PATIENCE)
        self._terminal = terminal
        self.ended: Ended | None = None
        self.start()

    def run(self) -> None:
        program = self._terminal.program
        with self._ours:
            self.ended = attach(self._ours, program, program)

    def says_last(self, words: bytes) -> threading.Thread:
        """The guest ends, as soon as these have been taken."""

        def say() -> None:
            self.guest.sendall(words)
            self.guest.close()

        saying = threading.Thread(target=say, daemon=True)
        saying.start()
        return saying

    def over(self) -> Ended | None:
        self.join(PATIENCE)
        self.guest.close()
        return self.ended


@pytest.fixture
def _no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers of signals are the main thread's, and here it is another that has the terminal."""

    def nothing(_number: int, _how: object) -> None:
        return

    monkeypatch.setattr(signal, "signal", nothing)


@pytest.mark.usefixtures("_no_handlers")
def test_keys_go_to_the_guest_and_its_words_to_the_terminal(terminal: Pair) -> None:
    before = termios.tcgetattr(terminal.program)
    console = Console(terminal)
    console.guest.sendall(b"login: ")
    terminal.shows(b"login: ")
    assert terminal.is_raw
    terminal.types(b"\x03\x1a\x1b[A\r")  # Ctrl-C and Ctrl-Z are the guest's
    assert console.guest.recv(100) == b"\x03\x1a\x1b[A\r"
    terminal.types(LEAVE)
    assert console.guest.recv(100) == b""
    assert console.over() is Ended.LEFT
    assert termios.tcgetattr(terminal.program) == before


@pytest.mark.usefixtures("_no_handlers")
def test_the_guest_ends(terminal: Pair) -> None:
    before = termios.tcgetattr(terminal.program)
    console = Console(terminal)
    last = b"reboot: Power down" * 1000
    sending = console.says_last(last)
    terminal.shows(last)
    sending.join(PATIENCE)
    assert console.over() is Ended.CLOSED
    assert termios.tcgetattr(terminal.program) == before


@pytest.mark.usefixtures("_no_handlers")
def test_a_guest_that_takes_nothing_can_be_left(terminal: Pair) -> None:
    console = Console(terminal)
    console.guest.sendall(b"$ ")
    terminal.shows(b"$ ")
    for _ in range(1000):
        terminal.types(b"x" * 1000)
    terminal.types(LEAVE)
    assert console.over() is Ended.LEFT


@pytest.mark.usefixtures("_no_handlers")
def test_the_terminal_goes_away() -> None:
    terminal = Pair(*os.openpty())
    console = Console(terminal)
    console.guest.sendall(b"$ ")
    terminal.shows(b"$ ")
    os.close(terminal.user)
    assert console.over() is Ended.LEFT
    os.close(terminal.program)


@pytest.mark.usefixtures("_no_handlers")
def test_the_guest_ends_while_the_user_types(terminal: Pair) -> None:
    """Its last words are shown, though it takes no more keys."""
    console = Console(terminal)
    console.guest.sendall(b"$ ")
    terminal.shows(b"$ ")
    console.guest.shutdown(socket.SHUT_RD)
    terminal.types(b"x")
    last = b"reboot: Power down" * 1000
    sending = console.says_last(last)
    terminal.shows(last)
    sending.join(PATIENCE)
    assert console.over() is Ended.CLOSED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Pair, number: signal.Signals) -> None:
    before = termios.tcgetattr(terminal.program)
    guest, ours = socket.socketpair()
    program = textwrap.dedent(
        f"""
        import socket, sys
        from entourage.cli.terminal import attach
        try:
            attach(socket.socket(fileno={ours.fileno()}), 0, 1)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    with guest, ours:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=terminal.program,
            stdout=terminal.program,
            pass_fds=[ours.fileno()],
        )
        guest.sendall(b"$ ")
        terminal.shows(b"$ ")
        assert terminal.is_raw
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert termios.tcgetattr(terminal.program) == before


class FakeHypervisor:
    """Some domains, and where their consoles are."""

    def __init__(self, name: str, console: str) -> None:
        self.name = name
        self.state = DomainState(name="web1", uuid="u", state="running", console=console)

    async def domains(self) -> Sequence[DomainState]:
        return [self.state]

    async def find(self, name: str) -> Domain:
        return Domain(name=name, memory=1 << 20)


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHypervisor:
    """The only one of this host."""
    fake = FakeHypervisor("qemu", str(tmp_path / "console.sock"))

    async def found(_settings: object, name: str, _connect: object) -> Any:
        return fake, await fake.find(name)

    monkeypatch.setattr("entourage.cli.console.known", found)
    return fake


@pytest.fixture(params=[True])
def at_terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether standard input is one."""

    def isatty(_descriptor: int) -> bool:
        return bool(request.param)

    monkeypatch.setattr(os, "isatty", isatty)


@pytest.fixture
def listens(hypervisor: FakeHypervisor) -> Generator[socket.socket]:
    """QEMU's end of it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(hypervisor.state.console)
        server.listen()
        server.settimeout(PATIENCE)
        yield server


@pytest.mark.usefixtures("hypervisor", "at_terminal", "_no_handlers")
def test_it_is_had_and_left(
    listens: socket.socket,
    terminal: Pair,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And a second one is told that somebody has it."""
    stream = os.fdopen(os.dup(terminal.program), "r+b", buffering=0)
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    statuses: list[int] = []
    first = threading.Thread(target=lambda: statuses.append(main(["console", "web1"])))
    first.start()
    guest, _ = listens.accept()
    with guest:
        guest.sendall(b"login: ")
        terminal.shows(b"login: ")
        assert main(["console", "web1"]) == 3
        said = capsys.readouterr().err
        assert "another process has the console of web1" in said
        assert "remedy: leave it there" in said
        terminal.types(LEAVE)
        first.join(PATIENCE)
    assert statuses == [0]
    stream.close()


def test_a_signal_at_once_leaves_the_terminal_as_it_was(terminal: Pair) -> None:
    before = termios.tcgetattr(terminal.program)
    program = textwrap.dedent(
        """
        import os, signal, socket, tty
        from entourage.cli.terminal import attach
        setraw = tty.setraw
        def raw(terminal):
            setraw(terminal)
            os.kill(os.getpid(), signal.SIGTERM)
        tty.setraw = raw
        attach(socket.socketpair()[0], 0, 1)
        """
    )
    argv = [sys.executable, "-c", program]
    ended = subprocess.run(
        argv, stdin=terminal.program, stdout=terminal.program, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert termios.tcgetattr(terminal.program) == before


@pytest.mark.usefixtures("at_terminal")
def test_others_wait_for_it(hypervisor: FakeHypervisor, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(hypervisor.state.console)
        server.listen(0)
        other.connect(hypervisor.state.console)
        assert main(["console", "web1"]) == 3
    assert "another process has the console of web1" in capsys.readouterr().err


@pytest.mark.usefixtures("hypervisor", "at_terminal")
def test_other_sockets_may_have_any_name(
    listens: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as strange, socket.socket(socket.AF_UNIX) as other:
        strange.bind(b"\0entourage-test-\xff" + str(os.getpid()).encode())
        other.connect(listens.getsockname())
        accepted, _ = listens.accept()
        with accepted:
            assert main(["console", "web1"]) == 3
    assert "another process has the console of web1" in capsys.readouterr().err


@pytest.mark.usefixtures("hypervisor", "at_terminal")
def test_another_program_has_it(listens: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(listens.getsockname())
        accepted, _ = listens.accept()
        with accepted:
            assert main(["console", "web1"]) == 3
    assert "another process has the console of web1" in capsys.readouterr().err


def test_what_is_taken() -> None:
    text = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 1000 /run/q/1/console.sock
0000000000000000: 00000002 00000000 00000000 0001 02     0 /run/q/1/console.sock
0000000000000000: 00000003 00000000 00000000 0001 03 1001 /run/q/2/console.sock
0000000000000000: 00000003 00000000 00000000 0001 03 1002
0000000000000000: 00000003 00000000 00000000 0001 03 1003 /run/a b/console.sock
"""
    assert not taken("/run/q/1/console.sock", text)
    assert taken("/run/q/2/console.sock", text)
    assert taken("/run/a b/console.sock", text)
    assert not taken("/run/q/3/console.sock", text)


@pytest.mark.usefixtures("at_terminal")
@pytest.mark.parametrize("at_terminal", [False], indirect=True)
@pytest.mark.parametrize(
    ("name", "console", "said"),
    [
        ("qemu", "/nowhere/console.sock", "connect to the console's socket: /nowhere/"),
        ("qemu", "", "web1 does not run\n  remedy: entourage start"),
        ("qemu:///system", "", "remedy: virsh -c qemu:///system console web1"),
        ("xen", "", "remedy: xl console web1"),
    ],
)
def test_what_it_cannot_be_had_by(
    hypervisor: FakeHypervisor,
    name: str,
    console: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hypervisor.name = name
    hypervisor.state = DomainState(name="web1", uuid="u", state="running", console=console)
    assert main(["console", "web1"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("hypervisor", "at_terminal")
def test_it_has_just_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["console", "web1"]) == 1
    said = capsys.readouterr().err
    assert "the console of web1 cannot be reached: " in said
    assert "console.sock" in said
    assert "no such file or directory" in said or "connection refused" in said
