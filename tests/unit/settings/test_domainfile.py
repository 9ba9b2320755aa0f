from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from entourage import domain as model
from entourage.domain import Block, Boot, Device, Domain, External, Net, Pci, Tpm, Usb
from entourage.errors import ConfigError
from entourage.settings.domainfile import FORMS, domain_from_toml, dump_domain, load_domain
from entourage.settings.typed import fields_of

FILE = Path("/etc/vms/web1.toml")
DOCS = Path(__file__).parents[3] / "docs" / "domain-file.md"
HEAD = 'name = "web1"\nmemory = "256M"\n'
DISK = '[[block]]\nid = "disk0"\npath = "/srv/a"\n'
BOOT = '[boot]\nfirmware = "/usr/share/OVMF/OVMF_CODE_4M.fd"\nnvram = "/srv/v"\n'
NIC = '[[net]]\nid = "net0"\nbridge = "br0"\n'


def read(text: str) -> Domain:
    return domain_from_toml(text, FILE)


def fault(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert str(caught.value).isprintable()
    return caught.value


def test_a_whole_domain_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "web1.toml"
    path.write_text(
        """
        name = "web 1"
        memory = "1G"
        vcpus = 2
        [[net]]
        id = "net0"
        bridge = "br0"
        mac = "52:54:00:12:34:56"
        mtu = 9000
        [[external]]
        id = "fpga0"
        type = "fpga"
        tool = "/usr/bin/move-fpga -v"
        [[block]]
        id = "disk0"
        path = "/srv/web1.qcow2"
        format = "qcow2"
        [[tpm]]
        id = "tpm0"
        [[usb]]
        id = "key"
        vendor = 0x1050
        product = 0x0407
        [[block]]
        id = "cd"
        path = "/srv/cd.iso"
        readonly = true
        model = "ide-cd"
        [[pci]]
        id = "rng"
        model = "virtio-rng-pci"
        [boot]
        kernel = "/boot/vmlinuz"
        cmdline = 'a "b"'
        """
    )
    domain = load_domain(path)
    assert domain == Domain(
        name="web 1",
        memory=1 << 30,
        vcpus=2,
        boot=Boot(kernel="/boot/vmlinuz", cmdline='a "b"'),
        block=(
            Block(id="disk0", path="/srv/web1.qcow2", format="qcow2"),
            Block(id="cd", path="/srv/cd.iso", readonly=True, model="ide-cd"),
        ),
        net=(Net(id="net0", bridge="br0", mac="52:54:00:12:34:56", mtu=9000),),
        tpm=(Tpm(id="tpm0"),),
        usb=(Usb(id="key", vendor=0x1050, product=0x0407),),
        pci=(Pci(id="rng", model="virtio-rng-pci"),),
        external=(External(id="fpga0", type="fpga", tool="/usr/bin/move-fpga -v"),),
    )
    assert read(dump_domain(domain)) == domain
    assert "vendor = 0x1050" in dump_domain(domain)
    assert 'memory = "1024M"' in dump_domain(domain)


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("", "", "'name', 'memory' must be given"),
        ('name = "a/b"\nmemory = "1G"', "name", "without /"),
        ('name = "a\\n"\nmemory = "1G"', "name", "control characters"),
        ('name = "-a"\nmemory = "1G"', "name", "not beginning with . or -"),
        (f'name = "{"a" * 64}"\nmemory = "1G"', "name", "1 to 63 characters"),
        (HEAD.replace('"256M"', "512"), "memory", 'for MiB write memory = "512M"'),
        (HEAD.replace("256M", "256 parsecs"), "memory", '"256M"'),
        (HEAD.replace("256M", "1025K"), "memory", 'write "1M" or "2M"'),
        (HEAD + "memroy = 1", "memroy", "did you mean 'memory'"),
        (HEAD + "vcpus = 0", "vcpus", "at least 1"),
        (HEAD + "vcpus = '2'", "vcpus", "expected a whole number, not a text, '2'"),
        (HEAD + "accel = 'xen'", "accel", "expected 'auto' or 'kvm' or 'tcg'"),
        (HEAD + "machine = 'Q35'", "machine", "did you mean 'q35'"),
        (HEAD + "machine = 'q35 '", "machine", "a machine type"),
        (HEAD + "uuid = 'x'", "uuid", "a UUID"),
        (HEAD + "block = 1", "block", "expected a list of tables"),
        (HEAD + DISK.replace("[[block]]", "[block]"), "block", "write [[block]]"),
        (HEAD + "[[blok]]", "blok", "did you mean 'block'"),
        (HEAD + DISK + "[[block]]\nid = 'a'", "block[1]", "'path' must be given"),
        (HEAD + DISK.replace("/srv/a", "img/a"), "block[0].path", "perhaps /etc/vms/img/a"),
        (HEAD + DISK.replace("/srv/a", "~/a"), "block[0].path", "an absolute path"),
        (HEAD + DISK + "fromat = 'raw'", "block[0].fromat", "did you mean 'format'"),
        (HEAD + DISK + "format = 'qcow'", "block[0].format", "did you mean 'qcow2'"),
        (HEAD + DISK + "copy = 'keep-chain'", "block[0].copy", "only a qcow2 has a chain"),
        (HEAD + DISK + "tool = 'a | b'", "block[0].tool", "'|' for a shell"),
        (HEAD + DISK.replace("disk0", "0disk"), "block[0].id", "a letter, then"),
        (HEAD + DISK + DISK, "block[1].id", "'disk0' is block[0]'s already"),
        (HEAD + DISK + NIC.replace("net0", "disk0"), "net[0].id", "is block[0]'s already"),
        (
            HEAD + DISK + DISK.replace("disk0", "d").replace("/srv/a", "//srv/x/../a"),
            "block[1].path",
            "is block[0]'s already",
        ),
        (HEAD + DISK + "serial = 's'\n" + DISK.replace("0", "1").replace("/srv/a", "/b")
         + "serial = 's'", "block[1].serial", "already"),
        (HEAD + NIC + "mac = '01:00:00:00:00:00'", "net[0].mac", "a unicast MAC"),
        (HEAD + NIC + "mac = '52:54:00:00:00:0a'\n" + NIC.replace("0", "1")
         + "mac = '52:54:00:00:00:0A'", "net[1].mac", "is net[0]'s already"),
        (HEAD + NIC + "tap = 't'\n" + NIC.replace("0", "1") + "tap = 't'", "net[1].tap", "already"),
        (HEAD + NIC + "tap = 'a b'", "net[0].tap", "name of a network interface"),
        (HEAD + NIC.replace("br0", "b" * 16), "net[0].bridge", "up to 15 characters"),
        (HEAD + NIC + "mtu = 100", "net[0].mtu", "at least 576"),
        (HEAD + NIC + "address = '03.0'\n" + DISK + "address = '03.0'", "net[0].address",
         "is block[0]'s already"),
        (HEAD + "[[tpm]]\nid = 'a'\n[[tpm]]\nid = 'b'", "tpm", "2 are given, and 1 allowed"),
        (HEAD + "[[tpm]]\nid = 'a'\ntype = 'external'", "tpm[0].socket", "must be given with"),
        (HEAD + "[[tpm]]\nid = 'a'\ntype = 'passthrough'", "tpm[0].path", "must be given with"),
        (HEAD + "[[tpm]]\nid = 'a'\nsocket = '/a'", "tpm[0].socket", "is only for type"),
        (HEAD + "[[usb]]\nid = 'a'", "usb[0]", "needs either model, or vendor and product"),
        (HEAD + "[[usb]]\nid = 'a'\nmodel = 'x'\nvendor = 1", "usb[0]", "needs either"),
        (HEAD + "[[usb]]\nid = 'a'\nvendor = 1", "usb[0].product", "must be given"),
        (HEAD + "[[usb]]\nid = 'a'\nproduct = 1", "usb[0].vendor", "must be given"),
        (HEAD + "[[usb]]\nid = 'a'\nvendor = 65536", "usb[0].vendor", "at most 65535"),
        (HEAD + "[[pci]]\nid = 'a'", "pci[0]", "needs either model or host"),
        (HEAD + "[[pci]]\nid = 'a'\nmodel = 'x'\nhost = '00:01.0'", "pci[0]", "needs either"),
        (HEAD + "[[pci]]\nid = 'a'\nhost = '3B:00.0'", "pci[0].host", "in small letters"),
        (HEAD + "[[pci]]\nid = 'a'\nhost = '3b:00.0'\n[[pci]]\nid = 'b'\nhost = '0000:3b:00.0'",
         "pci[1].host", "is pci[0]'s already"),
        (HEAD + "[[external]]\nid = 'a'\ntype = '-x'", "external[0].type", "up to 31"),
        (HEAD + "[boot]\ninitrd = '/i'", "boot.initrd", "only for a kernel"),
        (HEAD + "[boot]\ncmdline = ''", "boot.cmdline", "only for a kernel"),
        (HEAD + "[boot]\nkernel = 'vmlinuz'", "boot.kernel", "an absolute path"),
        (HEAD + BOOT.replace("firmware", "kernel"), "boot.firmware", "must be given with nvram"),
        (HEAD + BOOT.replace("nvram", "nvram-template"), "boot.nvram-template", "only for nvram"),
        (HEAD + BOOT + DISK.replace("disk0", "nvram"), "boot.nvram", "is block[0]'s already"),
        (HEAD + BOOT.replace("/srv/v", "/srv/a") + DISK, "boot.nvram", "is block[0]'s already"),
        (HEAD + BOOT.replace("/srv/v", "v"), "boot.nvram", 'as "/srv/web1-vars.fd"'),
        (HEAD + BOOT + DISK + "model = 'pflash'", "boot.nvram", "at most, and block[0] is one"),
        (HEAD + BOOT.partition("nvram")[0] + DISK + "serial = 's'\nmodel = 'pflash'",
         "block[0].serial", "leave it out"),
        (HEAD + '[boot]\nkernel = "/k"\ncmdline = "a\\u0000"', "boot.cmdline", "NUL"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_key(text: str, key: str, said: str) -> None:
    error = fault(text)
    assert error.key == key
    assert said in str(error)


def test_a_firmware_s_variables_are_a_disk() -> None:
    """As `show` prints it: it moves as disks do, and may have what they may have."""
    domain = read(HEAD + BOOT + DISK)
    variables = Block(id="nvram", path="/srv/v", model="pflash")
    assert domain.block == (Block(id="disk0", path="/srv/a"), variables)
    assert domain.boot == Boot(firmware="/usr/share/OVMF/OVMF_CODE_4M.fd")
    assert domain.variables == variables
    assert read(dump_domain(domain)) == domain
    # An older Entourage, which knows no such keys, is told of none.
    assert msgspec.to_builtins(domain)["boot"] == {"firmware": domain.boot.firmware}


def test_two_readers_may_share_one_image() -> None:
    disk = DISK + "readonly = true\n"
    assert len(read(HEAD + disk + disk.replace("disk0", "disk1")).block) == 2


@pytest.mark.parametrize("machine", ["q35", "pc-q35-7.2", "pc-i440fx-rhel7.6.0", "virt", "xenpv"])
def test_machine_types_are_the_hypervisors_to_know(machine: str) -> None:
    assert read(f'{HEAD}machine = "{machine}"').machine == machine


@pytest.mark.parametrize(
    "newline",
    [
        Domain(name="a", memory=1 << 20, machine="q35\n"),
        Domain(name="a\n", memory=1 << 20),
        Net(id="a", bridge="br0\n"),
        Block(id="a\n", path="/a"),
    ],
)
def test_no_name_ends_with_a_newline(newline: msgspec.Struct) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(newline), type(newline))


def structs() -> dict[str, inspect.Type]:
    names = ("Boot", "Block", "Net", "Tpm", "Usb", "Pci", "External", "Domain")
    return {name: inspect.type_info(getattr(model, name)) for name in names}


def test_every_pattern_is_explained() -> None:
    for struct in structs().values():
        for key, field in fields_of(struct).items():
            if "pattern='" in repr(field.type) and "StructType" not in repr(field.type):
                assert key in FORMS


# A dump that is read again is the same value.

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map("/{}".format)
names = st.from_regex(r"\A[^/\x00-\x1f\x7f.\-\ud800-\udfff][^/\x00-\x1f\x7f\ud800-\udfff]{0,20}\Z")
macs = st.from_regex(r"\A[0-9a-f][02468ace](:[0-9a-f]{2}){5}\Z")


Fields = dict[str, Any]


def devices(
    build: Callable[[str, int, Fields], Device], letter: str, most: int = 3, **fields: Any
) -> st.SearchStrategy[tuple[Device, ...]]:
    def number(items: list[Fields]) -> tuple[Device, ...]:
        return tuple(build(f"{letter}{n}", n, item) for n, item in enumerate(items))

    return st.lists(st.fixed_dictionaries({}, optional=fields), max_size=most).map(number)


domains = st.builds(
    Domain,
    name=names,
    uuid=st.none() | st.uuids().map(str),
    memory=st.integers(1, 1 << 20).map(lambda mib: mib << 20),
    vcpus=st.integers(1, 1024),
    cpu=st.none() | st.just("EPYC-v4,-svm"),
    accel=st.sampled_from(["auto", "kvm", "tcg"]),
    boot=st.builds(
        Boot, kernel=paths, initrd=st.none() | paths, cmdline=st.none() | texts
    )
    | st.builds(Boot, firmware=st.none() | paths),
    block=devices(
        lambda id_, n, item: Block(id=id_, path=f"/srv/{n}", **item),
        "b",
        readonly=st.booleans(),
        format=st.sampled_from(["raw", "qcow2"]),
        tool=st.just("/t 'x y' \"\\\\\""),
    ),
    net=devices(lambda id_, n, item: Net(id=id_, bridge=f"br{n}", **item), "n", most=1, mac=macs),
    tpm=devices(lambda id_, _, item: Tpm(id=id_, **item), "t", most=1, version=st.just("1.2")),
    usb=devices(
        lambda id_, _, item: Usb(id=id_, product=7, vendor=item.get("vendor", 7)),
        "u",
        vendor=st.integers(0, 0xFFFF),
    ),
    pci=devices(lambda id_, _, item: Pci(id=id_, model=item.get("model", "m")), "p", model=texts),
    external=devices(lambda id_, _, item: External(id=id_, type="x", **item), "e", subtype=texts),
)  # fmt: skip


@settings(deadline=None)
@given(domains)
def test_what_is_dumped_is_read(domain: Domain) -> None:
    assert read(dump_domain(domain)) == domain


scalars: st.SearchStrategy[Any] = st.booleans() | st.integers() | st.floats() | texts | paths
KEYS = sorted({key for struct in structs().values() for key in fields_of(struct)})
tables: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), tables, max_size=5))
def test_any_tables_are_read_or_refused(raw: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for tried in (raw, {"name": "a", "memory": "1M", **raw}):
            patch.setattr("entourage.settings.domainfile.parse_toml", Mock(return_value=tried))
            try:
                assert isinstance(read(""), Domain)
            except ConfigError as error:
                assert str(error).isprintable()  # noqa: PT017 - either way is right


# The documentation cannot drift from the model.

ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (?:`(.+?)`|(not set|must be given|none)) \| .+ \|$")


def test_every_key_is_documented_with_its_default() -> None:
    found: dict[str, dict[str, str | None]] = {}
    table = ""
    for line in DOCS.read_text().splitlines():
        if heading := re.match(r"^#+ .*`\[+([a-z]+)\]+`$|^## (The machine)$", line):
            table = heading[1] or "domain"
            found[table] = {}
        elif table and (row := ROW.match(line)):
            found[table][row[1]] = row[2]
    every = {key.lower(): list(fields_of(struct)) for key, struct in structs().items()}
    common = ["id", "tool"]
    for name, keys in every.items():
        own = [key for key in keys if name in {"domain", "boot"} or key not in common]
        assert sorted(found[name]) == sorted(own), name
    for name, struct in structs().items():
        for key, field in fields_of(struct).items():
            if key in found[name.lower()] and isinstance(field.default, str | int | bool):
                default = found[name.lower()][key]
                assert default is not None
                assert tomllib.loads(f"{key} = {default}")[key] == field.default, key


def test_the_examples_are_domains() -> None:
    text = DOCS.read_text()
    whole, uefi = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert read(whole).devices
    [its_disk] = re.findall(r"^    \[\[block\]\]\n(?:    .*\n)+", text, re.MULTILINE)
    assert read(uefi) == read(uefi.partition("nvram")[0] + its_disk)
