"""libvirt's phases: what is passed to its library, and what is made of its answers."""

from __future__ import annotations

import ctypes
import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError, HypervisorOff, UsageError
from entourage.hypervisors.base import DataPlane, Secret, Ticket
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.libvirt import checks, machine, tls
from entourage.hypervisors.libvirt.capi import Phases, TypedParameter, marshalled
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, told
from entourage.hypervisors.libvirt.constants import Flag, Parameter
from entourage.hypervisors.libvirt.errors import device_of, plain, qemu_said
from entourage.hypervisors.libvirt.events import Feed, Known, at
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.libvirt.uri import destination


class Raised(Exception):  # noqa: N818 - it stands for one of libvirt's
    """Stands for libvirt.libvirtError."""

    def __init__(self, message: str, code: int = 1, domain: int = 10, int1: int = 0) -> None:
        super().__init__(message)
        self._facts = message, code, domain
        self._int1 = int1

    def get_int1(self) -> int:
        return self._int1

    def get_error_message(self) -> str:
        return self._facts[0]

    def get_error_code(self) -> int:
        return self._facts[1]

    def get_error_domain(self) -> int:
        return self._facts[2]


# Parameters


def test_a_typed_parameter_is_as_large_as_libvirts() -> None:
    assert ctypes.sizeof(TypedParameter) == 96
    assert TypedParameter.value.offset == 88


def test_parameters_have_their_types() -> None:
    array = marshalled(
        {
            Parameter.URI: "tcp://b",
            Parameter.BANDWIDTH: 1 << 40,
            Parameter.CONVERGE_INITIAL: 5,
            Parameter.DISKS: ["vda", "vdb"],
        }
    )
    assert [slot.field.decode() for slot in array] == [
        "migrate_uri", "bandwidth", "auto_converge.initial", "migrate_disks", "migrate_disks",
    ]  # fmt: skip
    assert [slot.type for slot in array] == [7, 4, 1, 7, 7]
    assert (array[0].value.s, array[1].value.ul, array[2].value.i) == (b"tcp://b", 1 << 40, 5)
    assert (array[3].value.s, array[4].value.s) == (b"vda", b"vdb")


# The library


