"""Whose a domain is, where a host has more than one hypervisor."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import entourage
from entourage.domain import Domain
from entourage.errors import (
    CannotExpress,
    DomainBusy,
    EntourageError,
    HypervisorError,
    HypervisorOff,
    UsageError,
)
from entourage.hypervisors import plugins, registry
from entourage.hypervisors.backend import Backend
from entourage.hypervisors.base import DomainState
from entourage.hypervisors.libvirt.descriptor import USUAL as LIBVIRT_URI
from entourage.hypervisors.registry import (
    all_domains,
    check_lacks,
    counterpart,
    destination,
    elsewhere,
    find_domain,
    known_to_others,
    name_elsewhere,
    open_hypervisor,
    read_ahead,
    start_command,
    starter_of_files,
    usual,
)
from entourage.settings.model import PathSettings, Settings

SETTINGS = Settings()
UUID = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"


class Fake:
    """A hypervisor with some domains, or one that cannot be asked."""

    def __init__(self, name: str, *domains: str, error: EntourageError | None = None) -> None:
        self.name = name
        self._domains = domains
        self._error = error

    async def find(self, name: str) -> Domain:
        if self._error:
            raise self._error
        if name not in self._domains:
            raise UsageError(f"there is no {name}")
        return Domain(name=name, memory=1 << 20)

    async def domains(self) -> Sequence[DomainState]:
        if self._error:
            raise self._error
        return [DomainState(name=name, uuid=name, state="running") for name in self._domains]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    known = {"qemu": Fake("qemu", "web1", "both"), LIBVIRT_URI: Fake(LIBVIRT_URI, "db1", "both")}

    def opened(_settings: Settings, name: str) -> Any:
        return known[name]

    both = [
        dataclasses.replace(backend, open=opened, is_here=lambda: True)
        for backend in (registry.QEMU, registry.LIBVIRT)
    ]
    monkeypatch.setattr(registry, "BUILT_IN", tuple(both))
    return known


async def test_a_domain_is_found_with_who_has_it(two: dict[str, Fake]) -> None:
    assert (await find_domain(SETTINGS, "web1"))[0].name == "qemu"
    assert (await find_domain(SETTINGS, "db1"))[0].name == LIBVIRT_URI


async def test_two_of_one_name_must_be_told_apart(two: dict[str, Fake]) -> None:
    with pytest.raises(UsageError, match="two domains 'both'"):
        await find_domain(SETTINGS, "both")
    assert (await find_domain(SETTINGS, "both", LIBVIRT_URI))[0].name == LIBVIRT_URI


async def test_all_are_listed(two: dict[str, Fake]) -> None:
    names = [state.name for state in await all_domains(SETTINGS)]
    assert names == ["web1", "both", "db1", "both"]
    assert [one.name for one in await all_domains(SETTINGS, LIBVIRT_URI)] == ["db1", "both"]


async def test_a_libvirtd_that_is_off_hides_no_other_domain(two: dict[str, Fake]) -> None:
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=HypervisorError("connection refused"))
    assert [one.name for one in await all_domains(SETTINGS)] == ["web1", "both"]
    assert (await find_domain(SETTINGS, "web1"))[0].name == "qemu"
    with pytest.raises(UsageError, match="no db1; qemu:///system may have it, and fails: conn"):
        await find_domain(SETTINGS, "db1")
    with pytest.raises(HypervisorError):
        await all_domains(SETTINGS, LIBVIRT_URI)


@pytest.mark.parametrize(
    ("hangs", "said"),
    [
        (LIBVIRT_URI, "no db1; qemu:///system may have it, and fails: qemu:///system does not ans"),
        ("qemu", "^qemu does not answer within 0.01 s"),
    ],
)
async def test_one_that_hangs_is_named(
    two: dict[str, Fake], monkeypatch: pytest.MonkeyPatch, hangs: str, said: str
) -> None:
    async def find(_name: str) -> Domain:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(two[hangs], "find", find)
    monkeypatch.setattr(registry, "_PATIENCE", 0.01)
    with pytest.raises(EntourageError, match=said):
        await find_domain(SETTINGS, "db1")


@pytest.mark.parametrize(
    ("name", "uuid", "taker", "said"),
    [
        ("db1", UUID, "qemu", ["there is a domain db1 here already, of qemu:///system"]),
        ("x", UUID, "qemu", []),
        ("x", "db1", "qemu", ["there is a domain db1 here already, of qemu:///system"]),
        ("web1", None, "qemu", []),  # of its own it tells itself
        ("web1", None, LIBVIRT_URI, ["there is a domain web1 here already, of qemu"]),
        ("db1", None, LIBVIRT_URI, []),
        (
            "db1",
            None,
            "qemu+unix:///system?socket=/run/libvirt/libvirt-sock",
            [],
        ),  # the same one, by another name
        (
            *("both", None, "xen"),
            [
                "there is a domain both here already, of qemu",
                "there is a domain both here already, of qemu:///system",
            ],
        ),
    ],
)
async def test_what_another_hypervisor_has_is_known(
    two: dict[str, Fake], name: str, uuid: str | None, taker: str, said: list[str]
) -> None:
    domain = Domain(name=name, uuid=uuid, memory=1 << 20)
    found = await known_to_others(SETTINGS, domain, taker, "b")
    assert [one.reason for one in found] == said
    assert all((one.device, one.host) == ("domain", "b") and one.remedy for one in found)


async def test_each_kind_says_how_to_be_rid_of_a_domain(two: dict[str, Fake]) -> None:
    domain = Domain(name="both", memory=1 << 20)
    remedies = [one.remedy for one in await known_to_others(SETTINGS, domain, "xen", "b")]
    assert "`entourage stop both`" in remedies[0]
    assert "`virsh -c qemu:///system undefine both`" in remedies[1]
    assert "`xl destroy both`" in registry.XEN.delete_hint("xen", "both")
    assert registry.XEN.resume_hint("xen", "both") == "`xl unpause both`"


async def test_what_is_off_has_no_domains(two: dict[str, Fake]) -> None:
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=HypervisorOff("connection refused"))
    domain = Domain(name="db1", memory=1 << 20)
    assert await known_to_others(SETTINGS, domain, "qemu", "b") == []


@pytest.mark.parametrize(
    ("error", "says", "do"),
    [
        (HypervisorError("no such method", remedy="try virsh"), "known: no such method", "try vi"),
        (PermissionError(13, "Permission denied", "/run/x"), "/run/x: permission denied", "list"),
        (KeyError("a plug-in's own"), "a plug-in's own", "list --connect qemu:///system"),
        (
            None,
            "known: qemu:///system does not answer within 0.01 s",
            "list --connect qemu:///system",
        ),
    ],
)
async def test_what_cannot_be_asked_may_have_any(
    two: dict[str, Fake],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    says: str,
    do: str,
) -> None:
    """A libvirtd that hangs leaves its machines running."""

    async def domains() -> Sequence[DomainState]:
        if error is not None:
            raise error
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(two[LIBVIRT_URI], "domains", domains)
    monkeypatch.setattr(registry, "_PATIENCE", 0.01)
    domain = Domain(name="db1", memory=1 << 20)
    [told] = await known_to_others(SETTINGS, domain, "qemu", "b")
    assert (told.device, told.host, told.only_warns) == ("domain", "b", False)
    assert told.reason.startswith("whether qemu:///system here has")
    assert says in told.reason
    assert do in told.remedy


async def test_one_record_that_cannot_be_read_hides_no_machine_of_qemus(tmp_path: Path) -> None:
    record = tmp_path / "q" / "some" / "running.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    settings = Settings(paths=PathSettings(run=str(tmp_path), state=str(tmp_path / "state")))
    domain = Domain(name="db1", memory=1 << 20)
    told = [
        one for one in await known_to_others(settings, domain, LIBVIRT_URI, "b")
        if one.reason.startswith("whether qemu here has")
    ]  # fmt: skip
    assert [str(record) in one.reason and one.remedy for one in told] == [
        "move it away if it is of no use"
    ]


async def test_a_domain_that_is_there_and_cannot_be_expressed_is_told_as_that(
    two: dict[str, Fake],
) -> None:
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=CannotExpress("its name is too long"))
    with pytest.raises(CannotExpress, match="too long"):
        await find_domain(SETTINGS, "x" * 70)


def test_no_hypervisor_of_that_name() -> None:
    with pytest.raises(UsageError, match="no hypervisor is called 'vmware'"):
        open_hypervisor(SETTINGS, "vmware")


# What backends say of themselves

AGENTLESS = "afar qemu+ssh://root@b/system some-uuid/b"


@pytest.mark.parametrize(
    ("name", "kind", "there"),
    [
        ("qemu", "QEMU", "qemu"),
        ("xen", "Xen", "xen"),
        (LIBVIRT_URI, "libvirt", LIBVIRT_URI),
        ("qemu+unix:///session?socket=/x", "libvirt", LIBVIRT_URI),
        (AGENTLESS, "libvirt", LIBVIRT_URI),
    ],
)
def test_a_name_finds_its_backend_and_its_like_on_the_target(
    name: str, kind: str, there: str
) -> None:
    backend = registry.backend_of(name)
    assert backend.kind == kind
    assert counterpart(name) == usual(name) == there


def test_the_libvirt_there_that_was_asked_for_is_taken() -> None:
    assert counterpart(LIBVIRT_URI, "qemu:///session") == "qemu:///session"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("qemu", "entourage start web1"),
        (LIBVIRT_URI, "entourage start web1"),
        (AGENTLESS, "virsh start web1"),
        ("xen", "xl create FILE"),  # xl keeps no definition: `entourage start` would be refused
    ],
)
def test_each_says_what_starts_a_domain(name: str, command: str) -> None:
    assert start_command(name, "web1") == command


def test_who_starts_a_domain_from_its_file() -> None:
    assert starter_of_files() == "qemu"


def test_a_name_that_nobody_answers_to_any_more_is_that_of_no_host_elsewhere() -> None:
    assert elsewhere("gone://b") is None  # libvirt's, by its form
    assert elsewhere("gone") is None
    with pytest.raises(UsageError):
        name_elsewhere("gone")


def test_only_libvirt_names_hosts_by_uris() -> None:
    assert destination("b") is None
    found = destination("qemu+tls://b/system")
    assert found is not None
    assert (found.host, found.there, found.by_ssh) == ("b", LIBVIRT_URI, False)


class Entry:
    """An entry point of another package."""

    def __init__(self, value: Any) -> None:
        self.name, self.value, self.dist, self._loaded = "chv", "chv:BACKEND", None, value

    def load(self) -> Any:
        return self._loaded


@pytest.fixture
def brings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A package that brings a backend."""
    folder = tmp_path / "chv-1.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nchv = chv:BACKEND\n")

    def package(value: Any) -> None:
        def entries(*, group: str) -> list[Entry]:
            assert group == plugins.GROUP
            return [Entry(value)]

        monkeypatch.setattr("importlib.metadata.entry_points", entries)
        monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
        plugins.plug_ins.cache_clear()

    yield package
    plugins.plug_ins.cache_clear()


