"""The recording of the demo, and README's excerpt of it."""

from __future__ import annotations

from lab.record import COMMAND, README, RECORDING, excerpt, in_readme


def test_readme_shows_what_was_recorded() -> None:
    lines = RECORDING.read_text(encoding="utf-8").splitlines()
    shown = excerpt(lines)
    readme = README.read_text(encoding="utf-8")
    assert in_readme(readme, shown) == readme, "make demo-record"
    assert any("what will be done" in line for line in shown)


def test_the_excerpt_is_the_plan_the_steps_and_the_end() -> None:
    recorded = [
        "── moved live", COMMAND, "    0.797  web1: a -> b", "device   what will be done",
        "────", "block/d  is copied", "", "    3.182  the guest runs on b", "device   TEST",
        "────", "block/d  14 ms", "", "Blackout 178 ms", "a  TRANSFER  ██", "",
        "web1 runs on b, moved in 3.29 s", "Seen from outside:",
    ]  # fmt: skip
    shown = excerpt(recorded)
    assert shown == [
        COMMAND, "device   what will be done", "────", "block/d  is copied", "",
        "device   TEST", "────", "block/d  14 ms", "", "web1 runs on b, moved in 3.29 s",
    ]  # fmt: skip
    readme = f"# E\n```\n{COMMAND}\nold\n```\nrest\n```\nmore\n```\n"
    assert in_readme(readme, shown).count("```") == 4
    assert "old" not in in_readme(readme, shown)
