"""libvirt's hook: what it prints and how it ends, with a daemon's socket and without one."""

from __future__ import annotations

import io
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from entourage.hypervisors.attended import hook
from tests.unit.attend.standins import answering

HOOK = Path(hook.__file__)
ATTENDED = "<domain><migration xmlns='urn:entourage:attend'/></domain>"


def run(tmp_path: Path, xml: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "ENTOURAGE_RUN_DIR": str(tmp_path),
        "ENTOURAGE_CONFIG": str(tmp_path / "settings.toml"),
    }
    return subprocess.run(
        [sys.executable, "-IS", str(HOOK), *words],
        input=xml,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


def daemon(tmp_path: Path, answer: bytes) -> list[dict[str, str]]:
    return answering(tmp_path / "attend/control", answer)


def test_a_domain_that_is_not_attended_is_not_touched(tmp_path: Path) -> None:
    done = run(tmp_path, "<domain/>", "web1", "migrate", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_for_it_nothing_is_imported_that_takes_time() -> None:
    program = f"""import sys
sys.path.insert(0, {str(HOOK.parent)!r})
import hook
hook.main(["web1", "migrate", "begin", "-"])
print(sorted({{"json", "socket", "tomllib", "re", "typing"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program],
        input="<domain/>",
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "reconnect"])
def test_other_operations_are_nothing_to_it(tmp_path: Path, operation: str) -> None:
    done = run(tmp_path, ATTENDED, "web1", operation, "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_daemon_says_is_printed(tmp_path: Path) -> None:
    asked = daemon(tmp_path, b'{"xml": "<domain>more</domain>"}\n')
    done = run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "<domain>more</domain>", "")
    assert asked == [{"hook": ["web1", "migrate", "begin"], "xml": ATTENDED}]


def test_a_refusal_is_told(tmp_path: Path) -> None:
    daemon(tmp_path, b'{"refuse": "external/dongle on a: no tool"}\n')
    done = run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
    assert done.returncode == 1
    assert done.stderr == "entourage: external/dongle on a: no tool\n"


def test_a_daemon_that_dies_meanwhile_refuses(tmp_path: Path) -> None:
    daemon(tmp_path, b"")
    done = run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
    assert done.returncode == 1
    assert "its daemon does not answer on this host" in done.stderr


def test_one_that_works_on_it_is_waited_for(tmp_path: Path) -> None:
    daemon(tmp_path, b'\n\n{"xml": "<domain>more</domain>"}\n')
    done = run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
    assert (done.returncode, done.stdout) == (0, "<domain>more</domain>")


def test_one_that_hangs_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes the question, and says nothing, not even that it works on it."""
    (tmp_path / "attend").mkdir()
    monkeypatch.setenv("ENTOURAGE_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("ENTOURAGE_CONFIG", str(tmp_path / "settings.toml"))
    monkeypatch.setattr(hook, "_LIVES_WITHIN", 0.05)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ATTENDED.encode())))
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(tmp_path / "attend/control"))
        hangs.listen()
        assert hook.main(["web1", "migrate", "begin", "-"]) == 1
    assert "its daemon does not answer on this host (timed out)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "status"),
    [(None, 1), ('[attend]\nunattended = "allow"\n', 0), ("attend = 3\n", 1), ("[[[\n", 1)],
)
def test_without_a_daemon_the_settings_say(
    tmp_path: Path, settings: str | None, status: int
) -> None:
    if settings is not None:
        (tmp_path / "settings.toml").write_text(settings)
    done = run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
    assert (done.returncode, done.stdout) == (status, "")
    assert not status or "systemctl start entourage-attend" in done.stderr


def test_nobody_waits_for_a_daemon_when_a_domain_has_ended(tmp_path: Path) -> None:
    assert run(tmp_path, ATTENDED, "web1", "release", "end", "-").returncode == 0


ARRIVED = """<domain>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value='dbus-vmstate,id=entourage-attend,addr=unix:path=/x,id-list=entourage'/>
    <qemu:arg value='-object'/>
    <qemu:arg value='rng-random,id=mine'/>
  </qemu:commandline>
  {}
</domain>
"""


