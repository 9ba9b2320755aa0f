"""Files that a peer names."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.hosts.beneath import Beneath, NotAllowed, through


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images/pool").mkdir(parents=True)
    (tmp_path / "images/pool/web1.raw").write_text("disk")
    (tmp_path / "shadow").write_text("secret")
    return tmp_path / "images"


def beneath(*directories: Path) -> Beneath:
    return Beneath([str(directory) for directory in directories], "agent.image-directories")


def test_a_file_beneath_is_resolved(images: Path) -> None:
    allowed = beneath(images)
    assert allowed.real(f"{images}/pool/web1.raw") == f"{images}/pool/web1.raw"
    assert allowed.real(f"{images}/pool/new.raw") == f"{images}/pool/new.raw"
    with allowed.parent(f"{images}/pool/web1.raw") as directory:
        assert (directory / "web1.raw").read_text() == "disk"
    assert not directory.exists()


def test_links_that_stay_beneath_are_followed(images: Path) -> None:
    (images / "link").symlink_to("pool")
    (images / "disk").symlink_to(images / "pool/web1.raw")
    assert beneath(images).real(f"{images}/link/web1.raw") == f"{images}/pool/web1.raw"
    assert beneath(images).real(f"{images}/disk") == f"{images}/pool/web1.raw"


def test_the_allowed_directory_may_itself_be_a_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "srv").symlink_to("images")
    allowed = beneath(tmp_path / "srv")
    assert allowed.real(f"{tmp_path}/srv/pool/web1.raw") == f"{images}/pool/web1.raw"


@pytest.mark.parametrize(
    "path",
    [
        *("{up}/shadow", "{images}/../shadow", "{images}", "{images}/", "/", "", "web1.raw"),
        *("{images}/away/shadow", "{images}/out", "{images}x/web1", "{images}/pool/../../shadow"),
        *("{images}/away/x", "/proc/self/root/etc/shadow", "{images}/away/shadow/x"),
    ],
)
def test_nothing_else_is(images: Path, tmp_path: Path, path: str) -> None:
    (images / "away").symlink_to("..")
    (images / "out").symlink_to(tmp_path / "shadow")
    meant = path.format(up=tmp_path, images=images)
    with pytest.raises(NotAllowed) as refused:
        beneath(images).real(meant)
    assert "agent.image-directories" in refused.value.remedy or "no plain" in str(refused.value)


def test_nothing_is_allowed_where_no_directory_is(images: Path) -> None:
    with pytest.raises(NotAllowed, match="none"):
        beneath().real(f"{images}/pool/web1.raw")


def test_a_directory_that_is_not_there_is_told_as_that(images: Path) -> None:
    with pytest.raises(FileNotFoundError), beneath(images).parent(f"{images}/none/disk"):
        pass
    with pytest.raises(FileNotFoundError):
        beneath(images / "none").real(f"{images}/none/disk")


def test_a_directory_swapped_for_a_link_meanwhile_gains_nothing(
    images: Path, tmp_path: Path
) -> None:
    """What was opened is what is used, whatever its name means now."""
    with beneath(images).parent(f"{images}/pool/new.raw") as directory:
        (images / "pool").rename(images / "moved")
        (images / "pool").symlink_to(tmp_path)
        (directory / "new.raw").write_text("disk")
    assert (images / "moved/new.raw").exists()
    assert not (tmp_path / "new.raw").exists()


def test_a_file_is_opened_as_it_was_found(images: Path, tmp_path: Path) -> None:
    path = images / "pool/web1.raw"
    with beneath(images).opened(str(path)) as handle:
        path.unlink()
        path.symlink_to(tmp_path / "shadow")
        assert Path(through(handle)).read_text() == "disk"
    with pytest.raises(NotAllowed), beneath(images).opened(str(path)):
        pass


def test_a_link_that_is_swapped_in_is_not_followed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, path = beneath(images), images / "pool/web1.raw"
    real = allowed.real(str(path))

    def before_the_swap(_path: str) -> str:
        return real

    monkeypatch.setattr(allowed, "real", before_the_swap)
    path.unlink()
    path.symlink_to(tmp_path / "shadow")
    with pytest.raises(OSError, match="symbolic links"), allowed.opened(str(path)):
        pass
    (images / "pool").rename(images / "old")
    (images / "pool").symlink_to(tmp_path)
    (tmp_path / "web1.raw").write_text("another")
    with pytest.raises(NotAllowed), allowed.opened(str(path)):
        pass


def test_a_directory_of_anyones_is_refused(images: Path) -> None:
    for mode, refused in ((0o777, True), (0o757, True), (0o1777, False), (0o775, False)):
        for directory in (images, images / "pool"):
            directory.chmod(mode)
            try:
                if refused:
                    with pytest.raises(NotAllowed, match=f"what is in {directory} ") as caught:
                        beneath(images).real(f"{images}/pool/web1.raw")
                    assert caught.value.remedy.startswith(f"chmod o-w {directory}; or")
                    assert "agent.anyones-directories" in caught.value.remedy
                else:
                    beneath(images).real(f"{images}/pool/web1.raw")
            finally:
                directory.chmod(0o755)


@pytest.mark.parametrize("by_link", [False, True])
def test_a_directory_of_anyones_that_is_accepted_is_not(
    images: Path, tmp_path: Path, *, by_link: bool
) -> None:
    """Also what is beneath it, and none beside it."""
    accepted, path = images / "nas", images / "nas" / "pool"
    path.mkdir(parents=True)
    (tmp_path / "link").symlink_to(accepted)
    named = tmp_path / "link" if by_link else accepted
    allowed = Beneath([str(images)], "agent.image-directories", [str(named)])
    for directory in (accepted, path, images / "pool"):
        directory.chmod(0o777)
    assert allowed.real(f"{path}/web1.raw") == f"{path}/web1.raw"
    with pytest.raises(NotAllowed, match="every user may replace"):
        allowed.real(f"{images}/pool/web1.raw")
    images.chmod(0o777)
    with pytest.raises(NotAllowed, match=f"what is in {images} "):
        allowed.real(f"{path}/web1.raw")
