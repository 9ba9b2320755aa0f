"""Every input that comes from outside, each with right examples and with what takes it.

What takes it may raise an EntourageError, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from entourage import messages
from entourage.attend.bus import converse
from entourage.domain import Block, Domain, Net
from entourage.errors import EntourageError, HypervisorError, LinkError
from entourage.handover.values import Record, Role
from entourage.hosts.link import Answer, Beat, Call, Fault, Link, Notice, Question, Tell
from entourage.hypervisors.libvirt import domainxml, handed, needs
from entourage.hypervisors.libvirt.connection import bindings
from entourage.hypervisors.libvirt.constants import Parameter
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.qemu.drift import drift
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.xen import configuration, header
from entourage.hypervisors.xen.hostparts import host_parts as xen_parts
from entourage.journal.details import SourceDetails, TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.settings.domainfile import domain_from_toml, dump_domain
from entourage.settings.load import settings_from_toml
from entourage.settings.sxp import settings_from_sxp
from entourage.settings.textfile import decode

HERE = Path(__file__).parent
DATA = HERE.parent / "unit"
DOCS = HERE.parent.parent / "docs"
FILE = Path("/etc/entourage/input")
UUID = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"


@dataclass(frozen=True)
class Target:
    """Something that reads an input.

    Attributes:
        name: For people, and for file names.
        examples: Right inputs.
        take: Reads one.
    """

    name: str
    examples: Sequence[bytes]
    take: Callable[[bytes], Awaitable[None]]


def _toml_of(document: str) -> list[bytes]:
    """The TOML examples of a document."""
    blocks = (DOCS / document).read_text().split("```toml\n")[1:]
    return [block.partition("```")[0].encode() for block in blocks]


async def _domain_file(data: bytes) -> None:
    domain = domain_from_toml(decode(data, FILE), FILE)
    again = domain_from_toml(dump_domain(domain), FILE)
    assert again == domain, "what was written is not what was read"


async def _settings_file(data: bytes) -> None:
    settings_from_toml(decode(data, FILE), FILE)


async def _sxp_file(data: bytes) -> None:
    settings_from_sxp(data.decode("utf-8", "surrogateescape"), FILE)


async def _libvirt_xml(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    domain = domainxml.read_domain(text)
    domainxml.side_text(text)
    msgspec.msgpack.decode(msgspec.msgpack.encode(domain), type=Domain)


async def _libvirt_parts(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    handed.named(handed.read(text), domainxml.Lookups())
    plan = LibvirtPlan(parameters={Parameter.DEST_XML: text})
    with contextlib.suppress(HypervisorError):  # of most it is not the domain
        handed.check_plan(plan, Domain(name="web1", uuid=UUID, memory=1 << 28))


class _NoLibvirt:
    """A libvirtd that has nothing of what it is asked for."""

    def _none(self, *_: object) -> object:
        raise bindings().libvirtError("there is none")

    secretLookupByUUIDString = secretLookupByUsage = _none  # noqa: N815 - libvirt's
    nwfilterLookupByName = networkLookupByName = _none  # noqa: N815 - libvirt's


async def _libvirt_needs(data: bytes) -> None:
    connection: Any = SimpleNamespace(raw=_NoLibvirt())
    facts = {"xml": data.decode("utf-8", "replace")}
    await needs.needs(connection, facts, "b", files=True)


async def _libvirt_cookie(data: bytes) -> None:
    handed.check_cookie(data, Domain(name="web1", uuid=UUID, memory=1 << 28))


async def _xl_list(data: bytes) -> None:
    for entry in configuration.entries(data.decode("utf-8", "replace")):
        configuration.read_domain(entry)
        configuration.unreadable_disks(entry.config)
        configuration.domain_type(entry.config)


async def _xl_stream(data: bytes) -> None:
    fixed = data[: header.SIZE].ljust(header.SIZE, b"\0")
    length = header.more(fixed)
    changes = header.Changes(paths={"xvda": "/srv/b.raw"}, nets={"lan": "wan"}, passthrough=True)
    header.rewritten(fixed, data[header.SIZE : header.SIZE + length], changes)


async def _xl_parts(data: bytes) -> None:
    """What comes from another host's xl, and what of it this host's own is given."""
    config = header.parsed(data.decode("utf-8", "surrogateescape"))
    xen_parts(config)
    told = header.header_of(config)
    assert header.sent_configuration(told[: header.SIZE], told[header.SIZE :]) == config
    with contextlib.suppress(HypervisorError):  # of most it is not the domain
        configuration.check_same(config, Domain(name="web1", uuid=UUID, memory=1 << 28))


_KINDS: list[Question[Any, Any] | Notice[Any]] = [
    kind for _, kind in inspect.getmembers(messages) if isinstance(kind, Question | Notice)
]


async def _link(data: bytes) -> None:
    """Frames of a peer, of every kind that there is; nothing may fall out of ``serve``."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    link = Link(reader, _Nowhere(), peer="b", silence=10.0)  # type: ignore[arg-type]

    async def take(_body: Any) -> Any:
        return None

    for kind in _KINDS:
        link.on(cast("Question[Any, Any]", kind), take)
    asked = [
        asyncio.create_task(link.call(kind, msgspec.Raw(b"\xc0")))
        for kind in _KINDS
        if isinstance(kind, Question)
    ]
    await asyncio.sleep(0)  # they have sent their question, and have a number
    try:
        await link.serve()
    finally:
        await link.settle()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, EntourageError):
            raise answer
    lost = await link.lost()
    assert isinstance(lost, LinkError)
    str(lost)


