"""Device classes in ``domain.ADDED``: read, shown, told and driven without a field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import pytest
from msgspec import Meta

from entourage.device_steps import source_controllers
from entourage.devices.base import Controller
from entourage.devices.remote import out_of_reach
from entourage.domain import ADDED, Device, Domain, added_controller
from entourage.errors import ConfigError
from entourage.hypervisors.side import read_side, with_side
from entourage.settings.domainfile import domain_from_toml, dump_domain
from entourage.settings.model import Settings

FILE = """\
name = "web1"
memory = "64M"

[[lamp]]
id = "red"
lumen = 800

[[lamp]]
id = "blue"
lumen = 400
tool = "/bin/true"

[[external]]
id = "fpga0"
type = "fpga"
"""


class Lamp(Device, frozen=True):
    """A device of a class that no hypervisor knows."""

    device_class: ClassVar[str] = "lamp"
    lumen: Annotated[int, Meta(ge=1)]


class LampController(Controller[Lamp]):
    """Its controller."""

    device_class = "lamp"
    spec = Lamp


@pytest.fixture(autouse=True)
def lamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED, "lamp", f"{__name__}:LampController")


@pytest.fixture
def domain() -> Domain:
    return domain_from_toml(FILE, Path("web1.toml"))


def test_every_one_can_be_loaded() -> None:
    for name in ADDED:
        controller = added_controller(name)
        assert issubclass(controller, Controller)
        assert controller.device_class == controller.spec.device_class == name


def test_it_is_read_and_driven(domain: Domain) -> None:
    labels = ["external/fpga0", "lamp/red", "lamp/blue"]
    assert [device.label for device in domain.devices] == labels
    assert domain.device("lamp/red") == Lamp(id="red", lumen=800)
    controllers = source_controllers(domain, Settings())
    [red] = [one for one in controllers if isinstance(one, LampController)]
    assert red.device.lumen == 800
    assert controllers[2].device.label == "lamp/blue"  # with a tool beside it


def test_it_is_shown_as_it_was_written(domain: Domain) -> None:
    text = dump_domain(domain)
    assert '[[lamp]]\nid = "red"\n' in text
    assert domain_from_toml(text, Path("web1.toml")) == domain


def test_it_is_told_on_the_link_and_in_the_journal(domain: Domain) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(domain), type=Domain) == domain


def test_an_older_host_is_told_of_no_field_that_it_does_not_know() -> None:
    assert b"added" not in msgspec.json.encode(Domain(name="web1", memory=1 << 26))


def test_the_target_puts_in_what_it_has_chosen(domain: Domain) -> None:
    changed = domain.with_device(Lamp(id="blue", lumen=401))
    assert changed.device("lamp/blue") == Lamp(id="blue", lumen=401)
    assert changed.device("lamp/red") == domain.device("lamp/red")


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("lumen = 0", "lamp[0].lumen"),
        ("lumens = 1", "lamp[0].lumens"),
        ('id = "blue"\nlumen = 1', "lamp[1].id"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(wrong: str, key: str) -> None:
    old = 'id = "red"\nlumen = 800' if wrong.startswith("id") else "lumen = 800"
    with pytest.raises(ConfigError) as caught:
        domain_from_toml(FILE.replace(old, wrong), Path("web1.toml"))
    assert caught.value.key == key


@pytest.mark.parametrize(
    "added",
    [{"torch": [{"id": "t"}]}, {"lamp": [{"id": "t"}]}, {"lamp": [{"id": "t", "lumen": 0}]}],
)
def test_what_another_host_tells_is_checked(added: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "web1", "memory": 1 << 26, "added": added}, Domain)


def test_the_field_is_no_key_of_a_file() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        domain_from_toml('name = "web1"\nmemory = "64M"\n[added]\n', Path("web1.toml"))


def test_it_is_added_to_a_domain_of_another_hypervisor(tmp_path: Path) -> None:
    (tmp_path / "web1.toml").write_text('[[lamp]]\nid = "red"\nlumen = 800\n')
    domain = with_side(Domain(name="web1", memory=1 << 26), read_side("web1", "", tmp_path))
    assert domain.devices == (Lamp(id="red", lumen=800),)


def test_its_part_on_the_target_needs_an_entourage_there(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def looks(*_: object) -> None: ...

    assert not out_of_reach(domain, "b")
    monkeypatch.setattr(LampController, "test_there", looks)
    assert [refusal.device for refusal in out_of_reach(domain, "b")] == ["lamp/red", "lamp/blue"]
