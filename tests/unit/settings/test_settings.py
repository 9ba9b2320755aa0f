from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from entourage.errors import ConfigError
from entourage.settings.command import split_command
from entourage.settings.load import load_settings, settings_from_toml
from entourage.settings.model import Settings
from entourage.settings.typed import fields_of

FILE = Path("/etc/entourage/entourage.toml")
DOCS = Path(__file__).parents[3] / "docs" / "settings.md"


def read(text: str) -> Settings:
    return settings_from_toml(text, FILE)


def fault(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.path == str(FILE)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert str(caught.value).isprintable()
    return caught.value


def test_an_empty_file_is_every_default() -> None:
    assert read("") == Settings()
    assert read("\n# nothing\n[migration]\n[tool]\n[ssh]\n[paths]\n") == Settings()


def test_values_with_units() -> None:
    settings = read(
        """
        [migration]
        max-blackout = "250ms"
        bandwidth = "100MiB/s"
        ports = [1, 65535]
        prepare-timeout = 5
        [[migration.convergence]]
        after = 0
        downtime-limit = "30ms"
        [[migration.convergence]]
        after = "2m"
        downtime-limit = 1.0
        give-up = true
        [tool]
        timeout = "1m30s"
        subtypes = { tpm = "-x" }
        """
    )
    assert settings.migration.max_blackout == 0.25
    assert settings.migration.bandwidth == 100 << 20
    assert settings.migration.ports == (1, 65535)
    assert settings.migration.prepare_timeout == 5
    assert [stage.after for stage in settings.migration.convergence] == [0, 120]
    assert settings.tool.timeout == 90
    assert settings.tool.subtypes == {"tpm": "-x"}


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[migration]\nmax-blakcout = 1", "migration.max-blakcout", "did you mean 'max-blackout'"),
        ("[migration]\nmax_blackout = 1", "migration.max_blackout", "did you mean 'max-blackout'"),
        ("[migration]\nzzz = 1", "migration.zzz", "allowed here: max-blackout, bandwidth"),
        ("max-blackout = 1", "max-blackout", "it belongs under [migration]"),
        ("[migratoin]", "migratoin", "did you mean 'migration'"),
        ("migration = 1", "migration", "expected a table, [migration], not a whole number, 1"),
        ("[[tool]]", "tool", "expected a table, [tool], not a list"),
        ("[migration]\nmax-blackout = 'x'", "migration.max-blackout", '"250ms"'),
        ("[migration]\nmax-blackout = 0", "migration.max-blackout", "more than 0 ms and at most"),
        ("[migration]\nmax-blackout = nan", "migration.max-blackout", "not a number, nan"),
        ("[migration]\nmax-blackout = inf", "migration.max-blackout", "at most 7 d"),
        ("[migration]\nmax-blackout = true", "migration.max-blackout", "not a boolean, true"),
        ("[migration]\nmax-blackout = 2000-01-01", "migration.max-blackout", "not a date"),
        ("[migration]\nbandwidth = 1.5", "migration.bandwidth", '"100MiB/s"'),
        ("[migration]\nbandwidth = -1", "migration.bandwidth", "at least 0 B/s"),
        (f"[migration]\nbandwidth = {9**99}", "migration.bandwidth", "can count"),
        ("[migration]\ntls = 'yes'", "migration.tls", "expected true or false, not a text, 'yes'"),
        ("[migration]\nports = 1", "migration.ports", "expected a list"),
        ("[migration]\nports = [1]", "migration.ports", "expected 2 values, not 1"),
        ("[migration]\nports = [0, 9]", "migration.ports[0]", "from 1 to 65535, not 0"),
        ("[migration]\nports = [9, 99999]", "migration.ports[1]", "not 99999"),
        ("[migration]\nports = [9, 1]", "migration.ports", "write ports = [1, 9]"),
        ("[migration]\nports = ['9', 1]", "migration.ports[0]", "expected a whole number"),
        ("[migration]\ndata-address = ''", "migration.data-address", "empty"),
        ("[qemu]\nuser = ' '", "qemu.user", "empty"),
        ("[qemu]\nuser = 107", "qemu.user", "expected a text"),
        ("[migration]\nconvergence = []", "migration.convergence", "at least 1"),
        (
            "[migration.convergence]\nafter = 1",
            "migration.convergence",
            "[[migration.convergence]]",
        ),
        (
            "[[migration.convergence]]\nafter = 1",
            "migration.convergence[0]",
            "'downtime-limit' must be given",
        ),
        (
            "[[migration.convergence]]\nafter = 5\ndowntime-limit = 1\n" * 2,
            "migration.convergence[1].after",
            "more than 5 s",
        ),
        ("[tool]\ncommand = ''", "tool.command", "leave the key out"),
        ("[tool]\nnet = ' '", "tool.net", "empty"),
        ('[tool]\ntpm = "a \'b"', "tool.tpm", "no closing quotation"),
        ("[tool]\ntpm = 'a > b'", "tool.tpm", "'>' for a shell"),
        ("[tool]\ntpm = 5", "tool.tpm", "expected a text in quotes, not a whole number, 5"),
        ('[tool]\ntpm = "a\\u0000"', "tool.tpm", "NUL"),
        ("[tool.subtypes]\ntmp = 'x'", "tool.subtypes.tmp", "did you mean 'tpm'"),
        ("[tool.subtypes]\ntpm = 1", "tool.subtypes.tpm", "expected a text"),
        ("[ssh]\noptions = '-v'", "ssh.options", "expected a list"),
        ("[ssh]\noptions = ['-v', 1]", "ssh.options[1]", "expected a text"),
        ("[ssh]\nremote-command = ''", "ssh.remote-command", "empty"),
        ("[paths]\nrun = 'run'", "paths.run", "absolute path"),
        ('"a\\u001b[31mb" = 1', "a\\x1b[31mb", "unknown key"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(text: str, key: str, said: str) -> None:
    error = fault(text)
    assert error.key == key
    assert said in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = ", "line 1, column 5: not valid TOML"),
        ("a = 1\n\n b ", "line 3, column 4: not valid TOML"),
        ("a = [1,", "line 1, column 8"),
        ("a = " + "9" * 5000, "thousands of digits"),
        ("a = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_toml_is_told_with_its_place(text: str, said: str) -> None:
    assert said in str(fault(text))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "settings"

    def message() -> str:
        with pytest.raises(ConfigError) as caught:
            load_settings(path, environ={})
        return str(caught.value)

    assert message() == f"{path}: cannot be read: no such file or directory"
    path.mkdir()
    assert message() == f"{path}: cannot be read: is a directory (name a file)"
    path.rmdir()
    path.write_bytes(b"a = 1\n\xc3\xa9 \xff")
    assert message() == f"{path}: line 2, column 3: not UTF-8 text (byte 0xff)"
    path.write_bytes(b"#" * (1 << 20) + b"#")
    assert "longer than 1 MiB" in message()
    path.write_bytes(b"\xef\xbb\xbf[tool]\ntimeout = 7")
    assert load_settings(path, environ={}).tool.timeout == 7


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.touch(mode=0)
    with pytest.raises(ConfigError, match="permission denied"):
        load_settings(path, environ={})


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, other, third = (tmp_path / name for name in ("default", "other", "third"))
    monkeypatch.setattr("entourage.settings.load.DEFAULT_PATH", default)
    assert load_settings(environ={}) == Settings()
    default.write_text("[tool]\ntimeout = 1")
    other.write_text("[tool]\ntimeout = 2")
    third.write_text("[tool]\ntimeout = 3")
    assert load_settings(environ={}).tool.timeout == 1
    assert load_settings(environ={"ENTOURAGE_CONFIG": str(other)}).tool.timeout == 2
    assert load_settings(third, environ={"ENTOURAGE_CONFIG": str(other)}).tool.timeout == 3
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(environ={"ENTOURAGE_CONFIG": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        ("a.toml", "[tool]\ntpm = '/t'", "/t"),
        ("a", "\n# c\n  [tool]\ntpm = '/t'", "/t"),
        ("a.sxp", "[tool]\ntpm = '/t'", "/t"),
        ("a.sxp", "(external-migration-tool /t)", "/t"),
        ("a.toml", "# c\n\n (external-migration-tool /t)", "/t"),
        ("a.sxp", "# c", None),
        ("a.sxp", "", None),
        ("a", "", None),
    ],
)
def test_the_format_is_seen(tmp_path: Path, name: str, text: str, tool: str | None) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert load_settings(path, environ={}).tool.tpm == tool


def test_paths_of_the_environment_go_first(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("[paths]\nstate = '/s'\nrun = '/r'\n")
    settings = load_settings(path, environ={"ENTOURAGE_RUN_DIR": "/x", "ENTOURAGE_LOG_DIR": "/l"})
    assert (settings.paths.state, settings.paths.run, settings.paths.log) == ("/s", "/x", "/l")
    with pytest.raises(ConfigError, match="environment: ENTOURAGE_STATE_DIR: expected an absolute"):
        load_settings(path, environ={"ENTOURAGE_STATE_DIR": "relative"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/a", ["/a"]),
        (' /a  -b \'c d\' "e\\"f" g\\ h\n', ["/a", "-b", "c d", 'e"f', "g h"]),
        ("/a ';' '$(touch x)' \"|\" \\>", ["/a", ";", "$(touch x)", "|", ">"]),
        ("/a x=y", ["/a", "x=y"]),
    ],
)
def test_commands_are_split_as_a_shell_would(text: str, words: list[str]) -> None:
    assert split_command(text) == words


@pytest.mark.parametrize(
    "text", ["", " ", "''", "a 'b", "a; b", "a $(b)", "a\nb", "X=1 a", "a\0", "a &"]
)
def test_what_needs_a_shell_is_no_command(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        split_command(text)


scalars: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = [
    *(table for table in fields_of(inspect.type_info(Settings))),
    *(
        key
        for field in fields_of(inspect.type_info(Settings)).values()
        for key in fields_of(field.type)
    ),
]
tables: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), tables, max_size=3), st.sampled_from(KEYS[:4]))
def test_any_tables_are_read_or_refused(raw: dict[str, Any], table: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for tried in (raw, {table: raw}):
            patch.setattr("entourage.settings.load.parse_toml", Mock(return_value=tried))
            try:
                assert isinstance(read(""), Settings)
            except ConfigError as error:
                assert str(error).isprintable()  # noqa: PT017 - either way is right


@settings(deadline=None)
@given(data=st.binary())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    try:
        load_settings(path, environ={})
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017


# The documentation cannot drift from the model: its tables, read as TOML, are the defaults.

ROW = re.compile(r"^\| `([a-z-]+)` \| (?:`(.+?)`|(not set|see below|must be given)) \| .+ \|$")
HEADING = re.compile(r"^#+ `\[+([a-z.]+)\]+`$")


def documented() -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {}
    table = ""
    for line in DOCS.read_text().splitlines():
        if heading := HEADING.match(line):
            table = heading[1]
            found[table] = {}
        elif table and (row := ROW.match(line)):
            found[table][row[1]] = row[2]
    return found


def test_every_key_is_documented_with_its_default() -> None:
    tables = documented()
    stage = tables.pop("migration.convergence")
    sections = fields_of(inspect.type_info(Settings))
    assert {name: list(rows) for name, rows in tables.items()} == {
        name: list(fields_of(field.type)) for name, field in sections.items()
    }
    lines: list[str] = []
    for name, rows in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value}" for key, value in rows.items() if value is not None]
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert read("\n".join([*lines, blocks[0]])) == Settings()
    assert tomllib.loads(blocks[0])["migration"]["convergence"][-1].keys() == stage.keys()
    assert read(blocks[1]) != Settings()
