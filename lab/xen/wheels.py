"""Entourage on the lab's Xen hosts: from wheels alone, without a compiler or a network there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.guest_image import CACHE
from lab.host import REPOSITORY
from lab.xen.hosts import XenHost

_PYTHON = "3.11"  # of the hosts' Debian
_SITE = f"/usr/local/lib/python{_PYTHON}/dist-packages"
_ENTRY = """\
#!/usr/bin/python3
from entourage.__main__ import command
command()
"""


def install(hosts: Sequence[XenHost]) -> None:
    """Put Entourage, as this tree has it, and what it needs on hosts."""
    constraints = REPOSITORY / "constraints.txt"
    # Those of other versions stay where they are.
    wheels = CACHE / f"xen-wheels-{hashlib.sha256(constraints.read_bytes()).hexdigest()[:12]}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not any(wheels.glob("msgspec-*.whl")):  # what it needs: once
        subprocess.run(
            [*pip, "wheel", "--constraint", constraints, "--wheel-dir", wheels, REPOSITORY],
            check=True,
        )
    for old in wheels.glob("entourage-*.whl"):
        old.unlink()
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", wheels, REPOSITORY],
        check=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        site, archive = Path(scratch, "site"), Path(scratch, "site.tar")
        subprocess.run(
            [*pip, "install", "--no-index", "--no-deps", "--no-compile", "--python-version",
             _PYTHON, "--only-binary=:all:", "--target", site, *wheels.glob("*.whl")],
            check=True,
        )  # fmt: skip
        # Here, where it takes a second; another Python's is passed over there.
        subprocess.run([sys.executable, "-m", "compileall", "-q", site], check=True)
        subprocess.run(["tar", "-czf", archive, "-C", site, "."], check=True)

        def put(host: XenHost) -> None:
            host.unpack(archive, _SITE)
            host.write("/usr/local/bin/entourage", _ENTRY)
            host.run(["chmod", "755", "/usr/local/bin/entourage"])

        with ThreadPoolExecutor() as pool:
            list(pool.map(put, hosts))
