"""libvirt and QEMU of Debian's backports, to lay over the machine's root on some hosts of a lab.

Nothing is installed: the packages, and what they need that the machine has not or has older, are
fetched and unpacked. Run as `python -m lab.backports` it prints the folder that they lie in.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from pathlib import Path

from lab.guest_image import CACHE

_STATUS = Path("/var/lib/dpkg/status")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_WANTED = (
    *("qemu-system-x86", "qemu-utils", "libvirt-clients", "libvirt-daemon"),
    # All that the machine's libvirt brings: no part of that fits into another version's daemon.
    *(
        f"libvirt-daemon-driver-{driver}"
        for driver in (
            *("qemu", "interface", "network", "nodedev", "nwfilter", "secret", "storage"),
            *("storage-disk", "storage-iscsi", "storage-logical", "storage-mpath"),
            "storage-scsi",
        )
    ),
    *("libvirt-daemon-lock", "libvirt-daemon-plugin-lockd"),
)


class BackportsError(RuntimeError):
    """They could not be fetched."""


class NoBackportsError(BackportsError):
    """There are none for this machine."""


def backports() -> Path:
    """Return the folder, made now if it is not there or if the machine has changed since."""
    place = CACHE / "backports"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root, complete = place / "root", place / "complete"
        if not complete.exists() or complete.stat().st_mtime < _STATUS.stat().st_mtime:
            complete.unlink(missing_ok=True)
            shutil.rmtree(root, ignore_errors=True)
            packages = _fetch(place)
            for package in packages:
                _run(["dpkg-deb", "-x", str(package), str(root)])
            _merge_usr(root)
            _white_out(root, packages)
            complete.touch()
    return root


def _fetch(place: Path) -> list[Path]:
    """Have apt say what an installation would need here, and fetch that; it is all its own."""
    release = _codename()
    suite = f"{release}-backports"
    own = Path("/etc/apt/sources.list")
    (place / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {_archive(release)} {suite} main\n"
        + (own.read_text() if own.exists() else "")
    )
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True, exist_ok=True)
    for old in (place / "cache/archives").glob("*.deb"):
        old.unlink()
    apt = ["apt-get", "-qq", "--yes"]
    for setting in (
        f"Dir::Etc::sourcelist={place}/sources.list",
        f"Dir::State::lists={place}/lists",
        f"Dir::Cache={place}/cache",
        "APT::Sandbox::User=root",  # another user may not write here
    ):
        apt += ["-o", setting]
    _run([*apt, "update"])
    options = ["--download-only", "--no-install-recommends", f"--target-release={suite}"]
    _run([*apt, "install", *options, *_WANTED])
    return sorted((place / "cache/archives").glob("*.deb"))


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    known = dict(line.split("=", 1) for line in lines if "=" in line)
    if known.get("ID") != "debian" or "VERSION_CODENAME" not in known:
        raise NoBackportsError("this machine is no Debian: there are no backports for it")
    return known["VERSION_CODENAME"].strip('"')


def _archive(release: str) -> str:
    """Where this machine gets that release from."""
    wanted = ["--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for line in _run(["apt-get", "indextargets", *wanted]).splitlines():
        codename, uri = line.split()
        if codename == release:
            return uri
    raise BackportsError(f"apt knows no archive of {release}")


def _merge_usr(root: Path) -> None:
    """Move what packages put beside /usr into it: a directory would hide the machine's symlink."""
    for name in ("bin", "sbin", "lib", "lib64"):
        beside = root / name
        if beside.is_dir():
            shutil.copytree(beside, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(beside)


def _white_out(root: Path, packages: list[Path]) -> None:
    """Hide what the machine's versions of these packages have and the new ones have not.

    QEMU loads every module that it finds, of whatever version. A character device 0:0 is how an
    overlay is told that a file below is not there.
    """
    names = {_run(["dpkg-deb", "--field", str(package), "Package"]).strip() for package in packages}
    installed = _run(["dpkg-query", "--show", "--showformat", "${binary:Package}\\n"]).split()
    old = [package for package in installed if package.split(":")[0] in names]
    for line in _run(["dpkg-query", "--listfiles", *old]).splitlines():
        known = Path(line)
        if not known.is_absolute() or known.is_dir() or not os.path.lexists(known):
            continue
        hidden = root / known.parent.resolve().relative_to("/") / known.name
        if not os.path.lexists(hidden):
            hidden.parent.mkdir(parents=True, exist_ok=True)
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0))


def _run(argv: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BackportsError(f"{' '.join(argv)} failed:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    print(backports())
