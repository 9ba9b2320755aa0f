"""What the documents say is tried: links lead somewhere, commands can be typed, examples work."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import typer.main

import entourage
from entourage.cli.app import app
from entourage.errors import Refused
from entourage.events import Finished
from entourage.settings.domainfile import domain_from_toml
from entourage.settings.sxp import KNOWN_KEYS
from entourage.steps import Refusal
from scripts.site_hooks import OUTSIDE, with_links_of_the_site

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / path for path in OUTSIDE)])
USERS = ["README.md", *(f"docs/{name}.md" for name in (
    "architecture", "benchmarks", "cli", "devices", "domain-file", "events", "faults", "handover",
    "libvirt", "recovery", "saving", "security", "settings", "tool", "xen", "xend",
))]  # fmt: skip
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    (\S.*)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCED.findall(path.read_text()) if language in languages]


def prose(path: Path) -> str:
    return FENCED.sub("", path.read_text())


def typed(program: str) -> Iterator[tuple[str, str]]:
    """Each line of a block, or piece of code in a sentence, that begins with a program's name."""
    for path in DOCUMENTS:
        lines = [line for text in blocks(path, "", "sh") for line in text.splitlines()]
        text = prose(path)
        lines += INDENTED.findall(text)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
        for line in lines:
            command = re.sub(r"^\w*[#$] ", "", line.strip()).split("  # ")[0].split(" # ")[0]
            for part in re.split(r"; |&& ", command):
                if part.split(" ")[0] == program:
                    yield name_of(path), part.strip()


# Links


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_each_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        there, _, anchor = target.partition("#")
        file = (path.parent / there).resolve() if there else path
        assert file.exists(), f"{name_of(path)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name_of(path)}: {target}"


@pytest.mark.parametrize(
    ("page", "link", "on_site"),
    [
        ("index.md", "[a](docs/cli.md#exit-status)", "[a](cli.md#exit-status)"),
        ("index.md", "![a](docs/benchmarks.svg)", "![a](benchmarks.svg)"),
        ("xen.md", "[lab](../lab/README.md#xen)", "[lab](lab.md#xen)"),
        ("adr/0001.md", "[a](../handover.md)", "[a](../handover.md)"),
        ("api/index.md", "[`a` b](../../CHANGELOG.md)", "[`a` b](../changelog.md)"),
        ("handover.md", "[rules](../src/entourage/handover/rules.py)", "rules"),
        ("handover.md", "[gone](../src/gone.py)", "[gone](../src/gone.py)"),
        ("cli.md", "[two\nlines](../README.md)", "[two\nlines](index.md)"),
        ("cli.md", "[b](#here), [c](https://d.org/e)", "[b](#here), [c](https://d.org/e)"),
        ("cli.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_on_the_site_links_are_those_of_the_site(page: str, link: str, on_site: str) -> None:
    assert with_links_of_the_site(link, page) == on_site


def test_each_page_is_in_the_navigation() -> None:
    written = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = {line.split("#")[0].strip(" -\n").split(": ")[-1] for line in written.splitlines()}
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    pages = {"adr/" if page.startswith("adr/") else page for page in pages} | set(OUTSIDE.values())
    assert pages <= listed
    assert listed - pages <= {f"{name}:" for name in ("Use", "Operate", "Understand", "Extend")} | {
        "Contribute:"
    }


# Form


@pytest.mark.parametrize("name", USERS)
def test_a_users_document_begins_with_a_table(name: str) -> None:
    before = prose(ROOT / name).split("\n## ")[0]
    assert re.search(r"^\|.*\|\n\| --- \|", before, re.MULTILINE), "no table before the first ##"


# Commands


def test_each_entourage_command_can_be_typed() -> None:
    group: Any = typer.main.get_command(app)
    seen = 0
    for document, line in typed("entourage"):
        words = [word for word in shlex.split(line.replace("…", " ")) if word not in {"|", ">"}]
        if words[1:2] == ["--config"]:  # before the command, as tool.md shows a site of 2006
            words[1:3] = []
        if len(words) == 1 or words[1].startswith("-") or words[1].isupper():
            continue
        command = group.commands.get(words[1])
        assert command is not None, f"{document}: {line}"
        arguments = [word.strip("[]") for word in words[2:]]
        try:
            context = command.context_class(command, info_name=words[1])
            command.make_parser(context).parse_args(arguments)
        except Exception as error:  # noqa: BLE001 - click's, of whichever class
            pytest.fail(f"{document}: {line}: {error}")
        seen += 1
    assert seen > 50


def test_each_target_of_make_is_there() -> None:
    targets = set(
        re.findall(r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    known = {name for line in targets for name in line.split()}
    seen = 0
    for document, line in typed("make"):
        words = [word for word in shlex.split(line)[1:] if "=" not in word]
        assert set(words) <= known, f"{document}: {line}"
        seen += 1
    assert seen > 20


def test_each_program_of_the_repository_is_there() -> None:
    seen = 0
    for program in ("python", ".venv/bin/python"):
        for document, line in typed(program):
            words = line.split()
            if words[1:2] == ["-m"]:
                assert importlib.util.find_spec(words[2]) is not None, f"{document}: {line}"
                seen += 1
    for document, line in typed(".venv/bin/pytest"):
        for word in line.split()[1:]:
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{document}: {line}"
        seen += 1
    assert seen > 10


# Examples


def test_the_readmes_domain_file_is_one() -> None:
    (text,) = blocks(ROOT / "README.md", "toml")
    domain = domain_from_toml(text.replace("\n   ", "\n"), Path("web1.toml"))
    assert [device.label for device in domain.devices] == ["block/disk0", "net/net0", "tpm/tpm0"]


@pytest.mark.parametrize("name", ["devices", "tool"])
def test_devices_of_a_document_are_devices(name: str) -> None:
    shown = [text for text in blocks(ROOT / "docs" / f"{name}.md", "toml") if "[[" in text]
    assert shown
    for text in shown:
        assert domain_from_toml(f'name = "web1"\nmemory = "1G"\n{text}', Path("web1.toml")).devices


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (Finished(at=1, outcome="moved", seconds=1, runs_on="b"), "web1 runs on b"),
        (
            Refused([Refusal("net/net0", "b", "no bridge", "make it")]),
            "net/net0 b no bridge make it",
        ),
    ],
)
def test_the_program_of_the_api_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: Any, said: str
) -> None:
    (program,) = blocks(ROOT / "docs" / "api" / "index.md", "python")
    migrate = AsyncMock(side_effect=[ending])
    monkeypatch.setattr(entourage, "migrate", migrate)
    exec(compile(program, "docs/api/index.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert said in capsys.readouterr().out
    assert migrate.call_args.args == ("web1", "b")


def test_the_first_change_can_be_made_and_its_test_passes(tmp_path: Path) -> None:
    test, change = blocks(ROOT / "CONTRIBUTING.md", "diff")
    (command,) = {line for _, line in typed(".venv/bin/pytest") if " -k down" in line}
    for part in ("src", "tests/unit/devices"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def applied(diff: str) -> None:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)

    def ran() -> str:
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *command.split()[1:]]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path}"}
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout

    applied(test)
    assert "1 failed" in ran()
    applied(change)
    assert "1 passed" in ran()


def test_each_key_of_xends_configuration_has_its_place() -> None:
    page = (ROOT / "docs" / "xend.md").read_text()
    named = set(re.findall(r"`([^`]+)`", page.split("## `xend-config.sxp`")[1]))
    assert sorted(KNOWN_KEYS - named) == []