def test_an_object_of_an_earlier_arrival_is_taken_out(tmp_path: Path) -> None:
    """Its bus was on the host that the domain leaves."""
    done = run(tmp_path, ARRIVED.format(""), "web1", "migrate", "begin", "-")
    assert done.returncode == 0
    assert "entourage" not in done.stdout
    assert done.stdout.count("-object") == 1
    assert "rng-random,id=mine" in done.stdout


def test_a_domain_that_was_saved_is_restored_without_it(tmp_path: Path) -> None:
    """Nobody listens at its bus then; and no daemon is asked."""
    done = run(tmp_path, ARRIVED.format(ATTENDED), "web1", "restore", "begin", "-")
    assert done.returncode == 0
    assert "id=entourage-attend" not in done.stdout
    assert "rng-random,id=mine" in done.stdout


def test_the_daemon_does_not_see_it(tmp_path: Path) -> None:
    asked = daemon(tmp_path, b"{}\n")
    done = run(tmp_path, ARRIVED.format(ATTENDED), "web1", "migrate", "begin", "-")
    assert done.returncode == 0
    assert "id=entourage-attend" not in asked[0]["xml"]
    assert done.stdout == asked[0]["xml"]


def test_the_settings_say_where_the_daemon_is(tmp_path: Path) -> None:
    """The hook is libvirt's child: nobody gives it an environment."""
    asked = answering(tmp_path / "elsewhere/attend/control", b"{}\n")
    (tmp_path / "settings.toml").write_text(f'[paths]\nrun = "{tmp_path}/elsewhere"\n')
    done = subprocess.run(
        [sys.executable, "-IS", str(HOOK), "web1", "migrate", "begin", "-"],
        input=ATTENDED,
        env={"ENTOURAGE_CONFIG": str(tmp_path / "settings.toml")},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert asked


def test_it_is_quick(tmp_path: Path) -> None:
    """Each start of a domain waits for it, also where it reads the settings."""
    (tmp_path / "settings.toml").write_text("")
    took: list[float] = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(tmp_path, ATTENDED, "web1", "migrate", "begin", "-")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.1, took


# Proxmox VE's guest hookscript


def hookscript(tmp_path: Path, phase: str, source: str = "a") -> subprocess.CompletedProcess[str]:
    environment = {
        "ENTOURAGE_RUN_DIR": str(tmp_path),
        "ENTOURAGE_CONFIG": str(tmp_path / "settings.toml"),
        "ENTOURAGE_PROXMOX_NOTES": str(tmp_path / "notes"),
        **({"PVE_MIGRATED_FROM": source} if source else {}),
    }
    return subprocess.run(
        [sys.executable, "-IS", str(HOOK), "proxmox", "101", phase],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def noted(tmp_path: Path) -> None:
    """The VM is attended, on the node that has it."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/101.json").write_text("{}")


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(("phase", "what"), [("pre-start", "begin"), ("post-start", "started")])
def test_a_vm_that_comes_is_asked_about(tmp_path: Path, phase: str, what: str) -> None:
    asked = daemon(tmp_path, b"{}\n")
    done = hookscript(tmp_path, phase)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said = '{"vmid": "101", "source": "a"}'
    assert asked == [{"hook": ["101", "migrate", what], "xml": said}]


@pytest.mark.usefixtures("noted")
def test_a_vm_that_is_refused_does_not_start(tmp_path: Path) -> None:
    daemon(tmp_path, b'{"refuse": "external/dongle on a: no tool"}\n')
    done = hookscript(tmp_path, "pre-start")
    assert (done.returncode, done.stderr) == (1, "entourage: external/dongle on a: no tool\n")


@pytest.mark.usefixtures("noted")
def test_nor_does_one_without_a_daemon(tmp_path: Path) -> None:
    assert hookscript(tmp_path, "pre-start").returncode == 1
    (tmp_path / "settings.toml").write_text('[attend]\nunattended = "allow"\n')
    assert hookscript(tmp_path, "pre-start").returncode == 0


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(("phase", "source"), [("pre-start", ""), ("pre-stop", "a")])
def test_of_all_else_it_knows_nothing(tmp_path: Path, phase: str, source: str) -> None:
    assert hookscript(tmp_path, phase, source).returncode == 0


def test_a_vm_that_is_not_attended_may_come(tmp_path: Path) -> None:
    assert hookscript(tmp_path, "pre-start").returncode == 0
