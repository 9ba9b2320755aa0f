"""The README's two commands on bare systems, each from a fresh clone: `make test-systems`.

`python -m lab.systems --shell debian-13` is a root shell on one, to look inside.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import reach
from lab.bare import Bare, BareError
from lab.host import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

_CACHE = REPOSITORY / ".cache/systems"
_LOGS = REPOSITORY / "var/systems"
# What the README asks for; and apt, which mmdebstrap leaves out where it is not "required".
_PACKAGES = ("apt", "git", "make", "python3", "ca-certificates")
_CLONE = "/root/entourage"
_TAIL = 40  # lines of what failed
_NO_WAY = re.compile(
    r"could not (?:resolve|connect)|unable to connect|failed to fetch|cannot initiate"
    r"|connection (?:refused|timed out)|403 *forbidden",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class System:
    """A release.

    Attributes:
        suite: As its archive calls it; mmdebstrap knows where that is.
        components: The parts of the archive that its packages come from.
        keyring: The package of Debian that has its archive's key, where it is not Debian's own.
    """

    suite: str
    components: tuple[str, ...] = ("main",)
    keyring: str = ""


SYSTEMS = {
    "debian-12": System("bookworm"),
    "debian-13": System("trixie"),
    "ubuntu-24.04": System("noble", ("main", "universe"), "ubuntu-archive-keyring"),
}
COMMANDS = ("demo", "test")


class NoWayError(RuntimeError):
    """The system's archive cannot be reached from here."""


class Tally:
    """What came of each command on each system."""

    def __init__(self) -> None:
        self.passed = self.failed = self.skipped = 0

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed"
        return f"{counts}, {self.skipped} skipped" if self.skipped else counts

    @property
    def status(self) -> int:
        """An exit status; to have tried nothing is no success."""
        return int(self.failed > 0 or not self.passed)


def root(name: str, log: Path) -> Path:
    """The system's files as a tar archive, made now if it is not there."""
    system = SYSTEMS[name]
    argv = ["mmdebstrap", "--variant=minbase", f"--components={','.join(system.components)}"]
    argv += [f"--include={','.join(_PACKAGES)}"]
    argv += [f"--aptopt={option}" for option in reach.apt_options()]
    digest = hashlib.sha256(repr((argv, system)).encode()).hexdigest()[:12]
    tar = _CACHE / f"{name}-{digest}.tar"
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tar.exists():
            return tar
        for old in _CACHE.glob(f"{name}-*"):
            old.unlink()
        if system.keyring:
            argv.append(f"--keyring={_keyring(system.keyring, log)}")
        scratch = tar.with_suffix(".part.tar")
        _say(f"{name}: making its bare root, once …")
        _mmdebstrap([*argv, system.suite, str(scratch)], log)
        return scratch.rename(tar)


def _keyring(package: str, log: Path) -> Path:
    """Another distribution's key, out of Debian's package: the newest stable Debian has it."""
    place = _CACHE / package
    if not place.exists():
        place.mkdir()
    key = place / f"usr/share/keyrings/{package}.gpg"
    if not key.exists():
        tar = place / "package.tar"
        options = ["--variant=extract", f"--include={package}"]
        _mmdebstrap(["mmdebstrap", *options, SYSTEMS["debian-13"].suite, str(tar)], log)
        subprocess.run(["tar", "-xf", tar, "-C", place, "./usr/share/keyrings"], check=True)
        tar.unlink()
    return key


