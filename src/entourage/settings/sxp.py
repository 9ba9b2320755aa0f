r"""The S-expressions of xend-config.sxp, and the one setting in them that is ours.

The language is that of xend's reader (tools/python/xen/xend/sxp.py, 2005 to 2013): lists in round
brackets; atoms, which end at white space, ``#`` or one of ``(){}<>[];``; texts in single or double
quotes with ``\a \b \t \n \v \f \r \\ \' \"``, ``\ooo`` and ``\xhh``; comments from ``#`` to the
end of the line; control-D ends the file. ``;`` begins no comment. Two things differ: a backslash
before any other character stays in the text together with that character (xend lost the
character), and bytes above 127 may stand outside quotes. Of a key that is there twice the first
counts, as it did in xend.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TypeAlias

from entourage.errors import ConfigError
from entourage.settings.command import split_command
from entourage.settings.model import Settings, ToolSettings
from entourage.settings.textfile import place_of, printable, shown
from entourage.settings.typed import did_you_mean

TOOL_KEY = "external-migration-tool"
DEEPEST = 100
"""Lists within lists; xend's own files have four."""

_MOST_NOTES = 20

# Every key that any xend from 2005 to 2013 asked its configuration for; ``block-TYPE`` as well.
KNOWN_KEYS = frozenset(
    """
    bridge console-address console-limit console-port-base dbroot device-create-timeout
    device-destroy-timeout dom0-cpus dom0-min-mem enable-dom0-ballooning enable-dump
    external-migration-tool interface keymap lastboot logfile loglevel network-script
    pci-passthrough-strict-check pscsi-device-mask qemu-dm-logrotate-count
    resource-label-change-script total_available_memory vif-antispoof vif-bridge vif-script
    vnc-listen vnc-tls vnc-x509-cert-dir vnc-x509-verify vncpasswd xen-api-server
    xen-tcp-xmlrpc-server-address xen-tcp-xmlrpc-server-port xend-address xend-domains-path
    xend-event-port xend-http-server xend-port xend-relocation-address
    xend-relocation-hosts-allow xend-relocation-port xend-relocation-server
    xend-relocation-server-ssl-cert-file xend-relocation-server-ssl-key-file xend-relocation-ssl
    xend-relocation-ssl-port xend-relocation-ssl-server xend-relocation-tls xend-security-path
    xend-state-path xend-storage-path xend-tcp-xmlrpc-server xend-tcp-xmlrpc-server-address
    xend-tcp-xmlrpc-server-port xend-tcp-xmlrpc-server-ssl-cert-file
    xend-tcp-xmlrpc-server-ssl-key-file xend-udev-event-server xend-unix-path xend-unix-server
    xend-unix-xmlrpc-server xsm_module_name
    """.split()  # noqa: SIM905 - to be read
)

