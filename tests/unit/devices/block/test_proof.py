"""What has a file of the target's opened, and what does not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.devices.block import proof, storage
from entourage.devices.block.storage import Seen, Spot
from entourage.errors import DeviceError
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import NotAllowed
from entourage.settings.model import AgentSettings
from tests.unit.devices.test_harness import qcow2, raw, run


def allowed(directory: Path, *, believe: bool = False) -> Allowed:
    return Allowed(AgentSettings(image_directories=(str(directory),), believe_shared=believe))


async def test_a_digest_is_told_to_who_knows_it_and_to_nobody_else(tmp_path: Path) -> None:
    """Who was told of it could say in the next moment that he knows it."""
    image = raw(tmp_path / "victim.raw", data=b"secret" * 1000)
    by, right = allowed(tmp_path), await storage.digest(str(image))
    for guess in ("", "0" * 64, right[:-1], right.upper(), f"{right}\n"):
        assert await proof.digest(str(image), guess, by) == ""
        assert not by.is_proven(str(image), written=False)
    assert await proof.digest(str(image), right, by) == right
    assert by.is_proven(str(image), written=False)
    assert not by.is_proven(str(image))


async def test_what_may_not_be_named_is_refused_whatever_is_said_of_it(tmp_path: Path) -> None:
    by = allowed(tmp_path / "images")
    for guess in ("", "0" * 64):
        with pytest.raises(NotAllowed):
            await proof.digest(str(raw(tmp_path / "victim.raw")), guess, by)


async def test_what_is_put_in_its_place_meanwhile_is_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, other = raw(tmp_path / "a.raw", data=b"known"), raw(tmp_path / "b.raw", data=b"victim")
    by, right, digest = allowed(tmp_path), await storage.digest(str(image)), storage.digest

    async def swapped_meanwhile(path: str) -> str:
        found = await digest(path)
        other.rename(image)
        return found

    monkeypatch.setattr(storage, "digest", swapped_meanwhile)
    assert await proof.digest(str(image), right, by) == right
    assert not by.is_proven(str(image), written=False)


async def test_samples_of_a_file_are_told_only_where_they_would_count(tmp_path: Path) -> None:
    image = raw(tmp_path / "victim.raw", data=b"secret" * 1000)
    spot = Spot(path=str(image), samples=(0,))
    assert (await proof.look(spot, allowed(tmp_path))).samples == ()
    block = hashlib.sha256((b"secret" * 1000)[:4096]).hexdigest()
    assert (await proof.look(spot, allowed(tmp_path, believe=True))).samples == (block,)


async def test_a_relative_data_file_is_nobodys(tmp_path: Path) -> None:
    """QEMU looks for it in its own directory, which is not the image's."""
    decoy = raw(tmp_path / "data.raw")
    image = tmp_path / "a.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={decoy}", image, "1M")
    by = allowed(tmp_path)
    for path in (image, decoy):
        by.prove(str(path))
    await proof.check_chain(str(image), by)
    run("qemu-img", "amend", "-q", "-f", "qcow2", "-o", "data_file=data.raw", image)
    with pytest.raises(DeviceError, match="no absolute path"):
        await proof.check_chain(str(image), by)


async def test_what_lies_below_is_proven_to_be_only_read(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2")
    top = qcow2(tmp_path / "top.qcow2", backing=base)
    by = allowed(tmp_path)
    by.prove(str(top))
    with pytest.raises(DeviceError, match="not proven to be the source's"):
        await proof.check_chain(str(top), by)
    by.prove_content(str(base))
    await proof.check_chain(str(top), by)


async def test_a_file_is_opened_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filesystem that hangs keeps nobody else from being answered."""
    image = raw(tmp_path / "a.raw", data=b"known")
    by, right = allowed(tmp_path), await storage.digest(str(image))
    opened, real, threads = by.images.opened, by.images.real, set[threading.Thread]()

    @contextlib.contextmanager
    def seen(path: str, flags: int = os.O_RDONLY) -> Generator[int]:
        threads.add(threading.current_thread())
        with opened(path, flags) as handle:
            yield handle

    def resolved(path: str) -> str:
        threads.add(threading.current_thread())
        return real(path)

    monkeypatch.setattr(by.images, "opened", seen)
    monkeypatch.setattr(by.images, "real", resolved)
    assert await proof.digest(str(image), right, by) == right
    assert threads
    assert threading.main_thread() not in threads


async def test_what_is_put_in_its_place_while_it_is_looked_at_is_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nonce beside it says that both hosts see the file that was open then."""
    image, other = raw(tmp_path / "a.raw", data=b"mine"), raw(tmp_path / "b.raw", data=b"victim")
    by, look_now = allowed(tmp_path), storage.look_now
    swaps = False

    def swapped_meanwhile(spot: Spot, opens: str = "") -> Seen:
        found = look_now(spot, opens)
        if swaps:
            other.rename(image)
        return found

    monkeypatch.setattr(storage, "look_now", swapped_meanwhile)
    with storage.nonce_beside(str(image), "m1") as spot:
        assert (await proof.look(spot, by)).nonce
        assert by.is_proven(str(image))
        by, swaps = allowed(tmp_path), True
        assert (await proof.look(spot, by)).nonce
        assert not by.is_proven(str(image))
