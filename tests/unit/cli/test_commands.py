from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from entourage.__main__ import main
from entourage.cli import complete
from entourage.cli.app import app
from entourage.cli.output import columns
from entourage.domain import Block, Domain
from entourage.errors import EntourageError, UsageError
from entourage.handover.values import Record, Role
from entourage.hypervisors import registry
from entourage.hypervisors.base import DomainState
from entourage.hypervisors.values import Definition
from entourage.journal.journal import Decision, Journal
from entourage.offline.claims import Claim, Claims
from entourage.offline.values import Offer
from entourage.settings.domainfile import domain_from_toml

DOCS = Path(__file__).parents[3] / "docs"
COMMANDS = (
    *("migrate", "check", "start", "list", "show", "console", "stop"),
    *("status", "recover", "agent", "attend", "save", "restore", "saved"),
    *("cordon", "uncordon", "room", "abort", "hosts"),
    *("plan", "evacuate", "restore-home", "campaign", "fleet"),
)
UUID = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"
GONE = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d12"
ODD = "web \u202e\x9b'$(x)"


class FakeHypervisor:
    """A host with a few domains."""

    name = "qemu"

    def __init__(self) -> None:
        self.states: list[DomainState] = [
            DomainState(name="web1", uuid=UUID, state="running", pid=7, memory=512 << 20, vcpus=2),
            DomainState(name="off", uuid="u-off", state="shut off"),
        ]
        self.known: Domain = Domain(
            name="web1", uuid=UUID, memory=512 << 20, block=(Block(id="disk0", path="/srv/x"),)
        )
        self.calls: list[Any] = []
        self.error: Exception | None = None

    async def domains(self) -> Sequence[DomainState]:
        if self.error:
            raise self.error
        return self.states

    async def find(self, name: str) -> Domain:
        if self.error:
            raise self.error
        if name != self.known.name:
            raise UsageError(f"no domain is called {name!r}")
        return self.known

    async def start(self, domain: Domain) -> None:
        self.calls.append(("start", domain.name))

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        self.calls.append(("stop", name, force, patience))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHypervisor:
    hypervisor = FakeHypervisor()

    def opened(_settings: object, _name: str) -> Any:
        return hypervisor

    def answers(_name: str) -> bool:
        return True

    fake = dataclasses.replace(registry.QEMU, open=opened, answers_to=answers)
    monkeypatch.setattr(registry, "BUILT_IN", (fake,))
    monkeypatch.setenv("ENTOURAGE_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return hypervisor


def left(path: Path) -> None:
    """Write down that a domain has left this host."""
    with Journal.open(path / "journal.db") as journal:
        decision = Decision(
            migration="m1",
            role=Role.SOURCE,
            domain=GONE,
            name="db1",
            generation=1,
            record=Record.ARMED,
            peer_host="b",
            peer_journal="j",
        )
        journal.begin(decision)
        journal.advance("m1", Role.SOURCE, expected=[Record.ARMED], new=Record.GONE)


def test_help_of_everything() -> None:
    runner = CliRunner()
    for command in ("", *COMMANDS):
        result = runner.invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0
        assert "Usage: " in result.output
    assert "agent" not in re.findall(r"^  (\w+)", runner.invoke(app, ["-h"]).output, re.MULTILINE)


def test_exit_statuses_are_in_the_help_and_in_the_document() -> None:
    output = CliRunner().invoke(app, ["migrate", "--help"]).output
    written = (DOCS / "cli.md").read_text()
    for status in (0, 1, 2, 3, 4, 5, 6):
        assert re.search(rf"^ +{status}  ", output, re.MULTILINE)
        assert f"\n| {status} | " in written


def test_every_command_and_option_is_in_the_document() -> None:
    written = (DOCS / "cli.md").read_text()
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    for name, command in group.commands.items():
        assert f"\n## entourage {name}" in written
        told = "migrate" if name == "check" else name  # which has the same options
        section = written.split(f"\n## entourage {told}")[1].split("\n## ")[0]
        inner: dict[str, Any] = getattr(command, "commands", {})
        for each in inner:
            assert f"{name} {each}" in section
        for parameter in [
            *command.params,
            *(one for each in inner.values() for one in each.params),
        ]:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("-") and option not in {"--help", "-h"}:
                    assert f"`{option}" in section, f"{option} of {name}"


def test_nothing_typed_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: entourage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nosuch"], "entourage: no such command 'nosuch'"),
        (["migrate"], "entourage: missing argument 'DOMAIN'"),
        (["migrate", "web1"], "entourage: HOST is missing"),
        (["list", "--nosuch"], "entourage: no such option: --nosuch"),
        (["stop", "web1", "--timeout", "soon"], "entourage: --timeout: 'soon' is no duration"),
        (["stop", "web1", "--timeout", "0"], "entourage: --timeout 0: must be more than 0"),
        (["list", "--config", "/nosuch.toml"], "entourage: /nosuch.toml: "),
        (["recover", "--target-is-fenced"], "entourage: --target-is-fenced needs a domain"),
        (["start", "nosuch.toml"], "entourage: nosuch.toml: "),
        (["start", "nosuch"], "entourage: no domain is called 'nosuch'"),
        (["show", "a\x1b[2J"], "entourage: no domain is called 'a\\x1b[2J'"),
    ],
)
@pytest.mark.usefixtures("host")
def test_wrong_usage(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert "Traceback" not in err
    assert all(line.startswith(("entourage: ", "  remedy: ")) for line in err.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    short = capsys.readouterr().out
    assert main(["--verbose", "--version"]) == 0  # the way that is not short
    assert capsys.readouterr().out == short
    assert re.fullmatch(r"entourage \d+\.\d+\.\d+\n", short)


def test_list(host: FakeHypervisor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Name   UUID                                   State      Memory   vCPUs",
        f"web1   {UUID}   running   512 MiB       2",
    ]
    host.states.append(DomainState(name=ODD, uuid="u", state="paused"))
    assert main(["list"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.isprintable()
    assert "\\u202e\\x9b'$(x)" in line


@pytest.mark.usefixtures("host")
def test_list_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path)
    assert main(["list", "--all"]) == 0
    names = [line.split("   ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert names == ["Name", "off", "web1", "db1"]
    assert main(["list", "--all"]) == 0
    assert "moved to b" in capsys.readouterr().out
    assert main(["list", "--all", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"], row["host"]) for row in rows] == [
        ("web1", "running", ""),
        ("off", "shut off", ""),
        ("db1", "moved", "b"),
    ]


@pytest.mark.usefixtures("host")
def test_list_all_shows_what_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perhaps no other host has it any more."""
    domain = Domain(name="rests", uuid=GONE, memory=1 << 30)
    offer = Offer(
        migration="m1",
        source="a",
        journal="j",
        generation=1,
        hypervisor="qemu",
        definition=Definition(domain=domain),
    )
    Claims(str(tmp_path)).write(Claim(offer=offer, seen=0))
    (tmp_path / "claims" / "odd.json").write_text("nonsense")
    assert main(["list"]) == 0
    assert "rests" not in capsys.readouterr().out
    assert main(["list", "--all"]) == 0
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("rests"))
    assert "claimed from a" in line
    assert main(["list", "--all", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[-1]
    assert (row["name"], row["uuid"], row["state"], row["host"]) == ("rests", GONE, "claimed", "a")


def test_who_has_come_back_did_not_leave(
    host: FakeHypervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path)
    host.states.append(DomainState(name="db1", uuid=GONE, state="running"))
    assert main(["list", "--all"]) == 0
    assert "moved" not in capsys.readouterr().out


@pytest.mark.usefixtures("host")
def test_a_journal_that_cannot_be_read_hides_no_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "journal.db").write_bytes(b"nonsense" * 1000)
    assert main(["list", "--all"]) == 0
    assert "web1" in capsys.readouterr().out


def test_show(host: FakeHypervisor, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "web1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# web1 is running, process 7\n")
    assert domain_from_toml(out, Path("x.toml")) == host.known
    assert main(["show", "--json", "web1"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Domain) == host.known


def test_show_what_would_break_the_terminal(
    host: FakeHypervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    host.known = Domain(name=ODD, memory=1 << 30, block=(Block(id="d", path="/\U000e0001\x9b"),))
    host.states = [DomainState(name=ODD, uuid="u", state="running")]
    assert main(["show", ODD]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert domain_from_toml(out, Path("x.toml")) == host.known
    assert main(["show", "--json", ODD]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert msgspec.json.decode(out, type=Domain) == host.known


def test_what_the_hypervisor_has_to_say_of_a_start(
    host: FakeHypervisor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(domain: Domain) -> list[str]:
        assert domain.name == "web1"
        return ["QEMU runs as \x1b[2Jroot"]

    monkeypatch.setattr(host, "notes", notes, raising=False)
    assert main(["start", "web1"]) == 0
    out, err = capsys.readouterr()
    assert out == "web1 runs\n"
    assert err == "entourage: note: QEMU runs as \\x1b[2Jroot\n"
    assert host.calls == [("start", "web1")]


def test_start_and_stop(
    host: FakeHypervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "db1.toml").write_text('name = "db1"\nmemory = "1G"\n')
    assert main(["start", "db1.toml"]) == 0
    assert main(["start", f"{tmp_path}/db1.toml"]) == 0
    assert main(["start", "web1"]) == 0
    assert main(["stop", "web1"]) == 0
    assert main(["stop", "-f", "--timeout", "1m30s", "web1"]) == 0
    assert host.calls == [
        ("start", "db1"),
        ("start", "db1"),
        ("start", "web1"),
        ("stop", "web1", False, 60.0),
        ("stop", "web1", True, 90.0),
    ]
    assert capsys.readouterr().out.splitlines()[0] == "db1 runs"


@pytest.mark.usefixtures("host")
def test_a_file_with_an_unusual_name_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "db1").write_text("")
    assert main(["start", "db1"]) == 2
    assert "remedy: for the file of that name, type ./db1" in capsys.readouterr().err


def test_errors_of_all_kinds(host: FakeHypervisor, capsys: pytest.CaptureFixture[str]) -> None:
    host.error = EntourageError("no", device="net/net0", host="b", remedy="ask again")
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "entourage: net/net0 on b: no\n  remedy: ask again\n"
    host.error = PermissionError(13, "Permission denied", "/var/lib/entourage")
    assert main(["list"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "entourage: /var/lib/entourage: permission denied",
        "  remedy: run it as root, or see who may use that file",
    ]
    host.error = ZeroDivisionError("x\x1b")
    assert main(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("entourage: a bug: ZeroDivisionError: x\\x1b\n  remedy: please report it")
    assert main(["-v", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err
    host.error = KeyboardInterrupt()  # type: ignore[assignment]
    assert main(["list"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("host")
def test_completion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "web2.toml").write_text("")
    (tmp_path / "wiki").mkdir()
    (tmp_path / "other").write_text("")
    assert complete.domains("w") == ["web1"]
    assert complete.domains_and_files("w") == ["web1", "web2.toml", "wiki/"]
    assert complete.domains_and_files("./w") == ["./web2.toml", "./wiki/"]
    assert complete.domains_and_files("nosuch/") == []
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host b c\n  Port 2\nhost=d\nHost *.lan !x\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete.hosts("") == ["b", "c", "d"]
    assert complete.hosts("c") == ["c"]


def test_completion_never_fails(host: FakeHypervisor) -> None:
    host.error = ValueError()
    assert complete.domains("") == []


def test_the_shell_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_ENTOURAGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "entourage st")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert capsys.readouterr().out.split() == ["start", "stop", "status"]


def test_columns_of_wide_letters() -> None:
    assert columns(("A", "B"), [("漢", "1"), ("x", "22")], right=(1,)) == [
        "A     B",
        "漢    1",
        "x    22",
    ]


def test_a_reader_that_has_gone(host: FakeHypervisor, capfd: pytest.CaptureFixture[str]) -> None:
    del host
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(1)
    os.dup2(writing, 1)
    try:
        assert main(["list"]) == 0
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writing)
    assert capfd.readouterr().err == ""