class _Nowhere:
    """A writer whose reader takes everything; and its transport."""

    @property
    def transport(self) -> _Nowhere:
        """Itself."""
        return self

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def write(self, data: bytes) -> None:
        """Forget it; what is sent must be a whole frame."""
        assert int.from_bytes(data[:4], "big") == len(data) - 4

    def close(self) -> None:
        """Nothing to be closed."""


def _frames() -> list[bytes]:
    """Recorded links, and one with all kinds of frames."""
    recorded = [path.read_bytes() for path in sorted((DATA / "data").glob("protocol-*.bin"))]
    hello = {"version": "1", "protocol": 2, "migration": "m-1", "source": "a", "hypervisor": "qemu"}
    frames = [
        Beat(1, 2),
        Call(1, "hello", hello),
        Tell("handover", {"verb": "go", "migration": "m-1"}),
        Tell("failed", {"message": "x", "device": "block/d0", "remedy": "y"}),
        Fault(1, "DeviceError", "no", "block/d0", "b", "do"),
        Fault(2, "Refused", "no", "", "", ""),
        Answer(3, [{"device": "d", "host": "b", "reason": "r", "remedy": ""}]),
        Answer(4, {"offers": {"a": "b"}}),
    ]
    whole = b"".join(
        len(data).to_bytes(4, "big") + data for data in map(msgspec.msgpack.encode, frames)
    )
    return [*recorded, whole]


_QMP_WITHIN = 0.1
_DISK = Block(id="disk0", path="/srv/a.qcow2", format="qcow2", address="03.0")
_RUNNING = Domain(
    name="web1", uuid=UUID, memory=1 << 28, block=(_DISK,), net=(Net(id="net0", bridge="br0"),)
)


async def _qmp(data: bytes) -> None:
    """What a QEMU answers, to whoever asks it what TEST asks."""
    lines = data.split(b"\n")
    monitor: Monitor | None = None

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for line in lines:
                writer.write(line + b"\r\n")
                await writer.drain()
                if b'"return"' not in line and b'"error"' not in line:
                    continue
                if not await reader.readline():
                    break
            writer.close()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "qmp")
        async with await asyncio.start_unix_server(speak, path):
            try:
                with contextlib.suppress(TimeoutError):  # whoever asks has a deadline
                    async with asyncio.timeout(_QMP_WITHIN):
                        monitor = await Monitor.connect(path)
                        await drift(monitor, _RUNNING, "b")
            finally:
                if monitor is not None:
                    await monitor.close()


class _Helper:
    """Has state, and takes any."""

    async def check_expected(self) -> None:
        pass

    async def save(self) -> bytes:
        return b"state"

    async def load(self, state: bytes) -> None:
        if not state:
            raise HypervisorError("nothing")

    def connected(self) -> None:
        pass

    def gone(self) -> None:
        pass


