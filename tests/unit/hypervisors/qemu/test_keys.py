"""Which ciphers QEMU is told to take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from entourage.hypervisors.qemu.keys import cipher_order

POLICIES = {
    "none": "",
    "another": "[overrides]\ninsecure-hash = md5\n",
    "the system's": "[priorities]\nSYSTEM=NORMAL:-VERS-TLS1.0\n",
    "a list of what is allowed": """\
[global]
override-mode = allowlist
[priorities]
SYSTEM=NONE
[overrides]
secure-hash = SHA256
secure-hash = SHA384
tls-enabled-mac = AEAD
tls-enabled-group = GROUP-SECP256R1
secure-sig = ECDSA-SHA256
secure-sig = RSA-PSS-RSAE-SHA256
secure-sig-for-cert = ECDSA-SHA256
enabled-curve = SECP256R1
tls-enabled-cipher = AES-256-GCM
tls-enabled-cipher = CHACHA20-POLY1305
tls-enabled-cipher = AES-128-GCM
tls-enabled-kx = ECDHE-RSA
tls-enabled-kx = ECDHE-PSK
enabled-version = TLS1.3
enabled-version = TLS1.2
""",
}


def order(tmp_path: Path, cpu: str, policy: str = "") -> str:
    processor, config = tmp_path / "cpuinfo", tmp_path / "config"
    processor.write_text(cpu)
    config.write_text(policy)
    return cipher_order(processor, config).get("priority", "")


@pytest.mark.parametrize("cpu", ["flags\t\t: fpu aes avx\n", "Features\t: fp asimd aes pmull\n"])
def test_a_processor_with_aes(tmp_path: Path, cpu: str) -> None:
    assert order(tmp_path, cpu).startswith("NORMAL:")


@pytest.mark.parametrize("cpu", ["", "flags\t\t: fpu vaes\n", "model name\t: aes\n"])
def test_a_processor_without(tmp_path: Path, cpu: str) -> None:
    assert order(tmp_path, cpu) == ""
    assert cipher_order(tmp_path / "missing") == {}


@pytest.mark.skipif(shutil.which("gnutls-cli") is None, reason="gnutls-cli is not installed")
@pytest.mark.parametrize("policy", POLICIES)
def test_gnutls_takes_it_under_every_policy(tmp_path: Path, policy: str) -> None:
    """With a key whose hash is SHA-256 the first suite with it is taken."""
    said = order(tmp_path, "flags: aes\n", POLICIES[policy])
    assert said.startswith("@SYSTEM:" if "SYSTEM=" in POLICIES[policy] else "NORMAL:")
    listed = subprocess.run(
        ["gnutls-cli", "--list", "--priority", f"{said}:+ECDHE-PSK:+DHE-PSK:+PSK"],
        env={"GNUTLS_SYSTEM_PRIORITY_FILE": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    suites = [line.split()[0] for line in listed.splitlines() if line.endswith("TLS1.3")]
    first = next(suite for suite in suites if suite.endswith("_SHA256"))
    assert first == "TLS_AES_128_GCM_SHA256"
    assert "TLS_CHACHA20_POLY1305_SHA256" in suites  # for a peer that has nothing else
