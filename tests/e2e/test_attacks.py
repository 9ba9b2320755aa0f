"""A stranger with a key for the agent: what it can make of a host, over real ssh, and cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from entourage import messages
from lab.host import REPOSITORY, Host
from tests.e2e.run import PATIENCE

CONTENT = "SECRET OF THE HOST"
PROGRAM = "/tmp/prog"  # noqa: S108 - of a lab host
RAN = "/tmp/ran"  # noqa: S108 - same
CONFIG = "/etc/entourage/entourage.toml"
KEYS = "/root/.ssh/authorized_keys"


def speak(attacker: Host, victim: Host, *said: tuple[str, Any], by: str = "entourage") -> list[Any]:
    """Say this in the real protocol; what was answered to each."""
    argv = [sys.executable, "-m", "tests.e2e.attacker", victim.name, by]
    text = "".join(json.dumps(line) + "\n" for line in said)
    done = attacker.run(argv, input=text, timeout=PATIENCE, cwd=str(REPOSITORY))
    return [json.loads(line) for line in done.stdout.splitlines()]


def hello(hypervisor: str = "qemu") -> tuple[str, Any]:
    body = {
        "version": "0.1.0",
        "protocol": messages.OLDEST,
        "migration": f"m-{uuid.uuid4()}",
        "source": "a",
        "hypervisor": hypervisor,
    }
    return "hello", body


def domain(*disks: dict[str, Any], **more: Any) -> dict[str, Any]:
    machine = {
        "name": "evil",
        "uuid": str(uuid.uuid4()),
        "memory": 64 << 20,
        "machine": "pc-q35-7.2",
        "cpu": "qemu64",
        "accel": "tcg",
        "block": [
            {"id": f"d{number}", "address": "03.0", **disk} for number, disk in enumerate(disks)
        ],
    }
    return {**machine, **more}


def opening(what: dict[str, Any], key: str | None = "a2V5a2V5a2V5a2V5") -> tuple[str, Any]:
    secret = None if key is None else {"username": "entourage", "key": key}
    plane = {"address": "10.77.0.2", "ports": [49152, 49215], "secret": secret}
    body = {
        "generation": 1,
        "domain": what,
        "plane": plane,
        "source_journal": str(uuid.uuid4()),
        "paused": False,
    }
    return "open", body


def device(half: str, request: dict[str, Any], disk: str = "d0") -> tuple[str, Any]:
    return "device", {"device": f"block/{disk}", "half": half, "request": request}


def new_image(path: str, **more: Any) -> dict[str, Any]:
    new = {"path": path, "format": "raw", "size": 512, "room": 512, "preallocated": False}
    return {"type": "make", "new": {**new, **more}}


@pytest.fixture
def secret(b: Host) -> Generator[str]:
    """A file of b's that is none of anybody's business, larger than a sector."""
    path = "/root/secret"
    b.path(path).write_text(CONTENT * 100)
    yield path
    b.path(path).unlink()


def errors(answers: list[Any]) -> list[str]:
    return [answer["error"] for answer in answers if "error" in answer]


def test_no_program_of_its_choice_runs(a: Host, b: Host) -> None:
    b.write_files({PROGRAM: f"#!/bin/sh\ntouch {RAN}\n"})
    b.path(PROGRAM).chmod(0o755)
    for uri in (
        f"qemu+ext:///system?command={PROGRAM}",
        f"qemu+ssh://localhost/system?command={PROGRAM}",
        f"agentless qemu+ssh://localhost/system?command={PROGRAM}",
        f"afar qemu+ssh://localhost/system?command={PROGRAM}",
    ):
        said = errors(speak(a, b, hello(uri), ("test", {"domain": domain(), "facts": {}})))
        assert said, uri
        assert "allowed" in said[0] or "no hypervisor" in said[0], said
    assert not b.path(RAN).exists()


@pytest.mark.parametrize("readonly", [False, True])
def test_no_file_of_the_host_is_opened(a: Host, b: Host, secret: str, *, readonly: bool) -> None:
    before = b.path(secret).read_bytes()
    evil = domain({"path": secret, "readonly": readonly})
    said = errors(
        speak(a, b, hello(), opening(evil), ("build", {}), device("connect", {"type": "open"}))
    )
    assert any("image-directories" in one for one in said), said
    assert not any("QEMU" in one for one in said)
    assert b.path(secret).read_bytes() == before
    assert "qemu-system" not in b.run(["ps", "ax"]).stdout


def test_nor_looked_at_nor_digested(a: Host, b: Host, secret: str) -> None:
    what = domain({"path": "/srv/x.raw"})
    test = ("test", {"domain": what, "facts": {}})
    look = {"type": "look", "spots": [{"path": secret, "samples": [0]}]}
    said = speak(a, b, hello(), test, device("test", look),
                 device("test", {"type": "digest", "path": secret}))  # fmt: skip
    assert len(errors(said[2:])) == 2, said
    assert all("image-directories" in one for one in errors(said[2:]))


@pytest.mark.parametrize("more", [{}, {"readonly": True}, {"model": "ide-cd"}])
def test_another_guests_image_is_not_opened(a: Host, b: Host, more: dict[str, Any]) -> None:
    """It lies where images may lie; but it was neither made for this domain nor proven shared."""
    other = "/srv/other.raw"
    b.path(other).write_bytes(CONTENT.encode() * 512)
    try:
        said = errors(speak(a, b, hello(), opening(domain({"path": other, **more})), ("build", {})))
        assert any("neither made by this migration nor proven" in one for one in said), said
        # Nor by a nonce that it has made for itself, or a link to it.
        nonces = "/srv/.entourage-mine-1.nonce"
        nonce = new_image(nonces)
        said = errors(
            speak(a, b, hello(), opening(domain({"path": nonces})), device("prepare", nonce))
        )
        assert any("Entourage's own" in one for one in said), said
    finally:
        b.path(other).unlink()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (new_image("/etc/cron.d/zz", mode=0o4755, owner="root"), "image-directories"),
        (new_image("/srv/../etc/cron.d/zz"), "no plain absolute path"),
        (new_image("/srv/out/zz"), "image-directories"),
        (
            new_image("/srv/zz.qcow2", format="qcow2", options={"data_file": "/etc/shadow"}),
            "data_file",
        ),
        (
            new_image("/srv/zz.qcow2", format="qcow2", backing="/etc/shadow", backing_format="raw"),
            "image-directories",
        ),
        (
            new_image(
                "/srv/zz.qcow2", format="qcow2", options={"cluster_size": "65536,data_file=/x"}
            ),
            "cluster_size",
        ),
    ],
)
def test_nothing_is_made_elsewhere(a: Host, b: Host, request_: dict[str, Any], says: str) -> None:
    out = b.path("/srv/out")
    out.symlink_to("/etc/cron.d")
    try:
        what = domain({"path": request_["new"]["path"], "format": request_["new"]["format"]})
        said = errors(speak(a, b, hello(), opening(what), device("prepare", request_)))
        assert any(says in one for one in said), said
    finally:
        out.unlink()
    assert not b.path("/etc/cron.d/zz").exists()
    assert not list(Path(b.path("/srv")).glob("*zz*"))


def test_an_image_has_no_more_rights_than_one_has(a: Host, b: Host) -> None:
    make = new_image("/srv/zz.raw", mode=0o4777, owner="daemon", group="shadow")
    argv = [sys.executable, "-m", "tests.e2e.attacker", b.name, "entourage"]
    attacker = a.popen(argv, stdin=subprocess.PIPE, cwd=str(REPOSITORY))
    assert attacker.stdin
    assert attacker.stdout
    for line in (hello(), opening(domain({"path": "/srv/zz.raw"})), device("prepare", make)):
        attacker.stdin.write(json.dumps(line) + "\n")
        attacker.stdin.flush()
        assert "reply" in json.loads(attacker.stdout.readline())
    status = b.run(["stat", "-c", "%a %U %G", "/srv/zz.raw"]).stdout.strip()
    attacker.communicate(timeout=PATIENCE)
    assert status == "664 root root"
    assert not b.path("/srv/zz.raw").exists()  # undone, as the link has ended


def test_the_hosts_own_devices_are_its_own(a: Host, b: Host) -> None:
    for more in (
        {"usb": [{"id": "key", "vendor": 0x1050, "product": 0x0407}]},
        {"pci": [{"id": "gpu", "host": "0000:00:01.0", "address": "05.0"}]},
        {"tpm": [{"id": "tpm0", "type": "passthrough", "path": "/dev/tpm0"}]},
        {"boot": {"kernel": "/etc/shadow"}},
        {"boot": {"firmware": "/root/.ssh/id_ed25519"}},
    ):
        said = errors(speak(a, b, hello(), opening(domain(**more)), ("build", {})))
        assert any("agent.devices" in one or "agent.boot-directories" in one for one in said), said


def test_a_domain_that_runs_there_is_not_ended(a: Host, b: Host) -> None:
    """By a migration of the same UUID that is opened and then called off."""
    b.write_files({"/root/victim.toml": 'name = "victim"\nmemory = "64M"\naccel = "tcg"\n'})
    b.run(["entourage", "start", "/root/victim.toml"], timeout=PATIENCE)
    try:
        [victim] = json.loads(b.run(["entourage", "list", "--json"]).stdout)
        for evil in ({"uuid": victim["uuid"]}, {"name": "victim"}):
            said = errors(speak(a, b, hello(), opening(domain(**evil)), ("abort", None)))
            assert any("there is a domain victim here already" in one for one in said), said
        [after] = json.loads(b.run(["entourage", "list", "--json"]).stdout)
        assert after == victim
    finally:
        b.run(["entourage", "stop", "--force", "victim"], timeout=PATIENCE)
        b.run(["sh", "-c", "rm -r /var/lib/entourage/domains/* /root/victim.toml"])


def test_an_open_migration_is_not_exchanged_for_another(a: Host, b: Host) -> None:
    what = domain()
    test = ("test", {"domain": domain(), "facts": {}})
    other = ("hello", {**hello()[1], "migration": "m-other"})
    said = speak(a, b, hello(), opening(what), test, other)
    assert "was tested before" in said[2]["error"]
    assert "one migration" in said[3]["error"]


def test_memory_is_not_taken_in_the_clear(a: Host, b: Host) -> None:
    text = b.path(CONFIG).read_text()
    b.write_files({CONFIG: text.replace("allow-unencrypted = true", "")})
    try:
        said = errors(speak(a, b, hello(), opening(domain(), key=None), ("build", {})))
        assert any("not taken unencrypted" in one for one in said), said
    finally:
        b.write_files({CONFIG: text})


def test_a_key_with_a_forced_command_gives_no_more_than_moving_in(a: Host, b: Host) -> None:
    keys = b.path(KEYS).read_text()
    program = b.run(["sh", "-c", "command -v entourage"]).stdout.strip()
    forced = f'restrict,command="{program} agent --forced --source a" '
    b.write_files({KEYS: "".join(f"{forced}{key}\n" for key in keys.splitlines())})
    try:
        [welcome] = speak(a, b, hello())
        assert "reply" in welcome, welcome
        for asked in (["id"], ["entourage", "list"], ["entourage", "agent", "--proxy"], []):
            done = a.run(["ssh", b.name, *asked], check=False)
            assert done.returncode == 2, asked
            assert "only moves machines in" in done.stderr
            assert "uid=" not in done.stdout
        version = a.run(["ssh", b.name, "entourage", "--version"])
        assert version.stdout.startswith("entourage ")
        [refused] = speak(a, b, ("hello", {**hello()[1], "source": "c"}))
        assert "--source" in refused["error"]
    finally:
        b.write_files({KEYS: keys})


def test_a_boot_file_is_not_even_opened_before_the_rules(a: Host, b: Host) -> None:
    """By a stranger who leaves TEST out; a FIFO would hold the agent up, were it opened."""
    b.run(["mkfifo", "/root/fifo"])
    try:
        for kernel in ("/root/fifo", "/etc/shadow"):
            said = errors(speak(a, b, hello(), opening(domain(boot={"kernel": kernel}))))
            assert any("boot-directories" in one for one in said), said
            assert not any("there is no" in one for one in said), said
    finally:
        b.path("/root/fifo").unlink()


def test_a_uuid_is_one_in_any_letters(a: Host, b: Host) -> None:
    """A machine of b's is known by its UUID also where that is written in capitals."""
    b.write_files({"/root/victim.toml": 'name = "victim"\nmemory = "64M"\naccel = "tcg"\n'})
    b.run(["entourage", "start", "/root/victim.toml"], timeout=PATIENCE)
    try:
        [victim] = json.loads(b.run(["entourage", "list", "--json"]).stdout)
        evil = domain(uuid=victim["uuid"].upper())
        said = errors(speak(a, b, hello(), opening(evil), ("abort", None)))
        assert any("there is a domain victim here already" in one for one in said), said
    finally:
        b.run(["entourage", "stop", "--force", "victim"], timeout=PATIENCE)
        b.run(["sh", "-c", "rm -r /var/lib/entourage/domains/* /root/victim.toml"])


