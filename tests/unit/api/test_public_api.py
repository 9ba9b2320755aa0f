"""What others import: the list of it, its page on the site, and a whole package that uses it."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.devices import registry as devices
from entourage.devices.base import AnyController
from entourage.domain import Domain, External
from entourage.errors import DeviceError, UsageError
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import NotAllowed
from entourage.hypervisors import plugins
from entourage.hypervisors import registry as hypervisors
from entourage.settings.model import AgentSettings, Settings
from entourage.steps import Refusal
from tests.unit.api.listing import LIST, PUBLIC, listing
from tests.unit.devices.test_harness import TwoHosts, domain_with

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "docs" / "examples" / "plugin"
ADVICE = """\
The public API is not what tests/unit/api/public_api.txt says. Where that is meant:
1. say it in CHANGELOG.md, under "Added" or "Changed", and what a plug-in has to do;
2. see that docs/devices.md and docs/api/ are still true;
3. write the list anew: .venv/bin/python -m tests.unit.api.listing
"""


def test_the_public_api_is_as_listed() -> None:
    now, listed = listing(), LIST.read_text(encoding="utf-8")
    changes = difflib.unified_diff(listed.splitlines(), now.splitlines(), "listed", "now", n=1)
    assert now == listed, "\n".join([ADVICE, *changes])


def test_each_public_module_has_its_reference() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    wanted = {
        f"{module}.{name}" if name else module
        for module, names in PUBLIC.items()
        for name in names or ("",)
    }
    assert shown == wanted


# The package in docs/examples/plugin, which pyright checks too


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """It is installed: its modules can be imported, and its entry points are found."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "entourage_example-1.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
    lines: list[str] = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [str(info.parent), str(PLUGIN), *sys.path])
    caches = (plugins.plug_ins, devices._entries)  # pyright: ignore[reportPrivateUsage]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
    for module in ("entourage_virtiofs", "entourage_shelf"):
        sys.modules.pop(module, None)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    (made / ".share-id").write_text("1234\n")
    return made


def moved(home: Path, tmp_path: Path) -> tuple[TwoHosts, AnyController]:
    device = External(id="home", type="virtiofs", subtype=str(home))
    kind = devices.controller_class(device)
    assert kind is not None
    return TwoHosts(domain_with(external=(device,)), tmp_path / "b"), kind(device)


@pytest.mark.usefixtures("plugin")
async def test_a_directory_that_both_hosts_see_moves(home: Path, tmp_path: Path) -> None:
    hosts, controller = moved(home, tmp_path)
    hosts.share(home)
    assert await hosts.test(controller) == []
    await controller.let_go(hosts.here(controller.test_there))
    assert hosts.warnings == [f"{home} is still mounted here"]


@pytest.mark.usefixtures("plugin")
async def test_a_directory_that_is_another_one_there_is_refused(home: Path, tmp_path: Path) -> None:
    hosts, controller = moved(home, tmp_path)

    async def refusal() -> Refusal:
        (one,) = await hosts.test(controller)
        assert one.device == "external/home"
        assert one.remedy
        return one

    assert (await refusal()).host == "b"
    (hosts.mkdir(home) / ".share-id").write_text("5678\n")
    assert "another directory" in (await refusal()).reason
    (home / ".share-id").unlink()
    assert (await refusal()).host == "a"


@pytest.mark.usefixtures("plugin")
async def test_the_target_says_which_directories_it_may_be_asked_about(
    home: Path, tmp_path: Path
) -> None:
    hosts, controller = moved(home, tmp_path)
    hosts.there.allowed = Allowed(AgentSettings(image_directories=("/srv",)))
    with pytest.raises(NotAllowed, match="is in none of the directories that are allowed"):
        await hosts.test(controller)


@pytest.mark.usefixtures("plugin")
async def test_a_device_without_a_directory_is_an_error(tmp_path: Path) -> None:
    hosts, controller = moved(Path(), tmp_path)
    controller.device = External(id="home", type="virtiofs")
    with pytest.raises(DeviceError, match="names no directory"):
        await hosts.test(controller)


@pytest.mark.usefixtures("plugin")
async def test_a_hypervisor_of_the_package_lists_shows_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "web1.toml").write_text('name = "web1"\nmemory = "256M"\n')
    name = f"shelf{tmp_path}"
    (state,) = await hypervisors.all_domains(Settings(), name)
    assert (state.name, state.memory, state.state) == ("web1", 256 << 20, "shut off")
    hypervisor, domain = await hypervisors.find_domain(Settings(), "web1", name)
    assert hypervisor.name == name
    assert domain == Domain(name="web1", memory=256 << 20)
    (refusal,) = await hypervisor.test_incoming(domain, "b", {})
    assert (refusal.device, refusal.host) == ("domain", "b")
    with pytest.raises(UsageError, match="does not run"):
        await hypervisor.machine("web1")
    assert hypervisors.start_command(name, "web1") == "entourage start web1.toml"
