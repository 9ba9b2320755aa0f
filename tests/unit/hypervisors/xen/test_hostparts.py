"""What of this host xl's configuration may name: by the settings; by default nothing of its own."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.allowed import Allowed
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen.configuration import Entry, check_same, read_domain
from entourage.hypervisors.xen.hostparts import host_parts
from entourage.hypervisors.xen.hypervisor import XenHypervisor
from entourage.settings.model import AgentSettings, Settings
from entourage.steps import Refusal
from tests.unit.hosts.making import make
from tests.unit.hypervisors.xen.test_header import CONFIG

DATA = Path(__file__).with_name("data")
ATTACKS: list[tuple[str, Any, str]] = json.loads((DATA / "attacks.json").read_text())
# As the lab's guest has it (lab/xen/guest.py), and a usual HVM guest.
PVH: dict[str, Any] = {
    "c_info": {
        "type": "pvh",
        "name": "web1",
        "uuid": "3e5948d6-8285-4068-8236-a0e7729aaa7a",
        "run_hotplug_scripts": "True",
    },
    "b_info": {
        "max_vcpus": 1,
        "avail_vcpus": [0],
        "vcpu_hard_affinity": [[0, 1]],
        "max_memkb": 98304,
        "target_memkb": 98304,
        "shadow_memkb": 2048,
        "sched_params": {"sched": "credit2", "weight": 256},
        "claim_mode": "True",
        "cpuid": [{"leaf": 1, "ecx": "xx10x1xxxxxxxxxxxxxxxxxxxxxxxxxx"}],
        "kernel": "/usr/share/guest/vmlinuz",
        "ramdisk": "/usr/share/guest/initrd",
        "cmdline": "console=hvc0 quiet root=/dev/xvda init=/sbin/init; rm -rf /",
        "tsc_mode": "native",
        "type.pvh": {},
        "arch_arm": {},
        "arch_x86": {},
    },
    "disks": [
        {
            "pdev_path": "/srv/web1.raw",
            "vdev": "xvda",
            "backend": "phy",
            "format": "raw",
            "readwrite": 1,
            "discard_enable": "True",
            "colo_enable": "False",
        }
    ],
    "nics": [{"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "xenbr0", "nictype": "vif"}],
    "on_reboot": "restart",
}
HVM: dict[str, Any] = PVH | {
    "b_info": PVH["b_info"]
    | {
        "type.hvm": {
            "pae": "True",
            "vga": {"kind": "cirrus"},
            "vnc": {"enable": "True", "listen": "127.0.0.1", "display": 3, "passwd": "x, y/z"},
            "sdl": {"enable": "False"},
            "spice": {"enable": "False", "agent_mouse": "True", "usbredirection": 4},
            "boot": "dc",
            "serial": "pty",
            "usbdevice_list": ["tablet"],
            "bios": "seabios",
            "rdm": {},
            "of_a_later_xen": {"x": ["", {}]},
        }
    },
    "nics": [
        {
            "devid": 0,
            "bridge": "lan",
            "model": "e1000",
            "script": "/etc/xen/scripts/vif-bridge",
            "ip": "10.0.0.2 fe80::2/64",
        }
    ],
    "vfbs": [{"devid": 0, "vnc": {"enable": "True", "listen": "0.0.0.0:2"}, "keymap": "en-us"}],
    "vkbs": [{"devid": 0, "backend_type": "qemu"}],
    "usbctrls": [{"type": "devicemodel", "devid": 0, "version": 2, "ports": 6}],
    "channels": [{"name": "org.qemu.guest_agent.0", "connection": "pty", "connection.pty": {}}],
    "pcidevs": [],
}


def refused(config: dict[str, Any], **settings: Any) -> list[Refusal]:
    """By a host with these settings, just before xl is given it."""
    allowed = Allowed(AgentSettings(**settings))
    domain = Domain(name="web1", memory=1 << 28)
    return allowed.not_allowed(domain, "b", built=True, parts=host_parts(config))


def unproven(config: dict[str, Any]) -> list[Refusal]:
    """What a host refuses at TEST, where its disks are told of by others."""
    domain = read_domain(Entry(domid=7, config=config))
    return Allowed(AgentSettings()).not_allowed(domain, "b", built=False, parts=host_parts(config))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration of a usual guest, but for one thing."""
    config: dict[str, Any] = copy.deepcopy(HVM)
    at: Any = config
    *way, last = path.split("/")
    for key in way:
        at = at[int(key)] if key.isdecimal() else at.setdefault(key, [] if last == "+" else {})
    if last == "+":
        at.append(value)
    else:
        at[int(last) if last.isdecimal() else last] = value
    return config


