"""The fleet's file: read, and changed without what else is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.errors import ConfigError, UsageError
from entourage.fleet import fleetfile
from entourage.fleet.fleetfile import HostEntry

TEXT = """\
# Ours.
[[host]]
name = "a"

[[host]]
name = "b"
ssh = "root@b.example"
[host.labels]
rack = "2"

[[domain]]
name = "db*"
apart = "db"
[[domain]]
name = "db1"
require = { rack = "2" }
pinned = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT)
    return path


def test_it_is_read(file: Path) -> None:
    fleet = fleetfile.load(file)
    assert fleet.host == (
        HostEntry(name="a"),
        HostEntry(name="b", ssh="root@b.example", labels={"rack": "2"}),
    )
    rule = fleet.rule("db1")
    assert (rule.apart, rule.require, rule.pinned) == ("db", {"rack": "2"}, True)
    assert not fleet.rule("web1").apart
    with pytest.raises(UsageError, match=r"c is no host of the fleet \(a, b\)"):
        fleet.entry("c")


def test_a_directory_is_one_fleet(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text('[[host]]\nname = "a"\n')
    (tmp_path / "2.toml").write_text('[[host]]\nname = "b"\n')
    assert [one.name for one in fleetfile.load(tmp_path).host] == ["a", "b"]
    (tmp_path / "3.toml").write_text('[[host]]\nname = "a"\n')
    with pytest.raises(ConfigError, match="a is there twice"):
        fleetfile.load(tmp_path)


def test_one_is_added_changed_and_removed_and_the_rest_stays(file: Path) -> None:
    fleetfile.add(file, HostEntry(name="c", from_others="10.0.0.3", labels={"rack": 'o"dd'}))
    assert fleetfile.load(file).entry("c").labels == {"rack": 'o"dd'}
    assert file.read_text().startswith(TEXT)
    fleetfile.add(file, HostEntry(name="b", ssh="b2"))
    assert fleetfile.load(file).entry("b") == HostEntry(name="b", ssh="b2")
    fleetfile.remove(file, "b")
    fleet = fleetfile.load(file)
    assert [one.name for one in fleet.host] == ["a", "c"]
    assert len(fleet.domain) == 2
    assert "# Ours." in file.read_text()
    with pytest.raises(UsageError, match="b is no host in"):
        fleetfile.remove(file, "b")


def test_a_form_that_is_not_changed_by_programs(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('host = [{ name = "a" }]\n')
    with pytest.raises(UsageError, match="edit it by hand"):
        fleetfile.remove(path, "a")
    assert path.read_text() == 'host = [{ name = "a" }]\n'


@pytest.mark.parametrize(
    "text",
    ['[[host]]\nname = "-oProxyCommand=x"\n', '[[host]]\nname = "a"\nsssh = "b"\n', "host = 1"],
)
def test_what_it_may_not_hold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        fleetfile.load(path)


def test_the_first_host_makes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "fleet.toml"
    fleetfile.add(path, HostEntry(name="a"))
    assert fleetfile.load(path).host == (HostEntry(name="a"),)