class Library:
    """Stands for libvirt.so.0: one phase that gives out a cookie with a NUL in it."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.seen: list[Any] = []

    def virDomainMigratePerform3Params(self, *arguments: Any) -> int:  # noqa: N802 - libvirt's
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        _dom, _uri, _params, _count, cookie, length, out, out_length, flags = arguments
        self.seen = [cookie, length, flags.value]
        made = libc.malloc(4)
        ctypes.memmove(made, b"a\0b\0", 4)
        ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = made
        ctypes.cast(out_length, ctypes.POINTER(ctypes.c_int))[0] = 4
        return self.status


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> object:
    def pointer(_wrapper: object, _name: bytes) -> None:
        return None

    monkeypatch.setattr("entourage.hypervisors.libvirt.capi._pointer", pointer)
    return object()


def test_cookies_go_in_and_out_by_their_exact_length(domain: object) -> None:
    library: Any = Library(0)
    phases = Phases(library, Raised)
    assert phases.perform(domain, {}, b"in\0", Flag.LIVE | Flag.TLS) == b"a\0b\0"
    assert library.seen == [b"in\0", 3, (1 << 0) | (1 << 16)]


def test_no_cookie_is_a_null_pointer(domain: object) -> None:
    library: Any = Library(0)
    Phases(library, Raised).perform(domain, {}, b"", 0)
    assert library.seen[:2] == [None, 0]


def test_a_failure_is_raised_in_the_thread_that_failed(domain: object) -> None:
    library: Any = Library(-1)
    with pytest.raises(Raised, match="Perform failed"):
        Phases(library, Raised).perform(domain, {}, b"", 0)


def test_a_libvirt_that_is_too_old_is_refused() -> None:
    with pytest.raises(UsageError, match=r"libvirt 5\.9\.0 is too old"):
        Phases.open(5_009_000, Raised)


def test_a_libvirt_without_its_phases_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(_name: str) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", some)
    with pytest.raises(UsageError, match="lacks virDomainMigrateBegin3Params"):
        Phases.open(99_000_000, Raised)


# Errors


def test_an_error_of_the_connection_leaves_the_outcome_open() -> None:
    assert isinstance(told(Raised("End of file", 38, domain=7)), LostError)
    assert isinstance(told(Raised("closed", 6, domain=0)), LostError)


@pytest.mark.parametrize(
    ("number", "is_off"),
    [(errno.ECONNREFUSED, True), (errno.ENOENT, True), (errno.EACCES, False), (0, False)],
)
def test_where_nothing_listens_libvirtd_is_off(number: int, *, is_off: bool) -> None:
    error = told(Raised("Failed to connect socket", 38, domain=7, int1=number))
    assert isinstance(error, LostError)
    assert isinstance(error, HypervisorOff) is is_off
    # The same number of a call that libvirtd has made is an answer of its.
    assert isinstance(told(Raised("no such file", 38, int1=number)), RefusedError)


def test_what_libvirtd_itself_says_is_an_answer() -> None:
    error = told(Raised("Requested operation\n is not valid", 55))
    assert isinstance(error, RefusedError)
    assert (error.code, error.message) == (55, "libvirt: Requested operation is not valid")


def test_other_errors_stay_what_they_are() -> None:
    error = OSError("x")
    assert told(error) is error


# What follows from both hosts


def carrier(*, was_running: bool = True) -> Any:
    nothing: Any = None
    domain = Domain(name="web1", memory=1 << 28)
    handle = Handle(nothing, None, domain, was_running=was_running, transient=False)
    return LibvirtMachine(handle, Path("/nowhere"))


def plane(*, secret: bool = True, bandwidth: int = 0) -> DataPlane:
    key = Secret("entourage", b"k") if secret else None
    return DataPlane(address="10.0.0.2", ports=(1, 2), secret=key, bandwidth=bandwidth)


def test_tls_where_both_hosts_have_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "can_send", lambda: True)
    one = carrier()
    one._choose(plane(), {"tls": "b.example"}, throttle=False)
    assert one._extra == Flag.TLS
    assert one._job.parameters == {Parameter.TLS_DESTINATION: "b.example"}
    assert one.in_the_clear == ""


def test_the_plan_says_what_is_encrypted_as_far_as_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = carrier()
    monkeypatch.setattr(tls, "can_send", lambda: True)
    assert one.encrypts({"tls": "b.example"}, wanted=True) is True
    assert one.encrypts({"tls": "", "qemu": "1"}, wanted=True) is False
    assert one.encrypts(None, wanted=True) is None  # its Prepare will say
    assert one.encrypts({"tls": "b.example"}, wanted=False) is False
    monkeypatch.setattr(tls, "can_send", lambda: False)
    assert one.encrypts(None, wanted=True) is False
    assert one.encrypts({"tls": "b.example"}, wanted=True) is False


def test_without_certificates_the_user_is_told_whose_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "can_send", lambda: False)
    one = carrier()
    one._choose(plane(), {"tls": "b.example"}, throttle=False)
    assert "this host has no certificates" in one.in_the_clear
    one._choose(plane(), {"tls": ""}, throttle=False)
    assert "the target has no certificates" in one.in_the_clear
    one._choose(plane(secret=False), {"tls": ""}, throttle=False)
    assert one.in_the_clear == ""


def test_what_the_user_wants_becomes_flags_and_parameters() -> None:
    one = carrier(was_running=False)
    one._choose(plane(secret=False, bandwidth=100 << 20), {}, throttle=True)
    assert one._extra == Flag.AUTO_CONVERGE | Flag.PAUSED
    assert one._job.parameters[Parameter.BANDWIDTH] == 100


@pytest.mark.parametrize("uri", ["tcp://10.0.0.3:49152", "tcp:10.0.0.2:22", "unix:///run/x"])
async def test_memory_goes_to_the_address_that_was_asked_for(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is performed where the target names another place."""
    performed: list[Any] = []

    async def made(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(known=Known())

    monkeypatch.setattr(Feed, "open", made)
    monkeypatch.setattr(Deadman, "arm", made)
    monkeypatch.setattr(machine, "phases", lambda: SimpleNamespace(perform=performed.append))
    one = carrier()
    one._handle.connection = SimpleNamespace(uri="qemu:///system")
    await one.arm(plane())
    with pytest.raises(HypervisorError, match="the target has memory go to"):
        await one.start(Ticket(uri=uri), live=True)
    assert not performed


@pytest.mark.parametrize(
    ("was_running", "error", "armed"),
    [
        (True, HypervisorError("it is not asked"), True),
        (False, None, True),
        (False, HypervisorError("QEMU says no"), False),
        (False, LostError("libvirtd has gone", remedy="see whether it runs"), False),
    ],
)
async def test_a_paused_guest_leaves_with_its_images(
    monkeypatch: pytest.MonkeyPatch,
    was_running: bool,  # noqa: FBT001 - a case's
    error: HypervisorError | None,
    armed: bool,  # noqa: FBT001 - a case's
) -> None:
    """Whoever brought it here; or its QEMU would end itself. Nothing is armed where it cannot."""
    told: list[str] = []

    async def take(_raw: Any) -> None:
        told.append("take")
        if error is not None:
            raise error

    async def made(*_: Any, **__: Any) -> Any:
        told.append("arm")
        return SimpleNamespace(known=Known())

    monkeypatch.setattr(machine, "take_images", take)
    monkeypatch.setattr(Feed, "open", made)
    monkeypatch.setattr(Deadman, "arm", made)
    one = carrier(was_running=was_running)
    one._handle.connection = SimpleNamespace(uri="qemu:///system")
    if armed:
        await one.arm(plane())
    else:
        with pytest.raises(HypervisorError) as caught:
            await one.arm(plane())
        lost = isinstance(error, LostError)
        assert ("virsh resume web1" in caught.value.remedy) is not lost
        assert isinstance(caught.value, LostError) is lost
    assert told == ["take"] * (not was_running) + ["arm", "arm"] * armed


def test_two_ways_to_copy_cannot_be_mixed() -> None:
    one = carrier()
    one.carrying.carry(Block(id="vda", path="/a"), top_only=True)
    one.carrying.carry(Block(id="vda", path="/a"), top_only=True)
    with pytest.raises(HypervisorError, match="vda the other way"):
        one.carrying.carry(Block(id="vdb", path="/b"), top_only=False)


def test_where_certificates_are_looked_for(tmp_path: Path) -> None:
    conf = tmp_path / "qemu.conf"
    conf.write_text(
        f'#migrate_tls_x509_cert_dir = "/no"\ndefault_tls_x509_cert_dir = "{tmp_path}"\n'
    )
    assert tls.directory(conf) == tmp_path
    assert not tls.can_send(conf)
    for name in ("ca-cert.pem", "server-cert.pem"):
        (tmp_path / name).touch()
    assert tls.can_send(conf)
    assert tls.can_take(conf) == ""
    (tmp_path / "server-key.pem").touch()
    assert tls.can_take(conf)


# Versions and words


def test_an_older_qemu_is_refused() -> None:
    reasons = checks.versions({"qemu": "7002000"}, 9_000_000, 7_001_000, "b")
    assert [reason for reason, _ in reasons] == [
        "QEMU 7.1.0 is older than the 7.2.0 that the domain runs in"
    ]
    assert checks.versions({"qemu": "7002000"}, 9_000_000, 10_000_000, "b") == []


@pytest.mark.parametrize("said", ["", "seven", "-1", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_a_version_that_is_none_is_no_reason(said: str) -> None:
    """The source can say what it likes."""
    assert checks.versions({"qemu": said}, 9_000_000, 7_001_000, "b") == []


def test_an_old_libvirtd_is_refused() -> None:
    [(reason, _)] = checks.versions({}, 5_000_000, 7_002_000, "b")
    assert reason == "libvirtd 5.0.0 is too old to be driven"


def test_a_reason_is_told_of_the_device_that_it_names() -> None:
    disk = Block(id="vda", path="/srv/web1.qcow2")
    domain = Domain(name="web1", memory=1 << 28, block=(disk,))
    assert device_of(domain, "cannot migrate disk 'vda'") == "block/vda"
    assert device_of(domain, "something about /srv/web1.qcow2") == "block/vda"
    assert device_of(domain, "domain has CPU feature: invtsc") == ""
    assert plain("libvirt: Requested operation is not valid: no way") == "no way"


def test_what_qemu_said_last(tmp_path: Path) -> None:
    log = tmp_path / "web1.log"
    assert qemu_said(log) == ""
    log.write_text(
        "2026-11-23 05:00:00.000+0000: starting up libvirt version: 9.0.0\n"
        "2026-11-23T05:00:00Z qemu-system-x86_64: of an earlier machine\n"
        "2026-11-23 06:00:00.000+0000: starting up libvirt version: 9.0.0\n"
        "LC_ALL=C /usr/bin/qemu-system-x86_64 -name web1\n"
        "2026-11-23T06:00:01.5Z qemu-system-x86_64: tpm-emulator: Setting the state blob failed\n"
        "2026-11-23T06:00:01.6Z qemu-system-x86_64: load of migration failed: Input/output error\n"
        "2026-11-23 06:00:01.700+0000: shutting down, reason=failed\n"
    )
    assert qemu_said(log) == (
        "tpm-emulator: Setting the state blob failed; load of migration failed: Input/output error"
    )


def test_a_moment_of_the_wall_clock() -> None:
    now = time.time_ns()
    moment = at(now // 10**9, now % 10**9 // 1000)
    assert 0 <= time.monotonic_ns() - moment < 50_000_000
    # A clock that was set meanwhile says nothing.
    assert time.monotonic_ns() - at(0, 0) < 50_000_000


# Where to


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qemu+ssh://b/system", ("b", None, "qemu:///system", True, False)),
        ("qemu+ssh://root@b:2222/session", ("root@b", 2222, "qemu:///session", True, False)),
        ("qemu+tls://b:1/system", ("b", None, "qemu:///system", False, False)),
        (
            "qemu+unix:///system?socket=/run/x",
            ("", None, "qemu+unix:///system?socket=/run/x", False, True),
        ),
    ],
)
def test_a_uri(text: str, expected: tuple[str, int | None, str, bool, bool]) -> None:
    found = destination(text)
    assert found is not None
    assert (found.host, found.port, found.there, found.by_ssh, found.is_local) == expected


@pytest.mark.parametrize(
    "text",
    [
        "xen+ssh://b/",
        "qemu+carrier://b/system",
        "qemu://b/nowhere",
        "qemu://b:x/system",
        "qemu+tls://b/a b",
    ],
)
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError):
        destination(text)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        (
            "keyfile=/root/k%20y&no_verify=1",
            ('IdentityFile="/root/k y"', "StrictHostKeyChecking=no"),
        ),
        ("no_verify=0&no_tty=1", ("BatchMode=yes",)),
        ("keyfile=/root/100%25", ('IdentityFile="/root/100%%"',)),
        ("netcat=/bin/nc&proxy=netcat&mode=legacy", ()),
    ],
)
def test_what_a_uri_says_of_ssh_is_obeyed(query: str, options: tuple[str, ...]) -> None:
    found = destination(f"qemu+ssh://b/system?{query}")
    assert found is not None
    assert found.ssh_options == options


