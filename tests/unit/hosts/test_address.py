"""Which address data goes to: ssh's configuration is what ``ssh -G`` of this host says."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import address as address_module
from entourage.hosts import ssh, tcp
from entourage.hosts.address import data_addresses
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
        # What sshd says comes first; behind a NAT only the other one is good.
        ("b6", "192.0.2.7", ["192.0.2.7", "192.0.2.6"]),
        ("b6", "192.0.2.6", ["192.0.2.6"]),
        ("named", "2001:db8::7", ["2001:db8::7"]),
        ("b6", "", ["192.0.2.6"]),  # sudo has dropped it
        ("root@b6", "", ["192.0.2.6"]),
        ("b6", "127.0.0.1", ["192.0.2.6"]),  # a port forwarded on the target
        ("b6", "::ffff:127.0.0.1", ["192.0.2.6"]),
        ("scoped", "fe80::2%ens3", ["fe80::2%eth9"]),  # the target's own name for the link
        # Of a target that is hostile.
        ("b6", "127.1", ["192.0.2.6"]),
        ("b6", "localhost", ["192.0.2.6"]),
        ("b6", "0.0.0.0", ["192.0.2.6"]),  # noqa: S104 - nobody listens there
        ("b6", "::", ["192.0.2.6"]),
        ("b6", "224.0.0.1", ["192.0.2.6"]),
    ],
)
async def test_the_addresses_that_ssh_may_have_used(
    aliases: Path, host: str, heard: str, expected: list[str]
) -> None:
    assert await data_addresses(host, heard, settings(aliases)) == expected


async def test_what_the_user_names_comes_first() -> None:
    assert await data_addresses("b6", "192.0.2.7", settings(address="192.0.2.9")) == ["192.0.2.9"]


@pytest.mark.parametrize(
    ("host", "heard", "reason", "remedy"),
    [
        ("tunnel", "127.0.0.1", "ssh reaches tunnel by 127.0.0.1", "--data-address ADDRESS"),
        ("unscoped", "fe80::2%ens3", "by which interface", "--data-address fe80::2%INTERFACE"),
        ("named", "", "the address of named is not known here", "--data-address ADDRESS"),
    ],
)
async def test_an_address_that_leads_nowhere_is_refused(
    aliases: Path, host: str, heard: str, reason: str, remedy: str
) -> None:
    with pytest.raises(HypervisorError, match=reason) as failure:
        await data_addresses(host, heard, settings(aliases))
    assert remedy in failure.value.remedy


async def test_an_address_of_the_users_must_say_its_interface_too() -> None:
    with pytest.raises(HypervisorError, match="by which interface"):
        await data_addresses("b", "", settings(address="fe80::2"))


async def test_each_address_of_a_name_is_a_candidate_with_its_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loop:
        """A resolver that has found two; only it is a fake."""

        async def getaddrinfo(self, *_: object, **_more: object) -> list[tuple[object, ...]]:
            return [
                (socket.AF_INET6, 1, 6, "", ("fe80::2", 0, 0, socket.if_nametoindex("lo"))),
                (socket.AF_INET, 1, 6, "", ("192.0.2.6", 0)),
            ]

    monkeypatch.setattr(address_module.asyncio, "get_running_loop", Loop)
    found = await data_addresses("b", "", settings(address="b.local"))
    assert found == ["fe80::2%lo", "192.0.2.6"]


async def test_a_configuration_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = f"sleep 33.{os.getpid()}"
    config = tmp_path / "config"
    config.write_text(f'Match exec "{marker}"\n User x\n')
    monkeypatch.setattr(ssh, "_CONFIGURED_WITHIN", 0.2)
    assert await ssh.configuration("b", settings(config)) == {}
    pgrep = await asyncio.create_subprocess_exec("pgrep", "-f", marker)
    assert await pgrep.wait() == 1  # there is none


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