def test_the_handover_needs_a_greeting_of_the_same_migration(a: Host, b: Host) -> None:
    other = ("handover", {"verb": "ask", "migration": "m-another"})
    before = b.run(["entourage", "status", "--all", "--json"]).stdout
    said = speak(a, b, other, hello(), other, ("bye", None))
    assert said[-1]["reply"]["settled"] is False
    assert b.run(["entourage", "status", "--all", "--json"]).stdout == before


def test_a_disk_is_made_once_and_where_the_domain_has_it(a: Host, b: Host) -> None:
    what = domain({"path": "/srv/zz.raw"})
    said = speak(
        a, b, hello(), opening(what),
        device("prepare", new_image("/srv/another.raw")),
        device("prepare", new_image("/srv/zz.raw", format="qcow2")),
        device("prepare", new_image("/srv/zz.raw")),
        device("prepare", new_image("/srv/zz.raw")),
    )  # fmt: skip
    assert ["reply" in one for one in said[2:]] == [False, False, True, False], said
    assert not list(Path(b.path("/srv")).glob("*zz*"))


def test_what_is_only_read_is_not_copied_onto(a: Host, b: Host) -> None:
    """A CD whose content the stranger knows is opened for reading; and stays as it is."""
    content = CONTENT.encode() * 512
    b.path("/srv/cd.iso").write_bytes(content)
    known = hashlib.sha256(content).hexdigest()
    digest = device("test", {"type": "digest", "path": "/srv/cd.iso", "known": known})
    try:
        for more in ({}, {"readonly": True}):
            what = domain({"path": "/srv/cd.iso", **more})
            test = ("test", {"domain": what, "facts": {}})
            said = speak(a, b, hello(), test, digest, opening(what),
                         ("build", {}), device("connect", {"type": "open"}))  # fmt: skip
            assert said[2] == {"reply": known}
            assert any("was not made by this migration" in one for one in errors(said)), said
        assert b.path("/srv/cd.iso").read_bytes() == content
    finally:
        b.path("/srv/cd.iso").unlink()