def _mmdebstrap(argv: list[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(argv, check=False, stdout=output, stderr=output)
    if done.returncode:
        if words := no_way(log.read_text(errors="replace")):
            raise NoWayError(words)
        raise BareError("mmdebstrap could not make it")


def no_way(said: str) -> str:
    """The first line of what apt said that tells of an archive out of reach, if there is one."""
    lines = (line.strip() for line in said.splitlines())
    return next((line for line in lines if _NO_WAY.search(line)), "")


def furnish(system: Bare, log: Path) -> None:
    """Give it this machine's authorities, and a fresh clone of what is committed here."""
    bundle = _CACHE / "tree.bundle"
    subprocess.run(
        ["git", "-C", REPOSITORY, "bundle", "create", "--quiet", bundle, "HEAD"], check=True
    )
    system.write(f"{_CLONE}.bundle", bundle.read_bytes())
    quiet = ("-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false")
    for argv in (
        ["update-ca-certificates"],
        ["git", *quiet, "clone", "-q", f"{_CLONE}.bundle", _CLONE],
    ):
        with log.open("ab") as output:
            done = subprocess.run(system.command(argv), check=False, stdout=output, stderr=output)
        if done.returncode:
            raise BareError(f"{' '.join(argv)} failed")


def attempt(name: str, commands: Sequence[str], tally: Tally) -> None:
    """Try commands on a system, one after the other."""
    log = _LOGS / f"{name}.log"
    log.write_bytes(b"")
    began = time.monotonic()
    try:
        with Bare(name, root(name, log), _place(), log) as system:
            furnish(system, log)
            _say(f"{name}: up after {time.monotonic() - began:.0f} s; its log is {_shown(log)}")
            for command in commands:
                _run(system, name, command, log, tally)
    except NoWayError as error:
        tally.skipped += len(commands)
        _say(f"{name}: SKIPPED, its archive cannot be reached: {error}")
    except BareError as error:
        tally.failed += len(commands)
        _say(f"{name}: FAILED to come up: {error}\n{tail(log)}")


def _run(system: Bare, name: str, command: str, log: Path, tally: Tally) -> None:
    _say(f"{name}: make {command} …")
    began = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n# make {command}\n".encode())
        output.flush()
        done = subprocess.run(
            system.command(["make", command], cwd=_CLONE),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    seconds = f"{time.monotonic() - began:.0f} s"
    if done.returncode:
        tally.failed += 1
        _say(f"{name}: make {command} FAILED after {seconds}:\n{tail(log)}")
    else:
        tally.passed += 1
        _say(f"{name}: make {command} passed in {seconds}")


def shell(name: str) -> int:
    """A root shell on a system, at this terminal."""
    log = _LOGS / f"{name}-shell.log"
    log.write_bytes(b"")
    with Bare(name, root(name, log), _place(), log) as system:
        furnish(system, log)
        _say(f"{name}: what is committed here is in {_CLONE}; all of it is gone at the shell's end")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for what runs in the shell
        try:
            return subprocess.run(system.command(["bash"], cwd=_CLONE), check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)


def tail(log: Path) -> str:
    """The end of a log, set off."""
    with log.open(errors="replace") as lines:
        return "".join(f"    | {line.rstrip()}\n" for line in deque(lines, _TAIL)).rstrip("\n")


def _place() -> Path:
    place = _CACHE / "root"
    place.mkdir(exist_ok=True)
    return place


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Try what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m lab.systems", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--commands", default=" ".join(COMMANDS), help="targets of make")
    parser.add_argument("--shell", metavar="SYSTEM", choices=SYSTEMS, help="look inside one")
    options = parser.parse_args()
    if unknown := set(options.systems) - set(SYSTEMS):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    for directory in (_CACHE, _LOGS):
        directory.mkdir(parents=True, exist_ok=True)
    if options.shell:
        return shell(options.shell)
    log = ["git", "-C", str(REPOSITORY), "log", "-1", "--format=%h %s"]
    commit = subprocess.run(log, check=True, capture_output=True, text=True).stdout
    _say(f"trying {commit.strip()}")
    tally = Tally()
    try:
        for name in options.systems or SYSTEMS:
            attempt(name, options.commands.split(), tally)
    except KeyboardInterrupt:
        _say("given up")
        return 130
    _say(str(tally))
    return tally.status


if __name__ == "__main__":
    sys.exit(main())