async def test_another_package_brings_a_backend(brings: Any, two: dict[str, Fake]) -> None:
    def opened(_settings: Settings, name: str) -> Any:
        return Fake(name, "cloud1")

    brings(
        Backend(
            kind="Cloud Hypervisor",
            names="chv",
            usual="chv",
            answers_to=lambda name: name == "chv",
            is_here=lambda: True,
            open=opened,
            start_command=lambda _name, domain: f"chv start {domain}",
        )
    )
    assert (await find_domain(SETTINGS, "cloud1"))[0].name == "chv"
    assert [one.name for one in await all_domains(SETTINGS, "chv")] == ["cloud1"]
    assert start_command("chv", "cloud1") == "chv start cloud1"
    assert counterpart("chv") == "chv"
    assert elsewhere("chv") is None


def test_what_is_no_backend_is_told(brings: Any) -> None:
    brings(object())
    with pytest.raises(UsageError, match="chv:BACKEND is no Backend"):
        open_hypervisor(SETTINGS, "chv")


def test_metadata_is_read_only_where_a_package_has_such_an_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def entries(*, group: str) -> list[Entry]:
        raise AssertionError(group)

    (tmp_path / "other-1.dist-info").mkdir()
    (tmp_path / "other-1.dist-info" / "entry_points.txt").write_text("[console_scripts]\n")
    monkeypatch.setattr("importlib.metadata.entry_points", entries)
    monkeypatch.setattr("sys.path", [str(tmp_path), "/nowhere"])
    plugins.plug_ins.cache_clear()
    assert plugins.plug_ins() == ()
    plugins.plug_ins.cache_clear()


