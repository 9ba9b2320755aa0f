"""Copying a raw disk under a guest that writes: all, then only what has changed, and the proof."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.xen.copying import BLOCK, Sending, receive

SIZE = 3 * BLOCK + 512


class Pair:
    """A disk on its way from one file to another, over two pipes."""

    def __init__(self, here: Path, there: Path, *, blank: bool = True) -> None:
        incoming, out = os.pipe()
        back, answers = os.pipe()
        self.problem: Exception | None = None
        self.ends = [out, back]
        self.sending = Sending(str(here), out, back, blank=blank)

        def take() -> None:
            try:
                receive(str(there), incoming, answers)
            except (HypervisorError, OSError) as error:
                self.problem = error
            finally:
                os.close(incoming)
                os.close(answers)

        self._thread = threading.Thread(target=take)
        self._thread.start()

    def close(self) -> None:
        for end in self.ends:
            os.close(end)
        self.ends.clear()
        self._thread.join()
        self.sending.close()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(BLOCK) + bytes(BLOCK) + os.urandom(BLOCK + 512))
    with there.open("wb") as file:
        file.truncate(SIZE)
    return here, there


@pytest.fixture
def pair(files: tuple[Path, Path]) -> Generator[Pair]:
    pair = Pair(*files)
    yield pair
    pair.close()


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_the_copy_is_the_same_and_zeros_are_not_sent(pair: Pair, files: tuple[Path, Path]) -> None:
    assert pair.sending.send_changes() == 2 * BLOCK + 512
    pair.sending.verify()
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_second_pass_sends_what_has_changed(pair: Pair, files: tuple[Path, Path]) -> None:
    pair.sending.send_changes()
    change(files[0], BLOCK + 7, b"new")
    change(files[0], 0, bytes(BLOCK))
    assert pair.sending.send_changes() == BLOCK  # the other block is zeros now
    assert pair.sending.send_changes() == 0
    pair.sending.verify()
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_copy_that_reads_back_otherwise_is_found_out(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.sending.send_changes()
    pair.sending.verify()
    # What has been sent is remembered otherwise than what the target has read back.
    monkeypatch.setattr(pair.sending, "_digests", [os.urandom(32) for _ in range(4)])
    with pytest.raises(HypervisorError, match="not what was sent"):
        pair.sending.verify()


def test_what_is_not_blank_is_written_over(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(os.urandom(SIZE))
    pair = Pair(*files, blank=False)
    pair.sending.send_changes()
    pair.sending.verify()
    pair.close()
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_source_that_dies_within_a_block_is_an_error(files: tuple[Path, Path]) -> None:
    pair = Pair(*files)
    os.write(pair.ends[0], b"B" + bytes(8) + (BLOCK).to_bytes(4, "big") + b"half")
    pair.close()
    assert isinstance(pair.problem, OSError)


def test_nothing_is_written_outside_the_disk(files: tuple[Path, Path]) -> None:
    pair = Pair(*files)
    os.write(pair.ends[0], b"Z" + (64 * BLOCK).to_bytes(8, "big") + (BLOCK).to_bytes(4, "big"))
    pair.close()
    assert isinstance(pair.problem, HypervisorError)
    assert files[1].stat().st_size == SIZE