class _Answers(_Nowhere):
    """Takes answers; nobody reads them."""

    def write(self, data: bytes) -> None:
        """Forget it."""

    async def drain(self) -> None:
        pass


async def _dbus(data: bytes) -> None:
    """What a QEMU says on the bus of its domain; it must be let go by the end of it."""
    reader = asyncio.StreamReader()
    reader.feed_data(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n" + data)
    reader.feed_eof()
    async with asyncio.timeout(5):
        await converse(_Helper(), reader, cast("asyncio.StreamWriter", _Answers()))


def _qmp_examples() -> list[bytes]:
    greeting = {
        "QMP": {
            "version": {"qemu": {"micro": 14, "minor": 2, "major": 7}, "package": "Debian"},
            "capabilities": ["oob"],
        }
    }
    event = {
        "event": "MIGRATION",
        "data": {"status": "active"},
        "timestamp": {"seconds": 1, "microseconds": 2},
    }
    block = {
        "device": "", "qdev": "/machine/peripheral/disk0/virtio-backend", "locked": False,
        "removable": False, "type": "unknown", "io-status": "ok",
        "inserted": {
            "node-name": "disk0", "file": "/srv/a.qcow2", "drv": "qcow2", "ro": False,
            "bps": 0, "iops": 0, "image": {"filename": "/srv/a.qcow2", "format": "qcow2"},
        },
    }  # fmt: skip
    answers: list[Any] = [
        {}, {"status": "running", "running": True}, [block],
        [{"name": "disk0", "type": "child<virtio-blk-pci>"}], [], [], [],
    ]  # fmt: skip
    lines: list[Any] = [greeting]
    lines += [{"return": answer, "id": f"__qmp#{at:05d}"} for at, answer in enumerate(answers)]
    lines.insert(3, event)
    jobs = {"event": "BLOCK_JOB_ERROR", "data": {"device": "m", "operation": "write"}}
    lines.insert(4, jobs)
    return ["\n".join(map(json.dumps, lines)).encode()]


class _JournalFile:
    """A journal with a row of each kind, into which mutated ones are written."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._right = Path(self._directory.name, "right.db")
        with Journal.open(self._right) as journal:
            for role, details in (
                (Role.SOURCE, SourceDetails(domain=_RUNNING, hypervisor="qemu")),
                (Role.TARGET, TargetDetails(domain=_RUNNING, hypervisor="qemu")),
            ):
                record = Record.ARMED if role is Role.SOURCE else Record.OPEN
                journal.begin(
                    Decision(
                        migration=f"m-{role}",
                        role=role,
                        domain=UUID if role is Role.SOURCE else UUID[::-1],
                        name="web1",
                        generation=1,
                        record=record,
                        peer_host="b",
                        peer_journal=UUID,
                        details=details,
                    )
                )
                journal.ledger_add(f"m-{role}", role, "file", {"path": "/srv/a"})
        with contextlib.closing(sqlite3.connect(self._right)) as database:
            database.execute("PRAGMA journal_mode=DELETE")
            columns = ("details", "record", "role", "generation", "peer_host", "began", "clean")
            self.examples = [
                json.dumps([column, value]).encode()
                for column in columns
                for (value,) in database.execute(f"SELECT {column} FROM decisions")  # noqa: S608
            ]
            self.examples += [
                json.dumps(["spec", value]).encode()
                for (value,) in database.execute("SELECT spec FROM ledger")
            ]

    async def take(self, data: bytes) -> None:
        """Write a value into its column in all rows, and read all that is read after a crash."""
        column, _, value = data.partition(b",")
        name = column.strip(b'[" ').decode("ascii", "replace")
        table = {"spec": "ledger", "kind": "ledger"}.get(name, "decisions")
        known = {"details", "record", "role", "generation", "peer_host", "began", "clean", "spec"}
        if name not in known:
            name, table = "details", "decisions"
        new: Any
        try:
            new = json.loads(value.rstrip(b"]"))
            if not isinstance(new, str | int | float | bytes | None):
                new = json.dumps(new)
        except (ValueError, RecursionError):
            new = value  # a blob
        copy = self._right.with_name("copy.db")
        shutil.copy(self._right, copy)
        try:
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as database:
                statement = f"UPDATE {table} SET {name} = ?"  # noqa: S608 - of a list of known ones
                database.execute(statement, (new,))
        except (sqlite3.Error, OverflowError, UnicodeError):
            return  # SQLite itself does not take that
        with Journal.open(copy) as journal:
            for decision in journal.decisions():
                str(decision.settled)
                repr(decision.of_source)
                repr(decision.of_target)
                journal.decision(decision.migration, decision.role)
            for role in Role:
                journal.ledger_rows(f"m-{role}", role)
            journal.next_generation(UUID)


def _in_a_cookie(xml: bytes) -> bytes:
    return b"<qemu-migration>" + xml + b"</qemu-migration>\0"


def _many_devices() -> bytes:
    """As many as fit into an input: what looks at each must not look at all others."""
    disks = b"<disk type='file'><target dev='a'/></disk>" * 1500
    return b"<domain><name>web1</name><devices>" + disks + b"</devices></domain>"


def _xl_hvm() -> bytes:
    """A guest with something of each kind that is looked at."""
    display = {"vnc": {"enable": "True", "listen": "0.0.0.0:2"}, "sdl": {"enable": "False"}}
    hvm = {"serial_list": ["pty"], "spice": {"port": 5950}, "usbdevice": "tablet", **display}
    built = {
        "type.hvm": hvm, "kernel": "/usr/share/x", "ioports": [{"first": 1, "number": 2}],
        "iomem": [{"start": 1}], "irqs": [8], "cpuid": {"msr": [{"index": 1, "policy": "x"}]},
    }  # fmt: skip
    whole = {
        "c_info": {"name": "web1", "uuid": UUID}, "b_info": built, "vfbs": [display],
        "disks": [{"pdev_path": "/srv/a", "vdev": "xvda", "format": "raw", "readwrite": 1}],
        "channels": [{"name": "x", "connection.socket": {"path": "/run/x"}}],
        "p9s": [{"path": "/srv"}], "vkbs": [{"backend_type": "qemu"}],
    }  # fmt: skip
    return json.dumps(whole).encode()


def _constructs() -> bytes:
    """All that a domain may have, in one."""
    lines = (DATA / "hypervisors" / "libvirt" / "data" / "constructs.txt").read_text().splitlines()
    pieces = [line.rpartition(" | ")[2] for line in lines]
    return f"<domain><name>web1</name>{''.join(pieces)}</domain>".encode()


def targets() -> list[Target]:
    """All of them."""
    journal = _JournalFile()
    xml = (HERE / "examples" / "libvirt.xml").read_bytes()
    running_file = DATA / "hypervisors" / "libvirt" / "data" / "running-migratable.xml"
    running = running_file.read_bytes()
    listed = (HERE / "examples" / "xl-list.json").read_bytes()
    config = json.dumps(json.loads(listed)[1]["config"]).encode()
    # As hypervisors/xen/header.py has it.
    stream = struct.pack(
        "=32sIIIII", b"Xen saved domain, xl format\n \0 \r", 0x01020304, 1, 0, 4 + len(config),
        len(config),
    ) + config  # fmt: skip
    sxp = [path.read_bytes() for path in sorted((DATA / "settings" / "data").glob("*.sxp"))]
    calls = sorted((HERE / "examples").glob("dbus-*.bin"))  # as QEMU 7.2 has made them
    return [
        Target("domain-file", _toml_of("domain-file.md"), _domain_file),
        Target("settings", _toml_of("settings.md"), _settings_file),
        Target("xend-config", sxp, _sxp_file),
        Target("libvirt-xml", [xml], _libvirt_xml),
        Target("libvirt-parts", [xml, running, _many_devices()], _libvirt_parts),
        Target("libvirt-needs", [xml, running, _constructs()], _libvirt_needs),
        Target("libvirt-cookie", [_in_a_cookie(xml)], _libvirt_cookie),
        Target("xl-list", [listed], _xl_list),
        Target("xl-stream", [stream], _xl_stream),
        Target("xl-parts", [config, _xl_hvm()], _xl_parts),
        Target("link", _frames(), _link),
        Target("qmp", _qmp_examples(), _qmp),
        Target("dbus", [each.read_bytes() for each in calls], _dbus),
        Target("journal", journal.examples, journal.take),
    ]
