"""Who may ask the agent for what."""

from __future__ import annotations

import pytest

from entourage.errors import UsageError
from entourage.hypervisors.libvirt.uri import agentless_name as agentless
from entourage.settings.model import AgentSettings
from entourage.target.caller import Caller

DEFAULT = AgentSettings()


@pytest.mark.parametrize(
    "hypervisor",
    [
        *("qemu", "xen", "qemu:///system", "qemu:///session"),
        "qemu+unix:///system?socket=/run/libvirt/libvirt-sock",
    ],
)
def test_local_hypervisors_are_allowed(hypervisor: str) -> None:
    Caller().check("a", hypervisor, DEFAULT, "b")


@pytest.mark.parametrize(
    "hypervisor",
    [
        "qemu+ext:///system?command=/tmp/prog",
        "qemu+ssh://root@c/system",
        "qemu+ssh://c/system?command=/tmp/prog",
        "qemu+libssh2://c/system",
        "qemu+tcp://c/system",
        "qemu:///system?socket=/tmp/mine",
        "qemu:///system?command=/tmp/prog",
        "qemu+unix:///system?socket=/tmp/mine",
        "qemu+unix:///system?socket=/run/libvirt/../../tmp/mine",
        "qemu+unix:///system?socket=/run/libvirt/x&command=/tmp/prog",
        "qemu+unix:///system?socket=/run/libvirt/x&socket=/tmp/mine",
        "qemu+unix://c/system?socket=/run/libvirt/x",
        "qemu+unix:///other?socket=/run/libvirt/x",
        "test:///default",
        "lxc:///",
        "http://[",
        "",
        agentless("qemu+ssh://c/system"),
    ],
)
def test_nothing_else_is(hypervisor: str) -> None:
    with pytest.raises(UsageError, match="not among those") as refused:
        Caller().check("a", hypervisor, DEFAULT, "b")
    assert "agent.allowed-hypervisors" in refused.value.remedy
    assert refused.value.host == "b"


@pytest.mark.parametrize("hypervisor", ["save:/srv/web1", "save:/etc"])
def test_a_stranger_saves_nothing_here(hypervisor: str) -> None:
    with pytest.raises(UsageError, match="not among those"):
        Caller().check("a", hypervisor, DEFAULT, "b")
    Caller(proxy=True, local=True).check("a", hypervisor, DEFAULT, "b")
    with pytest.raises(UsageError, match="no name of a host"):
        Caller().check("/srv/web1", "qemu", DEFAULT, "b")


def test_the_settings_may_allow_more_and_less() -> None:
    only_libvirt = AgentSettings(allowed_hypervisors=("qemu:///system", "xen"))
    Caller().check("a", "xen", only_libvirt, "b")
    with pytest.raises(UsageError):
        Caller().check("a", "qemu", only_libvirt, "b")
    no_libvirt = AgentSettings(allowed_hypervisors=("qemu",))
    with pytest.raises(UsageError):
        Caller().check("a", "qemu+unix:///system?socket=/run/libvirt/x", no_libvirt, "b")


def test_only_a_proxy_reaches_other_hosts() -> None:
    Caller(proxy=True).check("a", agentless("qemu+ssh://c/system"), DEFAULT, "c")


def test_a_key_stands_for_one_source() -> None:
    Caller(source="a").check("a", "qemu", DEFAULT, "b")
    with pytest.raises(UsageError, match="machines of 'c'") as refused:
        Caller(source="a").check("c", "qemu", DEFAULT, "b")
    assert "--source" in refused.value.remedy


def test_the_settings_name_sources() -> None:
    settings = AgentSettings(sources=("a", "rack2-*"))
    Caller().check("rack2-7", "qemu", settings, "b")
    with pytest.raises(UsageError) as refused:
        Caller().check("c", "qemu", settings, "b")
    assert "agent.sources" in refused.value.remedy


def test_a_key_for_one_source_speaks_of_its_migrations_only() -> None:
    Caller(source="a*").check_peer("a1", "b")
    Caller().check_peer("c", "b")  # nothing is known of it but its own word
    with pytest.raises(UsageError, match="begun by 'c'"):
        Caller(source="a*").check_peer("c", "b")
