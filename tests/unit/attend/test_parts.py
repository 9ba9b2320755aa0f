"""Which devices are ours, what is shown, and what is read of libvirt's XML and written into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from entourage.attend import shown
from entourage.attend.devices import attended_part
from entourage.attend.shown import AttendedDomain, LastTry, lines
from entourage.domain import Block, Domain, External, Tpm
from entourage.errors import ConfigError, HypervisorError
from entourage.events import CopyProgress, Finished, GoSent
from entourage.hypervisors.attended.toolstack import Note
from entourage.hypervisors.libvirt.attending import arriving, with_object, without_object
from entourage.hypervisors.libvirt.toolstack import owner_in
from entourage.journal.lock import domain_lock
from entourage.settings.model import PathSettings, Settings, ToolSettings
from entourage.steps import Refusal

DONGLE = External(id="dongle", type="dongle", tool="/bin/true")
DOMAIN = Domain(
    name="web1",
    uuid="0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b",
    memory=1 << 28,
    block=(Block(id="vda", path="/srv/a.qcow2", format="qcow2"),),
    tpm=(Tpm(id="tpm0"),),
    external=(DONGLE,),
)
XML = """<domain type='kvm' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b</uuid>
  <metadata>
    <n:migration xmlns:n="urn:entourage:attend" host="a" nonce="00ff"/>
  </metadata>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value='rng-random,id=mine'/>
  </qemu:commandline>
</domain>
"""


def test_only_what_is_ours_is_left() -> None:
    part = attended_part(DOMAIN, Settings())
    assert part.devices == (DONGLE,)
    assert (part.name, part.uuid) == (DOMAIN.name, DOMAIN.uuid)


def test_a_notice_to_the_guest_is_ours() -> None:
    notices: dict[str, tuple[dict[str, Any], ...]] = {
        "notice": ({"id": "app", "program": "/etc/moved"},)
    }
    part = attended_part(msgspec.structs.replace(DOMAIN, added=notices), Settings())
    assert [device.label for device in part.devices] == ["external/dongle", "notice/app"]


def test_a_tool_of_another_device_is_ours() -> None:
    settings = Settings(tool=ToolSettings(tpm="/opt/move-tpm -v", subtypes={"tpm": "swtpm"}))
    part = attended_part(DOMAIN, settings)
    assert part.external == (
        DONGLE,
        External(id="tpm0", type="vtpm", subtype="swtpm", tool="/opt/move-tpm -v"),
    )


def test_two_devices_of_one_id_cannot_be_told_apart() -> None:
    domain = msgspec.structs.replace(DOMAIN, external=(External(id="tpm0", type="x"),))
    with pytest.raises(ConfigError, match="tpm0"):
        attended_part(domain, Settings(tool=ToolSettings(tpm="/opt/move-tpm")))


def test_a_note_is_read() -> None:
    coming = arriving(XML)
    assert (coming.name, coming.uuid) == ("web1", DOMAIN.uuid)
    assert coming.note == Note(host="a", nonce="00ff")


def test_a_domain_without_one_is_not_attended() -> None:
    assert arriving("<domain/>").note is None


def test_what_is_no_xml_is_refused() -> None:
    with pytest.raises(HypervisorError):
        arriving("<domain>")


def test_the_object_is_one_more_argument() -> None:
    text = with_object(XML, "/run/x.sock")
    arguments = ET.fromstring(text).iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")  # noqa: S314
    values = [each.get("value") for each in arguments]
    assert values == [
        "-object",
        "rng-random,id=mine",
        "-object",
        "dbus-vmstate,id=entourage-attend,addr=unix:path=/run/x.sock,id-list=entourage",
    ]


def test_the_object_is_taken_out_again() -> None:
    assert without_object(with_object(XML, "/run/x.sock")) == XML
    alone = "<domain>\n  <name>a</name>\n</domain>\n"
    assert without_object(with_object(alone, "/run/x.sock")) == alone
    assert without_object(XML) == XML


@pytest.mark.parametrize(
    ("label", "owner"), [("+64055:+64055", 64055), ("+0:+0", 0), ("libvirt-qemu", 0), ("", 0)]
)
def test_qemus_user_is_read(label: str, owner: int) -> None:
    text = f"""<capabilities><host>
      <secmodel><model>apparmor</model><doi>0</doi></secmodel>
      <secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>{label}</baselabel></secmodel>
    </host></capabilities>"""
    assert owner_in(text) == owner


def test_what_is_shown_is_written_and_read(tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(run=str(tmp_path)))
    last = LastTry(
        target="b",
        ended="2026-01-01T00:00:00+00:00",
        outcome="refused",
        message="all of it",
        refusals=(Refusal("external/dongle", "a", "no tool", "install it"),),
    )
    one = AttendedDomain(domain="web1", uuid="u", devices=("external/dongle",), last=last)
    shown.write(settings, one)
    (tmp_path / "attend/other.json").write_text("{")
    with domain_lock(tmp_path, shown.LOCK, "attends migrations"):
        assert shown.read_all(settings) == [one]
    assert [line.strip() for line in lines(one, brief=True)] == [
        "web1: attended: whoever migrates it takes these devices along",
        "device     external/dongle",
        "last       to b, 2026-01-01T00:00:00+00:00: refused",
        "external/dongle on a: no tool (install it)",
    ]
    shown.left(settings, one)
    assert "any more" in shown.read_all(settings)[0].problem
    shown.left(settings, msgspec.structs.replace(one, last=None))
    assert shown.read_all(settings) == []


def test_the_events_of_the_last_migration_are_kept(tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(run=str(tmp_path)))
    for outcome in ("rolled-back", "moved"):
        events = shown.EventsFile(settings, "u")
        events.write(CopyProgress(at=1, what="memory", done=1, total=2))
        events.write(GoSent(at=2))
        events.write(Finished(at=3, outcome=outcome, seconds=3, runs_on="b"))
        events.write(GoSent(at=4))  # nothing comes after the last one
    lines_written = (tmp_path / "attend/u.jsonl").read_text().splitlines()
    assert [msgspec.json.decode(line)["event"] for line in lines_written] == ["go-sent", "finished"]
    assert msgspec.json.decode(lines_written[-1])["outcome"] == "moved"
    assert (tmp_path / "attend/u.jsonl").stat().st_mode & 0o777 == 0o600
