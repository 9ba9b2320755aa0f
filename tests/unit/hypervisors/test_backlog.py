"""What waits in the kernel for a process to take it in."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import IO

import pytest

from entourage.hosts.process import ProcessHandle
from entourage.hypervisors.backlog import buffer_for, keep_short

TAKER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
print("accepted", flush=True)
sys.stdin.readline()
for one in (connection, server):
    print(one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), flush=True)
"""


@pytest.fixture
def taker() -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def handle(taker: subprocess.Popen[str]) -> Generator[ProcessHandle]:
    found = ProcessHandle.open(taker.pid)
    assert found is not None
    yield found
    found.close()


def words(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def test_a_connection_of_another_process_is_bounded(
    taker: subprocess.Popen[str], handle: ProcessHandle
) -> None:
    output = words(taker.stdout)
    port = int(output.readline())
    with socket.create_connection(("127.0.0.1", port)):
        assert output.readline() == "accepted\n"
        assert keep_short(handle, port + 1) is None
        size = keep_short(handle, port)
        assert size == 512 << 10
        print(file=words(taker.stdin), flush=True)
        connection, server = int(output.readline()), int(output.readline())
    most = 2 * int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert connection in {size, min(size, most)}  # the latter without the right to force it
    assert server != connection  # whoever connects next is not bounded


def test_nobody_has_connected(taker: subprocess.Popen[str], handle: ProcessHandle) -> None:
    assert keep_short(handle, int(words(taker.stdout).readline())) is None


def test_a_process_that_is_gone(taker: subprocess.Popen[str], handle: ProcessHandle) -> None:
    port = int(words(taker.stdout).readline())
    taker.kill()
    taker.wait()
    assert keep_short(handle, port) is None


@pytest.mark.parametrize(
    ("round_trip", "size"), [(0.00005, 512 << 10), (0.0004, 1_000_000), (0.02, None)]
)
def test_a_longer_way_needs_more(round_trip: float, size: int | None) -> None:
    """At 10 Gbit/s half the buffer is what is under way in a round trip; or the kernel decides."""
    assert buffer_for(round_trip) == size