def test_libssh_has_words_of_its_own() -> None:
    query = "known_hosts=/root/known&known_hosts_verify=auto"
    found = destination(f"qemu+libssh://b/system?{query}")
    assert found is not None
    assert found.ssh_options == (
        'UserKnownHostsFile="/root/known"', "StrictHostKeyChecking=accept-new",
    )  # fmt: skip


def test_what_tls_believes_is_not_sshs_business() -> None:
    found = destination("qemu+tls://b/system?no_verify=1&pkipath=/root/pki")
    assert found is not None
    assert found.ssh_options == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qemu+ssh://b/system?command=/tmp/prog", "command is not obeyed"),
        ("qemu+ssh://b/system?name=qemu:///session", "name is not obeyed"),
        ("qemu+ssh://b/system?keyfil=/x", "keyfil is not obeyed"),
        ("qemu+ssh://b/system?keyfile=/x&keyfile=/y", "keyfile stands there twice"),
        ("qemu+tls://b/system?keyfile=/x", "keyfile is not obeyed"),
        ("qemu+libssh://b/system?known_hosts_verify=perhaps", "known_hosts_verify=perhaps"),
        ('qemu+ssh://b/system?keyfile=/a"b', "quotation mark"),
    ],
)
def test_what_a_uri_says_that_is_not_obeyed_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as failure:
        destination(text)
    assert failure.value.remedy
