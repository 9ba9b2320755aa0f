"""A UEFI guest moves with its firmware's variables, and boots with them where it came."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.host import Host
from lab.hosts import Lab
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, shared_storage
from tests.e2e.world import qmp_on

CODE, TEMPLATE = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
pytestmark = pytest.mark.skipif(not Path(CODE).exists(), reason="OVMF is not installed")


@contextlib.contextmanager
def booted(lab: Lab, variables: str) -> Generator[None]:
    """A guest on a that never comes further than its firmware, which has written variables."""
    a, b, mine = lab["a"], lab["b"], uuid.uuid4()  # the one before it has moved away
    text = f"""
name = "uefi"
uuid = "{mine}"
memory = "192M"
accel = "tcg"
[boot]
firmware = "{CODE}"
nvram = "{variables}"
"""
    a.path("/root/uefi.toml").write_text(text)
    a.run(["entourage", "start", "uefi.toml"], timeout=PATIENCE)
    try:
        deadline = time.monotonic() + PATIENCE
        while content(a, variables) == Path(TEMPLATE).read_bytes():
            assert time.monotonic() < deadline, "the firmware has written nothing"
            time.sleep(0.1)  # nothing tells that a firmware has come so far
        yield
    finally:
        for host in (a, b):
            host.run(["entourage", "stop", "--force", "uefi"], check=False, timeout=PATIENCE)
            host.run(["rm", "-rf", f"/var/lib/entourage/domains/{mine}", variables])


def content(host: Host, path: str) -> bytes:
    return host.path(path).read_bytes()


def test_the_variables_move_with_the_guest(lab: Lab) -> None:
    a, b, variables = lab["a"], lab["b"], "/srv/uefi-vars.fd"
    with booted(lab, variables):
        shown = json.loads(a.run(["entourage", "show", "--json", "uefi"]).stdout)
        assert [(disk["model"], disk["path"]) for disk in shown["block"]] == [("pflash", variables)]
        qmp_on(a, "stop")  # so that what is compared stays as it is
        kept = content(a, variables)
        a.run(["entourage", "migrate", "uefi", "b"], timeout=PATIENCE)
        assert content(b, variables) == kept != Path(TEMPLATE).read_bytes()
        assert not a.path(variables).exists()
        assert b.path(variables).stat().st_uid != 0  # while it runs, QEMU's user's
        qmp_on(b, "cont")
        b.run(["entourage", "stop", "--force", "uefi"], timeout=PATIENCE)
        assert b.path(variables).stat().st_uid == 0
        kept = content(b, variables)
        # From its record: it is not made anew, and what was written is still there.
        b.run(["entourage", "start", "uefi"], timeout=PATIENCE)
        assert content(b, variables)[: 64 << 10] != Path(TEMPLATE).read_bytes()[: 64 << 10]
        assert len(content(b, variables)) == len(kept)


@pytest.mark.matrix
def test_shared_variables_stay_where_they_are(lab: Lab) -> None:
    a, b, variables = lab["a"], lab["b"], f"{SHARED}/uefi-vars.fd"
    with shared_storage(lab), booted(lab, variables):
        before = a.path(variables).stat()
        qmp_on(a, "stop")
        kept = content(a, variables)
        a.run(["entourage", "migrate", "uefi", "b"], timeout=PATIENCE)
        after = b.path(variables).stat()
        assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
        assert content(b, variables) == kept


def test_code_without_variables_is_refused(lab: Lab) -> None:
    """As `-bios` QEMU takes no such file; the remedy says what to write."""
    a = lab["a"]
    a.path("/root/bios.toml").write_text(
        f'name = "bios"\nmemory = "192M"\n[boot]\nfirmware = "{CODE}"\n'
    )
    done = a.run(["entourage", "start", "bios.toml"], check=False)
    assert done.returncode == 2
    assert "is no BIOS" in done.stderr
    assert 'nvram = "/srv/' in done.stderr