@pytest.mark.parametrize("config", [PVH, HVM])
def test_a_usual_guest_needs_no_settings(config: dict[str, Any]) -> None:
    assert unproven(config) == []


def test_where_it_is_and_whose() -> None:
    found = host_parts(PVH)
    assert HostPart(
        kind=Kind.IMAGE, name="/srv/web1.raw", place="disks[1]/pdev_path", device="block/xvda"
    ) in found  # fmt: skip
    assert HostPart(
        kind=Kind.NETWORK, name="xenbr0", place="nics[1]/bridge", device="net/vif0"
    ) in found  # fmt: skip
    assert {part.name for part in found if part.kind is Kind.BOOT} == {
        "/usr/share/guest/vmlinuz",
        "/usr/share/guest/initrd",
    }
    assert {part.name for part in host_parts(HVM) if part.kind is Kind.PORT} == {
        "5903-5999",
        "5902-5999",
    }


@pytest.mark.parametrize(("path", "value", "name"), ATTACKS)
def test_the_hosts_own_must_be_named(path: str, value: Any, name: str) -> None:
    config = changed(path, value)
    networks = ("lan",)
    if name.startswith("agent."):
        assert any(name in one.remedy for one in refused(config, networks=networks))
        return
    before = {one.reason for one in refused(HVM)}
    found = [one for one in refused(config) if one.reason not in before]
    if "ports" in name or name == "65900":
        assert any("agent.ports" in one.remedy or "no port" in one.reason for one in found), found
        return
    assert any(name in one.reason for one in found), found
    if name.startswith("an interface") or ".." in name or name == "/etc/shadow":
        whole = refused(config, devices=("*",))  # no setting allows that
        assert [one for one in whole if name in one.reason]
        return
    assert any(f"{name}" in one.reason and "agent.devices" in one.remedy for one in found), found
    after = refused(config, devices=(name, f"{name}:*"))
    assert not [one for one in after if f"{name} is not among" in one.reason]


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("p9s/+", {"tag": "x", "path": "/dev/vg1/x"}, "p9:/dev/vg1/x"),
        ("channels/+", {"connection.socket": {"path": "/dev/vg1/x"}}, "channel:/dev/vg1/x"),
        ("disks/0/script", "/dev/vg1/x", "script:/dev/vg1/x"),
        ("nics/0/script", "/dev/vg1/x", "script:/dev/vg1/x"),
        ("b_info/kernel", "dev/vg1/x", "boot:dev/vg1/x"),
        ("b_info/device_model", "/dev/vg1/x", "program:/dev/vg1/x"),
        ("b_info/bootloader", "/dev/vg1/x", "program:/dev/vg1/x"),
        ("b_info/type.pv", {"bootloader": "/dev/vg1/x"}, "program:/dev/vg1/x"),
    ],
)
def test_what_is_no_device_is_not_allowed_as_one(path: str, value: Any, name: str) -> None:
    def said(*devices: str) -> list[str]:
        found = refused(changed(path, value), devices=devices)
        return [one.reason for one in found if f"{name} is not among" in one.reason]

    assert said("/dev/vg1/*", "/dev/*", "/*", "dev/*")
    assert not said(name)


