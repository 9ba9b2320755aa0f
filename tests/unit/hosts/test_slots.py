"""No more at once than there are slots; each is free again when its holder has gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from entourage.hosts.slots import slot


def test_no_more_than_there_are(tmp_path: Path) -> None:
    links = tmp_path / "run" / "links"
    with slot(links, "a", 2) as first, slot(links, "a", 2) as second:
        assert (first, second) == (True, True)
        with slot(links, "a", 2) as third, slot(links, "../b", 1) as others:
            assert (third, others) == (False, True)
    with slot(links, "a", 1) as again:
        assert again
    assert {path.parent for path in tmp_path.rglob("*.0")} == {links}
    assert links.parent.stat().st_mode & 0o777 == 0o700


def test_one_that_is_killed_holds_none(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from entourage.hosts.slots import slot\n"
        f"with slot(Path({str(tmp_path / 'links')!r}), 'a', 1) as free:\n"
        "    print(free, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with slot(tmp_path / "links", "a", 1) as free:
            assert not free
        holder.kill()
        holder.wait()
    with slot(tmp_path / "links", "a", 1) as free:
        assert free
