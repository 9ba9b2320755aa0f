"""A program in the place of xl, on both ends of a migration; xenstore and libxl as it has them."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from entourage.hypervisors.xen import handle
from entourage.hypervisors.xen.libxl import Life

MIB = 1 << 20
DID = ("suspended", "resumed", "renamed", "destroyed", "paused", "paused too late")
"""The files that it makes where it is, by what it does to the domain."""
# What it does to the domain, it writes down as files: see Scene.life.
XL = f"""#!{sys.executable}
import json, os, struct, subprocess, sys
from pathlib import Path
from entourage.hypervisors.xen.constants import BANNER, GO, READY, REPORT

at = Path(__file__).parent
config = json.dumps({{"disks": [], "nics": []}}).encode() + bytes(1)
rest = struct.pack("=I", len(config)) + config
magic = b"Xen saved domain, xl format\\n \\0 \\r"
stream = struct.pack("=32sIIII", magic, 0x01020304, 3, 0, len(rest)) + rest + bytes({MIB})

def sends(rune):
    end = subprocess.Popen(["sh", "-c", rune], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    def heard(message):
        return end.stdout.read(len(message)) == message
    def fails(said):
        end.stdin.close()
        end.wait()
        (at / "resumed").touch()
        sys.exit(said)
    def says(data):
        end.stdin.write(data)
        end.stdin.flush()
    if not heard(BANNER):
        fails("no banner")
    try:
        says(stream)
    except OSError:
        fails("Migration failed, resuming at sender.")
    (at / "suspended").touch()
    if not heard(READY):
        fails("Migration failed, resuming at sender.")
    (at / "renamed").touch()
    says(GO)
    if not heard(REPORT):
        sys.exit("Domain state is now undefined !")
    if end.stdout.read(1) == bytes(1):
        (at / "destroyed").touch()
    elif heard(GO):
        (at / "renamed").unlink()
        fails("Migration failed due to problems at target.")

def receives():
    out, take = sys.stdout.buffer, sys.stdin.buffer.read
    def says(data):
        out.write(data)
        out.flush()
    says(BANNER)
    if len(take(len(stream))) < len(stream):
        sys.exit("Domain creation failed")
    says(READY)
    says(REPORT + (bytes(1) if take(len(GO)) == GO else bytes([3]) + GO))

match sys.argv[1:]:
    case ["migrate", "-s", "", _, rune]:
        sends(rune)
    case ["migrate-receive"]:
        receives()
    case ["rename", *_]:
        (at / "renamed").unlink()
    case ["destroy", *_]:
        (at / "destroyed").touch()
    case ["pause", "7"]:
        (at / ("paused too late" if (at / "resumed").exists() else "paused")).touch()
"""


class Store:
    """Stands for xenstore; its one event comes all the time."""

    def __init__(self, xl: Path) -> None:
        self._at = xl.parent
        self._fired = asyncio.Event()
        self._firing = asyncio.create_task(self._fire())

    async def _fire(self) -> None:
        while True:
            self._fired.set()
            await asyncio.sleep(0.01)

    async def watch(self, path: str) -> asyncio.Event:
        assert path == "@releaseDomain"
        return self._fired

    async def name(self, domid: int) -> str:
        assert domid == 7
        return "web1--migratedaway" if (self._at / "renamed").exists() else "web1"

    async def close(self) -> None:
        self._firing.cancel()


def installed(place: Path, monkeypatch: pytest.MonkeyPatch, script: str = XL) -> Path:
    """Put it on PATH, below a directory, and have libxl say what it has done; where it is."""
    xl = place / "bin" / "xl"
    xl.parent.mkdir()
    xl.write_text(script)
    xl.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{xl.parent}:{os.environ['PATH']}")

    def life(domid: int) -> Life | None:
        assert domid == 7
        if (xl.parent / "destroyed").exists():
            return None
        suspended = (xl.parent / "suspended").exists() and not (xl.parent / "resumed").exists()
        return Life(paused=False, why_off=2 if suspended else None, cpu_time=1)

    async def by_libxl(*command: str) -> str:
        assert command[-2:] == ("resume", "7")
        (xl.parent / "resumed").touch()
        return ""

    monkeypatch.setattr(handle, "life", life)
    monkeypatch.setattr(handle, "run", by_libxl)
    return xl


def did(at: Path) -> set[str]:
    """What it has done to the source's copy; it is in this directory."""
    return {name for name in DID if (at / name).exists()}


def kill(word: str, where: str) -> None:
    """Kill the processes of this scene that have this word in their command line."""
    killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if word in line and where in line and "sh -c" not in line:
            os.kill(int(entry.name), 9)
            killed += 1
    assert killed