# What xl would make two words of, or end early, is not to be had by any setting.
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("disks/0/pdev_path", "/srv/a,file=/etc/shadow"),
        ("disks/0/pdev_path", "/srv/a\0"),
        ("disks/0/pdev_path", "/srv/$(reboot)"),
        ("disks/0/vdev", "xvda,x"),
        ("disks/0/script", "block;reboot"),
        ("nics/0/model", "e1000,romfile=/etc/shadow"),
        ("nics/0/bridge", "lan,script=/tmp/x"),
        ("nics/0/bridge", "lan;reboot"),
        ("nics/0/ifname", "tap0,script=/tmp/x"),
        ("nics/0/ip", "1.2.3.4;reboot"),
        ("nics/0/vlan", "1;reboot"),
        ("b_info/kernel", "/usr/share/x,y"),
        ("b_info/type.hvm/boot", "c,splash=/etc/shadow"),
        ("b_info/type.hvm/keymap", "/etc/shadow"),
        ("b_info/type.hvm/vnc/listen", "unix:/run/x"),
        ("b_info/type.hvm/vnc/listen", "127.0.0.1:1,websocket=22"),
        ("b_info/type.hvm/spice/host", "127.0.0.1,unix"),
        ("b_info/type.hvm/spice/passwd", "x,plaintext-channel=main"),
        ("b_info/type.hvm/spice/image_compression", "off,x=y"),
        ("b_info/type.hvm/vga/kind", "std,romfile=/x"),
        ("channels/+", {"connection.socket": {"path": "/run/ch/x,logfile=/etc/cron.d/x"}}),
        ("p9s/+", {"tag": "x", "path": "/srv/x,y"}),
        ("b_info/type.hvm/serial", "unix:/run/x,logfile=/etc/cron.d/x"),
        ("b_info/type.hvm/serial", "mon:unix:/run/x"),
        ("b_info/type.hvm/serial_list", ["pty", "unix:/run/x,server,path=/etc/x"]),
        ("b_info/type.hvm/usbdevice", "host:1.4,x=y"),
        ("b_info/type.hvm/usbdevice_list", ["tablet,x=y"]),
        ("b_info/type.hvm/soundhw", "hda,audiodev=x"),
        ("c_info/name", "web1,process=x"),
        ("c_info/name", "../web1"),
        ("pcidevs/+", {"name": "a,b"}),
        ("vtpms/+", {"backend_domname": "a/b"}),
        ("nics/0/backend_domname", "a,b"),
        ("disks/0/backend", "tap,x"),
        ("b_info/cmdline", "a\0b"),
        ("b_info/max_vcpus", 1 << 64),
        ("b_info/max_vcpus", 1.5),
        *(("b_info/bootloader_restrict", said) for said in ("Falsex", "true", "Truex", 1)),
        ("b_info/type.hvm/gfx_passthru", "false"),
        ("b_info/type.hvm/vnc/enable", 1),
        ("c_info/type", "hvm pv"),
        ("b_info/type.hvm/vnc/enable", "Falsely"),
        ("b_info/type.hvm/vnc/findunused", 0),
        ("b_info/type.hvm/vnc/display", True),
        ("vfbs/0/vnc/enable", "<default>x"),
        ("vfbs/0/keymap", "<default>"),
        ("p9s/+", {"tag": "x,y"}),
        ("pcidevs/+", {"bus": "3"}),
    ],
)
@pytest.mark.parametrize("devices", [(), ("*",), ("/*", "*:*", "serial:*", "audio:*")])
def test_what_could_be_two_words_is_refused(
    path: str, value: Any, devices: tuple[str, ...]
) -> None:
    found = refused(changed(path, value), devices=devices)
    assert any("xl's configuration" in one.reason for one in found), found


@pytest.mark.parametrize(
    ("path", "value", "ports"),
    [
        ("b_info/type.hvm", {}, "5900-5999"),
        ("b_info/type.hvm", {"vnc": []}, "5900-5999"),
        ("b_info/type.hvm", {"vnc": {}}, "5900-5999"),
        ("b_info/type.hvm/vnc", {"enable": [], "findunused": ["x"]}, "5900-5999"),
        ("b_info/type.hvm", None, "5900-5999"),
        ("b_info", {"type": "hvm"}, "5900-5999"),
        ("c_info", {"type": "hvm"}, "5903-5999"),
        ("b_info/type.hvm/vnc", {"enable": "<default>", "findunused": "<default>"}, "5900-5999"),
        ("b_info/type.hvm/vnc", {"listen": ":0", "display": 3}, "5900-5999"),
        ("b_info/type.hvm/vnc", {"listen": "[::1]:7", "display": 3}, "5907-5999"),
        ("b_info/type.hvm/vnc", {"listen": "[::1]", "display": 3}, "5903-5999"),
        ("b_info/type.hvm/vnc", {"display": 3, "findunused": "False"}, "5903"),
        ("b_info/type.hvm/vnc", {"display": 99}, "5999"),
        ("b_info/type.hvm/vnc", {"display": 120}, "6020"),
        ("b_info/type.hvm/vnc", {"enable": "False"}, None),
        ("vfbs/0", {"devid": 0}, "5900-5999"),
        ("vfbs/0", {"vnc": None, "sdl": {"enable": "False"}}, "5900-5999"),
        ("vfbs/0", {"vnc": {"enable": "False"}}, None),
    ],
)
def test_a_display_listens_at_all_that_libxl_may_take(
    path: str, value: Any, ports: str | None
) -> None:
    config = changed(path, value)
    section = "vfbs" if path.startswith("vfbs") else "b_info"
    found = [one for one in host_parts(config) if one.kind is Kind.PORT]
    named = [one.name for one in found if one.place.startswith(section)]
    assert named == ([ports] if ports else [])
    beside = refused(config, ports=(1024, 5902))
    assert bool(ports) == any("agent.ports" in one.remedy for one in beside if section in str(one))


def test_a_pv_guest_without_a_display_listens_at_nothing() -> None:
    assert not [part for part in host_parts(PVH) if part.kind is Kind.PORT]