def test_no_privileged_port_is_listened_at(a: Host, b: Host) -> None:
    kind, body = opening(domain())
    body["plane"]["ports"] = [80, 80]
    said = errors(speak(a, b, hello(), (kind, body)))
    assert any("agent.ports" in one for one in said), said


def test_a_migrations_id_is_no_path(a: Host, b: Host) -> None:
    for bad in ("../../etc/x", "a/b", "", "x" * 100):
        said = errors(speak(a, b, ("hello", {**hello()[1], "migration": bad})))
        assert said, bad


def test_a_digest_is_told_to_nobody(a: Host, b: Host) -> None:
    """Or a stranger would know, a moment later, what is in another guest's disk."""
    b.path("/srv/victim.raw").write_bytes(CONTENT.encode() * 512)
    try:
        what = domain({"path": "/srv/x.raw"})
        test = ("test", {"domain": what, "facts": {}})
        asked = [
            device("test", {"type": "digest", "path": "/srv/victim.raw", "known": known})
            for known in ("", "0" * 64)
        ]
        assert [said.get("reply") for said in speak(a, b, hello(), test, *asked)[2:]] == ["", ""]
    finally:
        b.path("/srv/victim.raw").unlink()


def test_another_migrations_id_ends_nothing_of_it(a: Host, b: Host) -> None:
    mine = hello()
    argv = [sys.executable, "-m", "tests.e2e.attacker", b.name, "entourage"]
    victim = a.popen(argv, stdin=subprocess.PIPE, cwd=str(REPOSITORY))
    assert victim.stdin
    assert victim.stdout
    disk = {"path": "/srv/zz.raw"}
    for line in (mine, opening(domain(disk)), device("prepare", new_image("/srv/zz.raw"))):
        victim.stdin.write(json.dumps(line) + "\n")
        victim.stdin.flush()
        assert "reply" in json.loads(victim.stdout.readline())
    said = errors(speak(a, b, mine, opening(domain(name="other")), ("abort", None)))
    assert any("was opened before" in one for one in said), said
    assert b.path("/srv/zz.raw").exists()
    victim.communicate(timeout=PATIENCE)
    assert not b.path("/srv/zz.raw").exists()
