"""Which address data goes to: ssh's configuration is what ``ssh -G`` of this host says."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import tcp
from entourage.hosts.address import data_address
from entourage.hosts.tcp import bindable
from entourage.settings.model import MigrationSettings, Settings, SshSettings


def settings(config: Path | None = None, address: str | None = None) -> Settings:
    options = ("-F", str(config or "/dev/null"))
    return Settings(
        ssh=SshSettings(options=options), migration=MigrationSettings(data_address=address)
    )


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    """An ssh configuration with aliases."""
    config = tmp_path / "config"
    config.write_text(
        "Host b6\n HostName 192.0.2.6\n"
        "Host tunnel\n HostName 127.0.0.1\n Port 2222\n"
        "Host scoped\n HostName fe80::2%%eth9\n"
        "Host unscoped\n HostName fe80::2\n"
        "Host named\n HostName no-such-host.invalid\n"
    )
    return config


@pytest.mark.parametrize(
    ("host", "heard", "expected"),
    [
        ("b6", "192.0.2.7", "192.0.2.7"),  # what sshd says comes first
        ("b6", "2001:db8::7", "2001:db8::7"),
        ("b6", "", "192.0.2.6"),  # sudo has dropped it
        ("root@b6", "", "192.0.2.6"),
        ("b6", "127.0.0.1", "192.0.2.6"),  # a port forwarded on the target
        ("b6", "::ffff:127.0.0.1", "192.0.2.6"),
        ("scoped", "fe80::2%ens3", "fe80::2%eth9"),  # the target's own name for the link
    ],
)
async def test_the_address_that_ssh_really_used(
    aliases: Path, host: str, heard: str, expected: str
) -> None:
    assert await data_address(host, heard, settings(aliases)) == expected


async def test_what_the_user_names_comes_first() -> None:
    assert await data_address("b6", "192.0.2.7", settings(address="192.0.2.9")) == "192.0.2.9"


@pytest.mark.parametrize(
    ("host", "heard", "reason", "remedy"),
    [
        ("tunnel", "127.0.0.1", "ssh reaches tunnel by 127.0.0.1", "--data-address ADDRESS"),
        ("unscoped", "fe80::2%ens3", "by no interface", "--data-address fe80::2%INTERFACE"),
        ("named", "", "the address of named is not known here", "--data-address ADDRESS"),
    ],
)
async def test_an_address_that_leads_nowhere_is_refused(
    aliases: Path, host: str, heard: str, reason: str, remedy: str
) -> None:
    with pytest.raises(HypervisorError, match=reason) as failure:
        await data_address(host, heard, settings(aliases))
    assert remedy in failure.value.remedy


async def test_a_link_local_address_is_listened_at_by_the_interface_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = tmp_path / "if_inet6"
    addresses.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000002 02 40 20 80     ens3\n"
    )
    monkeypatch.setattr(tcp, "_ADDRESSES", addresses)
    assert await bindable("fe80::2%eth9") == "fe80::2%ens3"
    assert await bindable("fe80::3%eth9") == "::"
