"""One lock a domain: its holder is named, and its death, not the file, frees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entourage.errors import DomainBusy
from entourage.journal.lock import Holder, domain_lock, lock_holder

PROGRAM = """
import sys
from pathlib import Path
from entourage.journal.lock import domain_lock
with domain_lock(Path(sys.argv[1]), "d-1", "migrates web1 to b") as lock:
    lock.note("TRANSFER")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_told_who_works_and_on_what(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(DomainBusy, match=rf"{holder.pid}.*TRANSFER"),
            domain_lock(tmp_path, "d-1", "stops web1"),
        ):
            pass
        assert lock_holder(tmp_path, "d-1") == Holder(holder.pid, "TRANSFER")
        with domain_lock(tmp_path, "d-2", "works on another domain"):
            pass
        holder.kill()
    assert lock_holder(tmp_path, "d-1") is None
    with domain_lock(tmp_path, "d-1", "stops web1"):
        assert lock_holder(tmp_path, "d-1") == Holder(os.getpid(), "stops web1")
    assert lock_holder(tmp_path, "d-1") is None


def test_nobody_holds_what_was_never_locked(tmp_path: Path) -> None:
    assert lock_holder(tmp_path, "d-1") is None


def test_the_deadman_keeps_it_and_others_do_not(tmp_path: Path) -> None:
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    pipe = subprocess.PIPE
    with domain_lock(tmp_path, "d-1", "migrates") as lock:
        stranger = subprocess.Popen(waits, stdin=pipe)
        hand = subprocess.Popen(waits, stdin=pipe, pass_fds=(lock.fileno(),))
    try:
        assert lock_holder(tmp_path, "d-1") is not None
        hand.communicate()
        assert lock_holder(tmp_path, "d-1") is None
    finally:
        for child in (hand, stranger):
            child.kill()
            child.communicate()


def test_a_holder_that_said_nothing_legible_still_holds(tmp_path: Path) -> None:
    with domain_lock(tmp_path, "d-1", "works"):
        (tmp_path / "d-1.lock").write_text("{")
        with pytest.raises(DomainBusy, match="not known"), domain_lock(tmp_path, "d-1", "works"):
            pass
