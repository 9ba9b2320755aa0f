from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entourage.devices.tool import process
from entourage.devices.tool.controller import check
from entourage.devices.tool.output import Output
from entourage.errors import DeviceError
from entourage.steps import Step
from tests.unit.devices.tool.harness import call, failure, gone, tool

# What a shell, a terminal or a careless parser would trip over.
HOSTILE = "web 'x' \"y\" $(touch pwned) `touch pwned`; touch pwned & \\ *\n-recover \udcff é"


# What it is called with


def test_the_arguments_are_those_of_2006() -> None:
    assert call("/t").argv == [
        "/t", "-type", "vtpm", "-step", "2", "-host", "b", "-domname", "web1",
    ]  # fmt: skip
    assert call("/t -v 'a b'", subtype="x", recover=True, step=Step.TEST).argv == [
        "/t", "-v", "a b", "-type", "vtpm", "-step", "0", "-host", "b", "-domname", "web1",
        "-subtype", "x", "-recover",
    ]  # fmt: skip


@pytest.mark.parametrize("armed", [False, True])
async def test_hostile_names_pass_through_unharmed(tmp_path: Path, *, armed: bool) -> None:
    command = tool(tmp_path, 'cd "$HERE"; printf "%s\\0" "$@" >args; cat >stdin; env -0 >env')
    asked = call(command, domain=HOSTILE, target=f"-{HOSTILE}", device=HOSTILE, subtype=HOSTILE)
    process = asked.start(armed=True) if armed else None
    await asked.run(10, armed=process)
    given = (tmp_path / "args").read_bytes().split(b"\0")
    hostile = os.fsencode(HOSTILE)
    assert given == [
        b"-type", b"vtpm", b"-step", b"2", b"-host", b"-" + hostile, b"-domname", hostile,
        b"-subtype", hostile, b"",
    ]  # fmt: skip
    assert (tmp_path / "stdin").read_bytes() == b""
    environment = (tmp_path / "env").read_bytes().split(b"\0")
    assert b"ENTOURAGE_DEVICE=" + hostile in environment
    for line in (
        "ENTOURAGE_MIGRATION=m1",
        "ENTOURAGE_SOURCE=a",
        "ENTOURAGE_STEP=2",
        "ENTOURAGE_RECOVER=",
        "ENTOURAGE_DOMAIN_UUID=u1",
        f"PATH={os.environ['PATH']}",
    ):
        assert line.encode() in environment
    assert not list(tmp_path.glob("**/pwned"))
    assert not Path("pwned").exists()


@settings(max_examples=30, deadline=None)
@given(name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_name_passes_through(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    output = tmp_path_factory.getbasetemp() / "args"
    script = 'out=$1; shift; printf "%s\\0" "$@" >"$out"'

    async def run() -> None:
        asked = call(f"/bin/sh -c '{script}' sh {output}", domain=name)
        await asked.run(10, armed=asked.start(armed=True))

    asyncio.run(run())
    assert name.encode() == output.read_bytes().split(b"\0")[7]


async def test_it_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    lines: list[str] = []
    for armed in (False, True):
        asked = call(tool(tmp_path, "ps -o sid= -p $$; echo $$; ps -o pgid= -p $$"))
        process = asked.start(lines.append, armed=True) if armed else None
        await asked.run(10, lines.append, process)
    assert lines[0] == lines[1] == lines[2]
    assert lines[3] == lines[4] == lines[5]
    assert lines[0] != str(os.getsid(0))


# What counts as failure


async def test_a_tool_that_does_well(tmp_path: Path) -> None:
    lines: list[str] = []
    command = tool(
        tmp_path, "echo one; printf '\\033[31mtwo\\tthree\\n\\n'; echo 'Error: no' >&2; printf four"
    )
    await call(command).run(10, lines.append)
    stdout = [line for line in lines if line != "Error: no"]
    assert stdout == ["one", r"\x1b[31mtwo three", "", "four"]
    assert "Error: no" in lines


@pytest.mark.parametrize(
    "body",
    [
        "echo Error: no room",
        "echo before; echo 'Error: no room'; echo after",
        "printf 'Error: no room'",
        "printf Err; printf 'or: no room\\n'",
        "yes | head -c 1000000; echo Error: no room; yes | head -c 1000000",
        "head -c 100000 /dev/zero | tr '\\0' x; echo; echo Error: no room; exit 3",
    ],
)
async def test_error_in_a_line_of_stdout(tmp_path: Path, body: str) -> None:
    error = await failure(tool(tmp_path, body))
    assert "failed: it said: Error: no room, in step 2 (TRANSFER)" in error.message
    assert "-type vtpm -step 2 -host b -domname web1" in error.remedy


async def test_error_within_a_line_without_end(tmp_path: Path) -> None:
    error = await failure(
        tool(tmp_path, "head -c 65533 /dev/zero | tr '\\0' x; printf 'Error: no room'")
    )
    assert "Error: no room" in error.message or "xError" in error.message


@pytest.mark.parametrize("first", [0, 4096, 65533, 65536, 65540])
def test_error_is_shown_however_the_line_arrives(first: int) -> None:
    line = b"x" * 65533 + b"Error: no room"
    output = Output(None, lambda: None)
    for part in (line[:first], line[first:]):
        output.feed(part, stdout=True)
    output.finish()
    assert "Error: no" in output.error


async def test_exit_status_and_last_words(tmp_path: Path) -> None:
    error = await failure(
        tool(tmp_path, "echo one; echo two; echo three >&2; printf 'fo\\033ur'; exit 3")
    )
    assert "it ended with status 3; its last words: " in error.message
    for word in ("two", "three", r"fo\x1bur"):
        assert word in error.message


async def test_ended_by_a_signal(tmp_path: Path) -> None:
    assert "it was ended by SIGSEGV" in (await failure(tool(tmp_path, "kill -SEGV $$"))).message
    assert "it was ended by signal 40" in (await failure(tool(tmp_path, "kill -40 $$"))).message


async def test_the_recovery_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"in recovery from step 1 \(PREPARE\)"):
        await call(tool(tmp_path, "exit 1"), step=Step.PREPARE, recover=True).run(10)


async def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    command = tool(
        tmp_path, 'sleep 1000 & echo $! >"$HERE/child"; echo $$ >"$HERE/pid"; echo hello; wait'
    )
    begin = time.monotonic()
    error = await failure(command, limit=0.5)
    assert time.monotonic() - begin < 2
    assert "it did not end within 0.5 s, and was ended; its last words: hello" in error.message
    assert gone(int((tmp_path / "pid").read_text()))
    assert gone(int((tmp_path / "child").read_text()))


async def test_a_tool_that_ignores_sigterm_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.1)
    command = tool(
        tmp_path,
        "trap '' TERM HUP INT\n(while :; do sleep 1000; done) & echo $! >\"$HERE/child\"\n"
        'echo $$ >"$HERE/pid"\nwhile :; do sleep 1000; done',
    )
    begin = time.monotonic()
    await failure(command, limit=0.5)
    assert time.monotonic() - begin < 2
    assert gone(int((tmp_path / "pid").read_text()))
    assert gone(int((tmp_path / "child").read_text()))


