"""AppArmor's parser, and Debian's profiles of libvirt's QEMUs: fetched and unpacked, not installed.

An installation would load profiles into this machine's kernel. Nothing needs a kernel that has
AppArmor: the profiles are only parsed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab.guest_image import CACHE

_WANTED = ("apparmor", "libvirt-daemon-system")


class NoAppArmorError(RuntimeError):
    """apt has no such packages."""


def unpacked() -> Path:
    """Return the folder in which the packages' files are, made now if it is not there.

    Raises:
        NoAppArmorError: They cannot be fetched.
    """
    place = CACHE / "apparmor"
    root, scratch = place / "root", place / "scratch"
    if root.exists():
        return root
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # It would drop to another user for this, who may not write here.
    apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *_WANTED]
    done = subprocess.run(apt, check=False, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        raise NoAppArmorError(done.stderr)
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, scratch / "root"], check=True)
    (scratch / "root").rename(root)
    shutil.rmtree(scratch)
    return root