@pytest.mark.parametrize("said", ["False", "<default>", None, True, ""])
@pytest.mark.parametrize("loader", [{"bootloader": "x"}, {"type.pv": {"bootloader": "x"}}])
def test_a_boot_loader_that_is_not_held_must_be_named(loader: dict[str, Any], said: Any) -> None:
    def named(**b_info: Any) -> bool:
        found = host_parts({"b_info": loader | b_info})
        return "xen:b_info/bootloader_restrict" in {part.name for part in found}

    assert named(bootloader_restrict=said)
    assert named()
    assert not named(bootloader_restrict="True")
    assert not named(bootloader_restrict=said, bootloader="", **{"type.pv": {}})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("b_info/device_model_user", "xen's configuration"),
        ("b_info/bootloader", "characters that are not taken"),
        ("disks/0/script", "characters that are not taken"),
        ("of_a_later_xen", "xen:of_a_later_xen"),
        ("b_info/of_a_later_xen", "xen:b_info/of_a_later_xen"),
    ],
)
def test_default_means_nothing_only_where_libxl_has_switches(path: str, name: str) -> None:
    said = [one.reason for one in refused(changed(path, "<default>"))]
    assert any(name.replace("xen's", "xl's") in one for one in said), said
    switch = changed("b_info/type.hvm/gfx_passthru", "<default>")
    assert not [one for one in refused(switch) if "gfx" in one.reason]


@pytest.mark.parametrize("user", ["0", "False", "root"])
def test_no_user_is_taken_for_none(user: str) -> None:
    found = host_parts(changed("b_info/device_model_user", user))
    assert "xen:b_info/device_model_user" in {part.name for part in found}


@pytest.mark.parametrize(
    "line", ["unix:/run/x1", "unix:/run/x1,server=on,wait=off", "tcp:[::1]:4444,server,nowait"]
)
def test_a_serial_line_keeps_the_options_that_open_nothing(line: str) -> None:
    config = changed("b_info/type.hvm/serial", line)
    assert [one.reason for one in refused(config) if "serial:" in one.reason]
    after = refused(config, devices=("serial:unix:/run/x*", "serial:tcp:*"))
    assert not [one for one in after if "serial" in one.reason]


def test_a_name_that_is_not_taken_is_refused_for_its_device_beside_all_others() -> None:
    config = changed("disks/0/pdev_path", "/srv/vm (1).img")
    config["b_info"]["type.hvm"]["soundhw"] = "hda"
    said = unproven(config)
    assert {(one.device, one.host) for one in said} == {("block/xvda", "b"), ("domain", "b")}
    [disk] = [one for one in said if one.device == "block/xvda"]
    assert "'/srv/vm (1).img' (disks[1]/pdev_path)" in disk.reason
    assert disk.remedy == "name it otherwise on the source"


@pytest.mark.parametrize(
    "text",
    [
        '{"b_info": {}, "b_info": {"kernel": "/etc/shadow"}}',
        '{"b_info": {"kernel\\u0000": ""}}',
        '{"b_info": {"max_vcpus": 1e3}}',
        '{"b_info": {"max_vcpus": NaN}}',
        "[]",
        "[" * 100_000,
    ],
)
def test_what_two_parsers_could_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(HypervisorError, match="xl's configuration is not understood"):
        header.parsed(text)


def test_what_is_in_lists_without_end_is_refused() -> None:
    inside: list[Any] = []
    for _ in range(100_000):
        inside = [inside]
    with pytest.raises(HypervisorError, match="no end"):
        host_parts({"b_info": {"cpuid": inside}})
    with pytest.raises(HypervisorError, match="2000 of disks"):
        host_parts({"disks": [{}] * 2000})


def _hostile() -> list[dict[str, Any]]:
    """Configurations that are as much work as they can be."""
    long = "x" * (500 << 10)
    numbers: list[list[int]] = [[0] * 1000] * 160
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    return [
        {"b_info": {"type.hvm": {"soundhw": long}}},
        {"b_info": {long: 1}},
        {"b_info": {"kernel": f"/usr/share/{'a/' * (250 << 10)}"}},
        {"b_info": {"kernel": [f"/usr/share/{number}" for number in range(1000)]}},
        {"b_info": {"irqs": [number * 1000 for number in range(1000)]}},
        {"b_info": {"vcpu_hard_affinity": numbers}},
        {"b_info": {"cpuid": [deep] * 100}},
        {f"b_info{number}": 1 for number in range(20_000)},
        {"nics": [{"bridge": f"b{number}", "ifname": f"t{number}"} for number in range(1000)]},
        {"disks": [{"pdev_path": f"/s/{number}", "vdev": f"v{number}"} for number in range(1000)]},
        {"p9s": [{"path": f"/etc/{number}"} for number in range(1000)]},
    ]


