"""A file that another one writes is followed, and goes to the disk meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from entourage.hosts import growing
from entourage.hosts.growing import Following, Writeback
from tests.unit.eventually import wait_until


def test_one_is_followed_from_before_it_is_made(tmp_path: Path) -> None:
    path, told = tmp_path / "memory", list[int]()
    following = Following(path, told.append)
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 1000)
        wait_until(lambda: sum(told) == 1000)
        file.write(b"x" * 500)
        wait_until(lambda: sum(told) == 1500)
    following.end()
    wait_until(lambda: not running("following"))


def running(name: str) -> bool:
    return any(one.name == name for one in threading.enumerate())


class Kernel:
    """A fake of ``begin_writeback``: writes down what it is asked for."""

    def __init__(self, *, can: bool = True) -> None:
        self.asked: list[tuple[int, int]] = []
        self._can = can

    def __call__(self, _handle: int, at: int, count: int) -> bool:
        self.asked.append((at, count))
        return self._can


def test_what_is_written_goes_to_the_disk_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, some = Kernel(), growing.AT_ONCE
    monkeypatch.setattr(growing, "begin_writeback", kernel)
    path = tmp_path / "memory"
    writeback = Writeback(path)
    path.touch()
    writeback.written(some - 1)  # not worth a call
    writeback.written(2)
    wait_until(lambda: kernel.asked == [(0, some + 1)])
    writeback.written(some)
    wait_until(lambda: kernel.asked[1:] == [(some + 1, some)])
    writeback.end()
    wait_until(lambda: not running("writeback"))


@pytest.mark.parametrize("there", [False, True])
def test_a_file_system_that_cannot_is_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,  # noqa: FBT001 - a case
) -> None:
    kernel = Kernel(can=False)
    monkeypatch.setattr(growing, "begin_writeback", kernel)
    path = tmp_path / "memory"
    if there:
        path.touch()
    writeback = Writeback(path)
    writeback.written(growing.AT_ONCE)
    wait_until(lambda: not running("writeback"))
    writeback.written(growing.AT_ONCE)
    writeback.end()
    assert len(kernel.asked) == there


def test_the_kernel_has_it(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        assert growing.begin_writeback(file.fileno(), 0, 100)
    assert not growing.begin_writeback(-1, 0, 100)
