"""The program that xl runs in the place of ssh, with real pipes; another one stands for ssh."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entourage.hypervisors.xen.constants import BANNER, GO, READY, RUNS, RUNS_NOT

PATIENCE = 20.0
KEEP = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, open(sys.argv[1], 'wb'))"
BODY = os.urandom(3 << 20)


@dataclass
class Scene:
    """The transport with an xl on one side and an engine on the other."""

    process: subprocess.Popen[bytes]
    engine: socket.socket
    out: Path

    def said(self) -> str:
        """Return the transport's next line, but those that only count."""
        line = b""
        while not line.endswith(b"\n"):
            got = self.engine.recv(1)
            assert got, "the transport has gone"
            line += got
        return self.said() if line.startswith(b"passed") else line.decode().strip()

    def hear(self, count: int) -> bytes:
        """Return what xl hears next, exactly that much."""
        assert self.process.stdout is not None
        return self.process.stdout.read(count)

    def send(self, data: bytes) -> None:
        """Say something as xl."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def hold(self) -> None:
        """Say so as the engine, which does it once all of the stream has gone through."""
        assert self.process.stdin is not None
        deadline = time.monotonic() + PATIENCE
        while any(fcntl.ioctl(self.process.stdin, termios.FIONREAD, bytes(4))):
            assert time.monotonic() < deadline
        self.say("hold")

    def say(self, word: str) -> None:
        """Say something as the engine."""
        self.engine.sendall(word.encode() + b"\n")

    def ends(self) -> bytes:
        """Wait for its end; returns the rest of what xl heard."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self.process.wait(PATIENCE)
        return rest


SECRET = b"some secret"


def header(config: dict[str, Any]) -> bytes:
    text = json.dumps(config).encode() + b"\0"
    rest = struct.pack("=I", len(text)) + text
    magic = b"Xen saved domain, xl format\n \0 \r"
    return struct.pack("=32sIIII", magic, 0x01020304, 3, 0, len(rest)) + rest


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[Scene]:
    path, out = tmp_path / "s", tmp_path / "out"
    out.touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE)
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "entourage.hypervisors.xen.transport", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        engine, _ = listening.accept()
    engine.settimeout(PATIENCE)
    # What stands for ssh keeps what arrives, and ends when its input does.
    ssh = [sys.executable, "-c", KEEP, str(out)]
    order = {
        "ssh": ssh,
        "secret": SECRET.hex(),
        "changes": {"paths": {"xvda": "/there"}},
        "budget": getattr(request, "param", None),
    }
    engine.sendall(json.dumps(order).encode() + b"\n")
    scene = Scene(process, engine, out)
    assert scene.hear(len(BANNER)) == BANNER
    assert scene.said() == "begun"
    yield scene
    process.kill()
    process.communicate()
    engine.close()


SENT = header({"disks": [{"vdev": "xvda", "pdev_path": "/here"}]}) + BODY
ARRIVES = SECRET + header({"disks": [{"vdev": "xvda", "pdev_path": "/there"}]}) + BODY


def test_a_domain_passes_and_is_released(scene: Scene) -> None:
    scene.send(SENT)
    scene.hold()
    assert scene.hear(len(READY)) == READY
    for byte in GO[:-1]:
        scene.send(bytes([byte]))
    scene.send(GO[-1:])
    assert scene.said() == "held"
    scene.say("release")
    assert scene.ends() == RUNS
    # Neither GO nor anything else follows the domain: only the target's agent says GO there.
    assert ARRIVES.startswith(scene.out.read_bytes())


def test_ready_is_held_back_however_long(scene: Scene) -> None:
    scene.send(SENT)
    scene.say("fail")
    assert scene.ends() == b""
    assert scene.out.read_bytes() == ARRIVES


def test_a_refusal_after_go_has_xl_resume(scene: Scene) -> None:
    scene.send(SENT)
    scene.hold()
    assert scene.hear(len(READY)) == READY
    scene.send(GO)
    assert scene.said() == "held"
    scene.say("fail")
    assert scene.ends() == RUNS_NOT


def test_an_engine_that_dies_before_go_lets_xl_resume(scene: Scene) -> None:
    scene.send(SENT)
    scene.engine.close()
    assert scene.ends() == b""


@pytest.mark.parametrize("scene", [1.2], indirect=True)
@pytest.mark.parametrize("stopped", [True, False])
def test_an_engine_that_is_frozen_lets_xl_resume(scene: Scene, *, stopped: bool) -> None:
    """Once its domain has stood still for as long as it may; not while it says that it lives."""
    scene.send(SENT)
    if stopped:
        scene.say("stopped")
    began = time.monotonic()
    while time.monotonic() < began + 2:
        scene.say("alive")
        time.sleep(0.1)  # what is tried is that time passes
        assert scene.process.poll() is None
    assert scene.ends() == b""  # nothing is said to it any more
    assert 0.9 < time.monotonic() - began - 2 < PATIENCE


@pytest.mark.parametrize("scene", [0.5], indirect=True)
def test_an_engine_that_is_frozen_after_go_changes_nothing(scene: Scene) -> None:
    scene.send(SENT)
    scene.hold()
    assert scene.hear(len(READY)) == READY
    scene.send(GO)
    assert scene.said() == "held"
    time.sleep(1.5)  # far longer than it may
    assert scene.process.poll() is None
    scene.say("release")
    assert scene.ends() == RUNS


def test_an_engine_that_dies_after_go_leaves_xl_without_a_report(scene: Scene) -> None:
    scene.send(SENT)
    scene.hold()
    assert scene.hear(len(READY)) == READY
    scene.send(GO)
    assert scene.said() == "held"
    scene.engine.close()
    assert scene.ends() == b""


def test_a_way_that_breaks_ends_it(scene: Scene) -> None:
    scene.send(SENT)
    [ssh] = Path(f"/proc/{scene.process.pid}/task/{scene.process.pid}/children").read_text().split()
    os.kill(int(ssh), 9)
    assert scene.said().startswith("broken")
    assert scene.ends() == b""


def test_an_xl_that_gives_up_is_told(scene: Scene) -> None:
    scene.send(SENT)
    assert scene.process.stdin is not None
    scene.process.stdin.close()
    assert scene.said() == "broken xl has closed its end"
    scene.process.stdin = None
    assert scene.ends() == b""


def test_what_does_not_begin_as_xl_does_is_refused(scene: Scene) -> None:
    scene.send(b"x" * 64)
    assert scene.said().startswith("broken xl sends")
    assert scene.ends() == b""
