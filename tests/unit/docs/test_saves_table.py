"""The page that `make test-checkpoint` makes says what was seen, of each case once."""

from __future__ import annotations

from tests.e2e.saves_table import Row, page, title_of

OWN = Row("tests/e2e/test_save.py", "Twice in a row", "", passed=True, seconds=12.4)
KILLED = Row("tests/e2e/test_save.py", "Killed", "agent-a|b", passed=False, seconds=3)
BACK = Row("tests/e2e/test_checkpoint.py", "Back", "", passed=True, seconds=4)
FOREIGN = Row("tests/e2e/libvirt/test_save.py", "A paused guest", "", passed=True, seconds=5)


def test_what_was_seen() -> None:
    text = page([FOREIGN, OWN, BACK, KILLED])
    assert "\n3 of 4 cases passed.\n" in text
    own, checkpoints, libvirts = text.split("\n## ")[1:]
    assert own.startswith("Entourage's own machines\n")
    assert own.splitlines()[4:] == [
        "| Twice in a row | as it must be | 12 |",
        "| Killed: agent-a\\|b | **not as it must be** | 3 |",
    ]
    assert checkpoints.startswith("Checkpoints\n")
    assert libvirts.startswith("libvirt's domains\n")


def test_what_a_test_is_about() -> None:
    assert title_of("test_no_room", None) == "No room"
    assert title_of("test_killed[agent]", None) == "Killed"
    text = """A disk that fills up:
    the guest goes on.

    More of it.
    """
    assert title_of("test_no_room", text) == "A disk that fills up: the guest goes on"
