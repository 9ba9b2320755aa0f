"""Every construct that a domain's XML may have: what becomes of it is what docs/libvirt.md says.

``data/constructs.txt`` has one or more pieces of XML for each row of the table there. Each is read
and shown as ``entourage show`` does, and asked about as TEST does: of a target with the default
settings that has none of what it names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import pytest

from entourage.domain import Domain
from entourage.hosts.allowed import Allowed
from entourage.hypervisors.libvirt import handed
from entourage.hypervisors.libvirt.bootfiles import about, boot_refusals
from entourage.hypervisors.libvirt.connection import Connection
from entourage.hypervisors.libvirt.domainxml import Lookups, parse, read_domain
from entourage.hypervisors.libvirt.elements import KNOWN, unknown_elements
from entourage.hypervisors.libvirt.needs import needs
from entourage.hypervisors.libvirt.survey import unknown
from entourage.settings.domainfile import dump_domain
from entourage.settings.model import AgentSettings
from tests.unit.hypervisors.libvirt.fakes import Failed, use_fakes

HERE = Path(__file__).parent
DOCS = Path(__file__).parents[4] / "docs" / "libvirt.md"
SCHEMAS = Path("/usr/share/libvirt/schemas")
MOVES, STEP, LIBVIRT = "moves", "has steps", "libvirt decides"
ALLOW, LOOK, WARN = "must be allowed", "must be there", "warning"
BASE = {
    "name": "<name>web1</name>",
    "uuid": "<uuid>2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11</uuid>",
    "memory": "<memory unit='KiB'>262144</memory>",
    "os": "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>",
}
LOOKUPS = Lookups(volume=lambda _pool, name: f"/var/lib/libvirt/images/{name}")


class Case(NamedTuple):
    """A piece of XML, the row of the table that it is of, and what becomes of it."""

    row: str
    fates: frozenset[str]
    xml: str


def cases() -> Iterator[Case]:
    for line in (HERE / "data" / "constructs.txt").read_text().splitlines():
        row, fates, xml = line.split(" | ", 2)
        yield Case(row, frozenset(fates.split(", ")), xml)


CASES = list(cases())


def whole(xml: str) -> str:
    """A domain with this in it."""
    root = parse(f"<domain type='kvm'>{xml}</domain>")
    missing = [text for tag, text in BASE.items() if root.find(tag) is None]
    for text in missing:
        root.append(parse(text))
    return ET.tostring(root, encoding="unicode")


class Nothing:
    """A fake of ``virConnect`` that has nothing."""

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's
        emulator = "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
        return f"<capabilities><guest><arch>{emulator}</arch></guest></capabilities>"

    def _none(self, *_: object) -> Any:
        raise Failed

    secretLookupByUUIDString = secretLookupByUsage = _none  # noqa: N815 - libvirt's
    nwfilterLookupByName = networkLookupByName = _none  # noqa: N815 - libvirt's


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookups(_connection: Connection) -> Lookups:
        return LOOKUPS

    use_fakes(monkeypatch, "needs")
    monkeypatch.setattr(handed, "lookups_of", lookups)


async def fates_of(text: str) -> frozenset[str]:
    """What becomes of what is in a domain, by what TEST says of it."""
    domain = read_domain(text, LOOKUPS)
    assert dump_domain(domain)
    connection: Any = SimpleNamespace(raw=Nothing())
    found = {STEP for _ in (*domain.block, *domain.net, *domain.tpm)}
    found |= {LIBVIRT for _ in (*domain.usb, *domain.pci)}
    parts = await handed.told(connection, {"xml": text})
    refusals = Allowed(AgentSettings()).not_allowed(domain, "b", built=False, parts=parts)
    found |= {ALLOW for _ in refusals}
    assert all(refusal.remedy for refusal in refusals), refusals
    lacks = await needs(connection, {"xml": text}, "b", files=True)
    lacks += await boot_refusals(domain, "b", await about(domain))
    found |= {LOOK for _ in lacks}
    assert all(refusal.remedy for refusal in lacks), lacks
    found |= {WARN for _ in unknown(parse(text), "a")}
    return frozenset(found or {MOVES})


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{at}-{one.row[:40]}" for at, one in enumerate(CASES)]
)
async def test_what_becomes_of_it_is_what_is_written(case: Case) -> None:
    assert await fates_of(whole(case.xml)) == case.fates


def table() -> dict[str, frozenset[str]]:
    """The rows of the table in the documentation, and what each says becomes of it."""
    _, _, section = DOCS.read_text().partition("\n| In the XML ")
    found: dict[str, frozenset[str]] = {}
    for line in section.partition("\n\n")[0].splitlines()[1:]:
        if line.startswith("| ") and not line.startswith("| ---"):
            row, fates, _ = (cell.strip() for cell in line.strip("|").split("|"))
            found[row.replace("`", "")] = frozenset(fates.split(", "))
    return found


def test_the_table_says_what_becomes_of_each() -> None:
    by_row = {
        row: frozenset(
            itertools.chain.from_iterable(case.fates for case in CASES if case.row == row)
        )
        for row in {case.row for case in CASES}
    }
    assert table() == by_row


def test_each_element_is_in_the_table() -> None:
    rows = " ".join(table())
    words = set(re.findall(r"[A-Za-z_]+", rows))
    in_devices = set(re.findall(r"[a-z]+", " ".join(row for row in table() if "devices/" in row)))
    assert KNOWN["domain"] - {"devices"} <= words
    assert KNOWN["devices"] <= in_devices


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150


def test_all_of_them_in_one_domain_are_read() -> None:
    devices = "".join(
        "".join(
            ET.tostring(one, encoding="unicode")
            for one in parse(whole(case.xml)).iterfind("devices/*")
        )
        for case in CASES
        if "<tpm" not in case.xml
    )
    domain = read_domain(whole(f"<devices>{devices}</devices>"), LOOKUPS)
    assert isinstance(domain, Domain)
    assert len(domain.devices) > 40


# libvirt's own schema, where it is at hand

_NG = "{http://relaxng.org/ns/structure/1.0}"
# Of other hypervisors, of libvirt's own notes, or what its user has written.
_PASSED = re.compile(
    r"metadata/.*|bootloader(_args)?|capabilities|commandline|override|deprecation|datacenterpath"
    r"|idmap|namespace|resource/fibrechannel|.*/privateData|.*/backenddomain|os/root"
    r"|os/init(arg|dir|env|group|user)?|features/(capabilities|hap|privnet|viridian|xen)"
    r"|os/nvram/source/(encryption|reservations|seclabel|slices)"
)


def schema_paths() -> set[str]:
    """Every element of a domain in libvirt's schema, down to six below the domain."""
    defines: dict[str, list[ET.Element]] = {}
    waiting, seen = ["domaincommon.rng"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        root = ET.parse(SCHEMAS / name).getroot()  # noqa: S314 - libvirt's
        waiting += [one.get("href", "") for one in root.iter(f"{_NG}include")]
        for define in root.iter(f"{_NG}define"):
            defines.setdefault(define.get("name", ""), []).append(define)
    found: set[str] = set()
    done: set[tuple[str, int]] = set()

    def walk(node: ET.Element, path: str, within: frozenset[str]) -> None:
        for child in node:
            if child.tag == f"{_NG}ref":
                name = child.get("name", "")
                for define in [] if name in within else defines.get(name, []):
                    walk(define, path, within | {name})
            elif child.tag == f"{_NG}element":
                names = [
                    child.get("name") or "",
                    *(one.text or "" for one in child.iter(f"{_NG}name")),
                ]
                for name in filter(None, names if not child.get("name") else names[:1]):
                    below = f"{path}/{name}" if path else name
                    if (below, id(child)) not in done and below.count("/") < 7:
                        done.add((below, id(child)))
                        found.add(below)
                        walk(child, below, within)
            else:
                walk(child, path, within)

    for define in defines["domain"]:
        walk(define, "", frozenset({"domain"}))
    return {path.removeprefix("domain/") for path in found if path.startswith("domain/")}


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="libvirt's schemas are not installed")
def test_no_element_of_libvirts_schema_is_unknown() -> None:
    paths = [path for path in schema_paths() if not _PASSED.fullmatch(path)]
    assert len(paths) > 500
    missing: set[str] = set()
    for path in paths:
        root = element = ET.Element("domain")
        for tag in path.split("/"):
            element = ET.SubElement(element, tag)
        missing |= {where for where in unknown_elements(root) if not _PASSED.fullmatch(where)}
    assert missing == set()
