from __future__ import annotations

import itertools
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entourage.errors import ConfigError
from entourage.settings.load import load_settings
from entourage.settings.model import Settings, ToolSettings
from entourage.settings.sxp import (
    KNOWN_KEYS,
    TOOL_KEY,
    Node,
    SList,
    SxpError,
    parse_sxp,
    settings_from_sxp,
)

DATA = Path(__file__).parent / "data"
FILE = Path("/etc/xen/xend-config.sxp")


def plain(nodes: list[Node]) -> list[object]:
    return [plain(node.items) if isinstance(node, SList) else node for node in nodes]


LANGUAGE: list[tuple[str, list[object]]] = [
    ("", []),
    ("# only a comment", []),
    ("()", [[]]),
    ("(a b)", [["a", "b"]]),
    ("(a (b (c)) d)", [["a", ["b", ["c"]], "d"]]),
    ("(a)(b)", [["a"], ["b"]]),
    ("(a '')", [["a", ""]]),
    ("(a # comment )\n b)", [["a", "b"]]),
    ("(a#comment\n)", [["a"]]),
    ("(a '# no comment')", [["a", "# no comment"]]),
    ('(a "it\'s" \'say "x"\')', [["a", "it's", 'say "x"']]),
    ("(a it's)", [["a", "it's"]]),
    ("(a '1''2')", [["a", "1", "2"]]),
    ("(a 'two\nlines')", [["a", "two\nlines"]]),
    (r"(a '\a\b\t\n\v\f\r\\\'\"')", [["a", "\a\b\t\n\v\f\r\\'\""]]),
    (r"(a '\x41\x4a\101\60\7z')", [["a", "AJA0\x07z"]]),
    (r"(a '^.*\.example\.org$')", [["a", r"^.*\.example\.org$"]]),
    (r"(a \n)", [["a", r"\n"]]),
    ("(xend-address a.b:80/[x])", [["xend-address", "a.b:80/", "[x", "]"]]),
    (";(a b)", [";", ["a", "b"]]),
    ("(a b)\x04((((", [["a", "b"]]),
    ("(a é 'ü')", [["a", "é", "ü"]]),
]


@pytest.mark.parametrize(("text", "nodes"), LANGUAGE)
def test_the_language_is_xends(text: str, nodes: list[object]) -> None:
    assert plain(parse_sxp(text)) == nodes


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("(a\n(b c)\n", "line 1, column 1", "never ends"),
        ("(a)\n)", "line 2, column 1", "closes nothing"),
        ("(a\n  'b)\n(c)", "line 2, column 3", "never ends"),
        (r"(a '\777')", "line 1, column 5", "no byte"),
        (r"(a '\xg')", "line 1, column 5", "no byte"),
        ("(a \x01)", "line 1, column 4", "control character, 1"),
        ("(" * 500_000, "line 1, column 101", "nested deeper"),
        ("(a '" + "x\\" * 100_000, "line 1, column 4", "never ends"),
    ],
)
def test_what_is_no_sxp_is_told_with_its_place(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings_from_sxp(text, FILE)
    assert str(caught.value).startswith(f"{FILE}: {place}: ")
    assert caught.value.path == str(FILE)


def test_the_tool_of_2006_is_obeyed_for_tpms_and_nothing_else() -> None:
    notes: list[str] = []
    settings = load_settings(DATA / "xend-config-2006.sxp", environ={}, warn=notes.append)
    assert settings.tool.tpm == "/etc/xen/scripts/external-device-migrate"
    assert settings.tool.command is None
    assert settings.tool.block is None
    assert settings.migration == Settings().migration
    assert notes == []


def test_an_empty_tool_is_none() -> None:
    notes: list[str] = []
    settings = load_settings(DATA / "xend-config-2010.sxp", environ={}, warn=notes.append)
    assert settings == Settings()
    assert notes == []
    for text in ("", "(external-migration-tool)", "(external-migration-tool ' ')"):
        assert settings_from_sxp(text, FILE) == (Settings(), ())


def test_the_first_of_a_key_counts_as_in_xend() -> None:
    settings, notes = settings_from_sxp(
        "(external-migration-tool '/a -v')\n(external-migration-tool /b)", FILE
    )
    assert settings.tool.tpm == "/a -v"
    (note,) = notes
    assert note == (
        f"{FILE}: line 2, column 1: external-migration-tool is given again; line 1, column 1 counts"
    )


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("(xend-prot 8000)", "unknown key 'xend-prot'; did you mean 'xend-port'"),
        ("(\u202ex)", r"unknown key '\u202ex'"),
        ("((a))", "begins with no key"),
        ("()", "begins with no key"),
        ("stray", "'stray' stands outside"),
        ("(external-migration-tool /a -v)", "'/a' alone, as in xend; quote the whole command"),
    ],
)
def test_what_is_odd_is_noted(text: str, note: str) -> None:
    _, notes = settings_from_sxp(text, FILE)
    assert len(notes) == 1
    assert note in notes[0]
    assert notes[0].isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(external-migration-tool (a b))", "expected a command, not a list"),
        ("(external-migration-tool 'a;b')", "';' for a shell"),
        ('(external-migration-tool "a \'b")', "cannot be split"),
        ("(external-migration-tool '\udcff')", "not UTF-8"),
    ],
)
def test_what_is_no_command_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings_from_sxp(text, FILE)
    assert "line 1, column 1: external-migration-tool: " in str(caught.value)