# Nobody above the backends knows them by name

_NAMES = {"qemu", "xen", "libvirt", "virsh", "afar", "afar ", ":"}


def switches(path: Path) -> list[str]:
    """Return the comparisons of a module with a hypervisor's name, or a part of one."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {
            "startswith", "endswith", "removeprefix",
        }:  # fmt: skip
            parts = list(node.args)
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        inside = [one for part in parts for one in ast.walk(part)]
        if any(isinstance(one, ast.Constant) and one.value in _NAMES for one in inside):
            found.append(f"{path.name}: {ast.unparse(node)}")
    return found


def test_no_switch_on_a_hypervisors_name_above_the_backends() -> None:
    root = Path(entourage.__file__).parent
    above = [
        path for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in {"hypervisors", "hosts", "settings", "domain.py"}
    ]  # fmt: skip
    assert len(above) > 50
    assert [one for path in above for one in switches(path)] == []


def test_the_session_of_whoever_runs_entourage_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert not registry.SESSION.is_here()
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirt" / "virtqemud-sock").touch()
    assert registry.SESSION.is_here()
    assert usual("qemu:///session") == "qemu:///session"
    assert counterpart("qemu:///session") == "qemu:///session"
    assert usual("qemu+ssh://b/session") == LIBVIRT_URI


@pytest.mark.parametrize("socket", ["libvirt-sock", "virtqemud-sock"])
def test_a_libvirtd_and_a_modular_one_are_found(
    socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entourage.hypervisors.libvirt.descriptor._RUN", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert not registry.LIBVIRT.is_here()
    (tmp_path / socket).touch()
    assert registry.LIBVIRT.is_here()


async def test_no_hypervisor_of_this_host_has_it(two: dict[str, Fake]) -> None:
    """By its UUID, which is its name here; one that does not say may have it."""
    await check_lacks(SETTINGS, "rests")
    with pytest.raises(DomainBusy, match=f"{LIBVIRT_URI} has db1"):
        await check_lacks(SETTINGS, "DB1")
    await check_lacks(SETTINGS, "db1", but=LIBVIRT_URI)
    with pytest.raises(DomainBusy, match="qemu has web1"):
        await check_lacks(SETTINGS, "rests", name="web1")
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=HypervisorError("it hangs"))
    with pytest.raises(HypervisorError, match="has rests is not known: it hangs"):
        await check_lacks(SETTINGS, "rests")


async def test_one_that_is_off_has_it_where_it_had_it(
    two: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its definitions are on the disk, also where not even its socket is there."""
    two[LIBVIRT_URI] = Fake(LIBVIRT_URI, error=HypervisorOff("nothing listens"))
    await check_lacks(SETTINGS, "rests")
    for is_here in (True, False):
        backends = [
            dataclasses.replace(one, is_here=lambda is_here=is_here: is_here)
            for one in registry.BUILT_IN
        ]
        monkeypatch.setattr(registry, "BUILT_IN", tuple(backends))
        with pytest.raises(HypervisorError, match="nothing listens"):
            await check_lacks(SETTINGS, "rests", must_say=[LIBVIRT_URI])


def test_what_hypervisors_of_this_host_are_asked_with_is_imported_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that cannot be opened is told of where somebody asks for it."""
    opened: list[str] = []

    def backend(name: str, *, here: bool) -> Any:
        def is_here() -> bool:
            return here

        def open_it(_settings: Settings, wanted: str) -> None:
            opened.append(wanted)
            raise HypervisorError(f"{name} is half installed")

        return SimpleNamespace(usual=name, is_here=is_here, open=open_it)

    there = [backend("one", here=True), backend("two", here=False), backend("three", here=True)]
    monkeypatch.setattr(registry, "BUILT_IN", there)
    read_ahead(SETTINGS)
    assert opened == ["one", "three"]