@pytest.mark.parametrize("config", _hostile(), ids=lambda config: next(iter(config)))
def test_as_much_as_can_be_sent_is_refused_in_time(config: dict[str, Any]) -> None:
    told = header.header_of(config | {"of_a_later_xen": 1})
    began = time.monotonic()
    try:
        assert header.more(told[: header.SIZE]) <= 512 << 10
        sent = header.sent_configuration(told[: header.SIZE], told[header.SIZE :])
        found = refused(sent, devices=("/dev/*", "usb:*"), networks=())
    except HypervisorError as error:
        assert "xl's configuration" in error.message  # noqa: PT017 - either is a refusal
    else:
        assert 0 < len(found) <= 101
    assert time.monotonic() - began < 2


def test_a_configuration_is_not_larger_than_libxls() -> None:
    told = header.header_of({"b_info": {"cmdline": "x" * (512 << 10)}})
    with pytest.raises(HypervisorError, match="more than 524288"):
        header.more(told[: header.SIZE])
    with pytest.raises(HypervisorError, match="more than 524288"):
        header.parsed(told[header.SIZE + 4 : -1])
    many = [{"key": "a", "bridge": "b"} for _ in range(1000)]
    with pytest.raises(HypervisorError, match="more than 4096"):
        host_parts(dict.fromkeys(("disks", "nics", "p9s", "channels", "vfbs"), many))


def test_disks_are_those_that_were_made_or_proven(tmp_path: Path) -> None:
    disk = {"pdev_path": f"{tmp_path}/a.raw", "vdev": "xvda", "format": "raw", "readwrite": 1}
    config = PVH | {"disks": [disk]}
    (tmp_path / "a.raw").write_text("x")
    allowed = Allowed(AgentSettings(image_directories=(str(tmp_path),)))
    domain = Domain(name="web1", memory=1 << 28)

    def said(config: dict[str, Any]) -> list[str]:
        found = allowed.not_allowed(domain, "b", built=True, parts=host_parts(config))
        return [one.reason for one in found]

    assert "neither made by this migration nor proven" in said(config)[0]
    make(allowed, f"{tmp_path}/a.raw")
    assert said(config) == []
    assert "was made as raw" in said(PVH | {"disks": [disk | {"format": "qcow2"}]})[0]
    (tmp_path / "link").symlink_to(tmp_path / "a.raw")
    by_link = PVH | {"disks": [disk | {"pdev_path": f"{tmp_path}/link"}]}
    assert "symbolic link" in said(by_link)[0]


@pytest.mark.parametrize(
    ("path", "value", "device"),
    [
        ("disks/0/pdev_path", "/srv/other.raw", "block/xvda"),
        ("disks/0/format", "qcow2", "block/xvda"),
        ("disks/0/readwrite", 0, "block/xvda"),
        ("disks/+", {"pdev_path": "/srv/b", "vdev": "xvdb", "format": "raw"}, "block/xvdb"),
        ("disks/+", PVH["disks"][0], ""),
        ("disks", [], "block/xvda"),
        ("c_info/name", "other", ""),
        ("c_info/uuid", "11111111-2222-3333-4444-555555555555", ""),
        ("c_info", {}, ""),
    ],
)
def test_the_disks_that_xl_is_given_are_those_that_were_asked_for(
    path: str, value: Any, device: str
) -> None:
    domain = read_domain(Entry(domid=7, config=HVM))
    check_same(HVM, domain)
    with pytest.raises(HypervisorError) as caught:
        check_same(changed(path, value), domain)
    assert caught.value.device == device


def test_what_the_tests_of_the_header_send_is_understood() -> None:
    named = {part.name for part in host_parts(CONFIG) if part.kind is Kind.OTHER}
    assert named == {"vg/shared", "vtpm:vtpmmgr"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pcidevs", [{"bus": 59, "dev": 0, "func": 0}]),
        ("usbdevs", [{"u": {"hostdev": {"hostbus": 1, "hostaddr": 4}}}]),
    ],
)
async def test_what_is_taken_out_before_xl_sends_it_is_not_asked_about_at_test(
    key: str, value: Any
) -> None:
    """Its controllers say what becomes of it; the configuration that xl sends has none of it."""
    told = {"config": json.dumps(CONFIG | {key: value})}
    assert host_parts(CONFIG | {key: value}) != host_parts(CONFIG)
    assert await XenHypervisor(Settings()).host_parts(told) == host_parts(CONFIG)