def test_a_file_that_is_none_gives_not_a_note_for_each_word() -> None:
    _, notes = settings_from_sxp("word " * 100_000, FILE)
    assert len(notes) < 30
    assert any("more of this kind" in note for note in notes)


def test_every_key_of_xend_is_known() -> None:
    text = "".join(f"({key} x)" for key in (KNOWN_KEYS - {TOOL_KEY}) | {"block-drbd"})
    assert settings_from_sxp(text, FILE)[1] == ()


@pytest.mark.parametrize(
    "since",
    [
        "(xen-api-server ((9363 localhost)))",
        "#(xen-api-server ((unix none)))",
        "# of 4.1: (xsm_module_name flask)",
    ],
)
def test_a_file_of_a_later_age_means_every_device(since: str) -> None:
    text = f"(xend-relocation-server no)\n{since}\n({TOOL_KEY} '/t -x')\n"
    found, (note,) = settings_from_sxp(text, FILE)
    assert found.tool == ToolSettings(command="/t -x", as_xend="3.0.4")
    assert found.tool.calls_at_test
    assert [kind for kind in ("tpm", "net") if found.tool.error_counts(kind)] == ["tpm"]
    assert "for every device, as in xend 3.0.4" in note


def test_a_file_of_2006_means_tpms() -> None:
    """The configuration that Xen 3.0.2 came with has none of the later keys."""
    text = f"#(xend-http-server no)\n(xend-unix-server yes)\n({TOOL_KEY} /t) # xen-api-server\n"
    found, notes = settings_from_sxp(text, FILE)
    assert (found.tool, notes) == (ToolSettings(tpm="/t"), ())
    assert not found.tool.calls_at_test
    assert found.tool.error_counts("net")


sxp_like = st.lists(
    st.sampled_from(["(", ")", "'", '"', "\\", "x", "7", "#", "\n", " ", ";", "\x04", "\x00", "é"])
    | st.sampled_from(["external-migration-tool", "(external-migration-tool ", "\udcff"])
).map("".join)


@settings(deadline=None)
@given(st.text() | sxp_like)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        settings, notes = settings_from_sxp(text, FILE)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - either way is right
    else:
        assert isinstance(settings, Settings)
        assert all(note.isprintable() for note in notes)


@settings(deadline=None)
@given(data=st.binary())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.sxp"
    path.write_bytes(data)
    notes: list[str] = []
    try:
        load_settings(path, environ={}, warn=notes.append)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017
    assert all(note.isprintable() for note in notes)


atoms = st.text(string.ascii_letters + string.digits + "-_./:", min_size=1)
texts = st.text(st.characters(exclude_categories=["Cs"]))
trees = st.recursive(atoms | texts, lambda tree: st.lists(tree, max_size=5), max_leaves=10)


def written(tree: str | list[object], quotes: itertools.cycle[str]) -> str:
    if isinstance(tree, list):
        return f"({' '.join(written(item, quotes) for item in tree)})"  # type: ignore[arg-type]
    quote = next(quotes)
    escaped = tree.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


@settings(deadline=None)
@given(st.lists(trees, max_size=5))
def test_what_is_written_is_read(trees: list[str | list[object]]) -> None:
    quotes = itertools.cycle("'\"")
    text = "# comment\n".join(f"{written(tree, quotes)} " for tree in trees)
    assert plain(parse_sxp(text)) == trees


def test_an_error_has_an_offset() -> None:
    with pytest.raises(SxpError) as caught:
        parse_sxp("ab )")
    assert caught.value.offset == 3