# Those that xend 3.0.4 brought, or one after it; its own file has each, in a comment at least.
_LATER_KEYS = re.compile(
    r"""\((xen-api-server | vnc-tls | vnc-x509-cert-dir | vnc-x509-verify | xend-udev-event-server
        | xend-relocation-tls | xend-relocation-ssl-server | xend-relocation-server-ssl-key-file
        | enable-dom0-ballooning | total_available_memory | resource-label-change-script
        | pci-passthrough-strict-check | pscsi-device-mask | xsm_module_name)[\s)]""",
    re.VERBOSE,
)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\n\v\f\r]+) | (?P<comment>\#[^\n]*) | (?P<open>\() | (?P<close>\))
      | (?P<quote>["']) | (?P<end>\x04) | (?P<bad>[\x00-\x1f\x7f])
      | (?P<atom>.[^ \t\n\v\f\r\#(){}<>\[\];]*)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x(?P<hex>[0-9a-fA-F]{0,2})|(?P<octal>[0-7]{1,3})|(?P<char>.))", re.DOTALL
)
_ESCAPES = dict(zip("abtnvfr\\'\"", "\a\b\t\n\v\f\r\\'\"", strict=True))
# A whole text after its opening quote, whatever is escaped in it.
_TEXT = {quote: re.compile(rf"((?:[^\\{quote}]++|\\.)*+){quote}", re.DOTALL) for quote in "\"'"}


@dataclasses.dataclass(slots=True)
class SList:
    """A list: atoms and texts (both are str, as in xend) and lists; ``at`` is its offset."""

    at: int
    items: list[Node] = dataclasses.field(default_factory=list["Node"])


Node: TypeAlias = str | SList


class SxpError(Exception):
    """The text is no S-expressions; ``offset`` says where."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def parse_sxp(text: str) -> list[Node]:
    """Read all S-expressions of a text. Takes time in proportion to it, and no recursion.

    Raises:
        SxpError: A bracket or a quote has no other half, or an escape or a character is wrong.
    """
    stack = [SList(0)]
    at = 0
    while match := _TOKEN.match(text, at):
        at = match.end()
        match match.lastgroup:
            case "open":
                _open(stack, match.start())
            case "close":
                if len(stack) == 1:
                    raise SxpError("')' closes nothing", match.start())
                stack.pop()
            case "quote":
                value, at = _quoted(text, match)
                stack[-1].items.append(value)
            case "atom":
                stack[-1].items.append(match[0])
            case "bad":
                raise SxpError(f"a control character, {ord(match[0])}", match.start())
            case "end":
                break
            case _:  # white space and comments
                pass
    if len(stack) > 1:
        raise SxpError("the list that '(' begins never ends", stack[-1].at)
    return stack[0].items


def _open(stack: list[SList], at: int) -> None:
    """Begin a list."""
    if len(stack) > DEEPEST:
        raise SxpError(f"lists are nested deeper than {DEEPEST}", at)
    new = SList(at)
    stack[-1].items.append(new)
    stack.append(new)


def _quoted(text: str, quote: re.Match[str]) -> tuple[str, int]:
    """The text that begins with a quote, and where it ends."""
    body = _TEXT[quote[0]].match(text, quote.end())
    if body is None:
        raise SxpError(f"the text that {quote[0]} begins never ends", quote.start())
    return _unescape(body[1], quote.end()), body.end()


def settings_from_sxp(text: str, path: Path) -> tuple[Settings, tuple[str, ...]]:
    """The settings in an xend-config.sxp: its ``external-migration-tool``.

    The tool is set for the class ``tpm`` alone: "the tool used for initiating virtual TPM
    migration". From xend 3.0.4 on (xen changeset 49f6907f34) the same key was for every class, and
    the tool was called at step 0 too; a file that has a key, if only in a comment, which came with
    that version or later, is of that age. xend's other keys are known and have no meaning here.

    Args:
        text: The file's text; bytes that are no UTF-8 as surrogates.
        path: The file's name, for messages.

    Returns:
        The settings, and notes for the user, each a sentence: unknown keys, keys given twice.

    Raises:
        ConfigError: It is no S-expressions, or the tool is no command; with line and column.
    """
    where = shown(path)
    try:
        forms = parse_sxp(text)
    except SxpError as error:
        raise ConfigError(str(error), path=where, key=place_of(text, error.offset)) from error
    notes = _Notes(text, where)
    tool: SList | None = None
    seen: dict[str, int] = {}
    for form in forms:
        key = form.items[0] if isinstance(form, SList) and form.items else ""
        if not isinstance(form, SList):
            notes.add(f"{form!r} stands outside any list and means nothing")
        elif not isinstance(key, str) or not key:
            notes.add("a list that begins with no key means nothing", form.at)
        elif key in seen:
            first = place_of(text, seen[key])
            notes.add(f"{printable(key)} is given again; {first} counts", form.at)
        else:
            seen[key] = form.at
            if key == TOOL_KEY:
                tool = form
            elif key not in KNOWN_KEYS and not key.startswith("block-"):
                hint = did_you_mean(key, KNOWN_KEYS)
                notes.add(f"unknown key {key!r}{hint}", form.at)
    command = _command(tool, notes) if tool else ""
    if not command:
        return Settings(), notes.all()
    if since := _LATER_KEYS.search(text):
        notes.add(
            f"{TOOL_KEY} is for every device, as in xend 3.0.4 to 4.2, for the file has {since[1]};"
            " as in xend 3.0.2 it is [tool] tpm in a TOML file"
        )
        return Settings(tool=ToolSettings(command=command, as_xend="3.0.4")), notes.all()
    return Settings(tool=ToolSettings(tpm=command)), notes.all()


class _Notes:
    """What is odd and stops nothing; of a file that is none, not a note for each word."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.where = where
        self._notes: list[str] = []
        self._more = 0

    def add(self, note: str, at: int | None = None) -> None:
        if len(self._notes) >= _MOST_NOTES:
            self._more += 1
            return
        place = "" if at is None else f"{place_of(self.text, at)}: "
        self._notes.append(f"{self.where}: {place}{note}")

    def all(self) -> tuple[str, ...]:
        more = [f"{self.where}: and {self._more} more of this kind"] if self._more else []
        return (*self._notes, *more)


def _command(form: SList, notes: _Notes) -> str:
    """The command in ``(external-migration-tool '…')``; empty where there is none."""
    place = place_of(notes.text, form.at)

    def wrong(message: str, remedy: str = "") -> ConfigError:
        return ConfigError(f"{TOOL_KEY}: {message}", path=notes.where, key=place, remedy=remedy)

    values = form.items[1:]
    command = values[0] if values else ""
    if not isinstance(command, str):
        raise wrong("expected a command, not a list", f"write ({TOOL_KEY} '/path/to/tool')")
    if len(values) > 1:
        notes.add(
            f"{TOOL_KEY} is {command!r} alone, as in xend;"
            " quote the whole command where its arguments are meant",
            form.at,
        )
    if not command.strip():
        return ""
    try:
        command.encode()
        split_command(command)
    except UnicodeEncodeError as error:
        raise wrong("the command is not UTF-8 text") from error
    except ValueError as error:
        raise wrong(printable(str(error))) from error
    return command


def _unescape(body: str, at: int) -> str:
    """Resolve the escapes of a text that begins at an offset."""
    if "\\" not in body:
        return body
    parts: list[str] = []
    done = 0
    for escape in _ESCAPE.finditer(body):
        parts.append(body[done : escape.start()])
        done = escape.end()
        if escape["char"] is not None:
            parts.append(_ESCAPES.get(escape["char"], escape[0]))
            continue
        digits, base = (escape["hex"], 16) if escape["octal"] is None else (escape["octal"], 8)
        code = int(digits, base) if digits else -1
        if not 0 <= code <= 0xFF:  # noqa: PLR2004 - a byte
            raise SxpError(f"the escape {escape[0]} is no byte", at + escape.start())
        parts.append(chr(code))
    return "".join((*parts, body[done:]))