async def test_a_tool_may_end_in_order_at_sigterm(tmp_path: Path) -> None:
    command = tool(tmp_path, "trap 'echo bye; exit 0' TERM\nwhile :; do sleep 0.01; done")
    error = await failure(command, limit=0.5)
    assert "did not end within 0.5 s" in error.message
    assert "bye" in error.message


async def test_after_error_there_is_little_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LAST_WORDS", 0.1)
    begin = time.monotonic()
    error = await failure(tool(tmp_path, "echo Error: lost; exec sleep 1000"), limit=100)
    assert time.monotonic() - begin < 2
    assert "it said: Error: lost" in error.message


# What cannot be run


async def test_what_cannot_be_started(tmp_path: Path) -> None:
    assert "cannot be started: No such file" in (await failure("/nowhere/tool")).message
    assert "cannot be started: Permission denied" in (await failure(str(tmp_path))).message
    error = await failure("a 'b")
    assert "cannot be started" in error.message
    assert error.remedy == "correct the setting"
    with pytest.raises(DeviceError, match="null byte"):
        await call(tool(tmp_path, "exit 0"), domain="a\0b").run(1)


def test_check(tmp_path: Path) -> None:
    assert check(tool(tmp_path, "exit 0")) is None
    assert check("sh -c 'exit 0'") is None
    assert check("/bin/sh") is None
    assert check("/nowhere/tool -x") == "/nowhere/tool does not exist"
    assert check("no-such-tool-anywhere") == "no-such-tool-anywhere is not on PATH"
    assert check(str(tmp_path)) == f"{tmp_path} is no program that may be executed"
    assert "cannot be split" in (check("a 'b") or "")
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    assert check(str(plain)) == f"{plain} is no program that may be executed"
    plain.write_text("echo no first line\n")
    plain.chmod(0o755)
    assert "without a first line as #!/bin/sh" in (check(str(plain)) or "")


def test_a_tool_that_is_written_for_another_shell(tmp_path: Path) -> None:
    """As xend's own of 2006: what its first line says cannot read it. It is not run."""
    script = tmp_path / "tool"
    script.write_text('#!/bin/sh\ntouch "$0.ran"\nfunction migrate() {\n  a=(1 2)\n}\n')
    script.chmod(0o755)
    problem = check(str(script)) or ""
    assert "/bin/sh cannot read it" in problem
    assert f"set /bin/bash {script}" in problem
    assert check(f"/bin/bash {script}") is None
    script.write_text("#!/bin/bash\na=(1 2)\n")
    assert check(str(script)) is None
    assert not (tmp_path / "tool.ran").exists()
