"""XML that libvirt's parser and the one here cannot read in two ways.

What is checked here with ElementTree, libvirtd reads with libxml2: an attribute by its name,
whatever its namespace is (xmlGetProp), and an element's text with that of the elements in it
(XPath's ``string()``). XML in which that would make a difference is none that libvirt writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.parsers import expat

from entourage.errors import HypervisorError

_SEPARATOR = " "  # in no name of XML's


def check_one_way(text: str) -> None:
    """See that a text has only what every parser makes the same of.

    What the user has written into a domain's ``<metadata>`` is passed over: libvirt keeps it as it
    is.

    Raises:
        HypervisorError: It has something else, or is no XML.
    """
    if not text.lstrip(" \t\r\n").startswith("<"):  # a byte order mark, say
        raise _difference("it begins with something else")
    look = _Look()
    parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
    parser.StartElementHandler = look.start
    parser.EndElementHandler = look.end
    parser.CharacterDataHandler = look.text
    parser.CommentHandler = look.comment
    parser.StartCdataSectionHandler = look.cdata
    parser.ProcessingInstructionHandler = look.instruction
    parser.XmlDeclHandler = look.declaration
    parser.StartDoctypeDeclHandler = look.declaration
    try:
        parser.Parse(text, True)  # noqa: FBT003 - expat's
    except (expat.ExpatError, ValueError) as error:
        raise HypervisorError(f"the source's XML cannot be read: {error}") from error


class _Look:
    """What a parser has come by.

    Of each element that is open: its name, whether it has text, and whether it has elements.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._has_text: list[bool] = []
        self._has_children: list[bool] = []

    @property
    def _is_free(self) -> bool:
        """Within the metadata of a domain, which may be in a cookie of libvirt's."""
        top = 0 if self._names[:1] == ["domain"] else 1
        return self._names[top : top + 2] == ["domain", "metadata"]

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if self._names:
            self._has_children[-1] = True
        if not self._is_free:
            for key in attributes:
                if _SEPARATOR in key:
                    local = key.rpartition(_SEPARATOR)[2]
                    raise _difference(f"the attribute {local} of {name} has a namespace")
        self._names.append(name)
        self._has_text.append(False)
        self._has_children.append(False)

    def end(self, name: str) -> None:
        if self._has_text[-1] and self._has_children[-1] and not self._is_free:
            raise _difference(f"{name} has both text and elements")
        self._names.pop()
        self._has_text.pop()
        self._has_children.pop()

    def text(self, data: str) -> None:
        if data.strip():
            self._has_text[-1] = True

    def comment(self, _data: str) -> None:
        if not self._is_free:
            raise _difference("it has a comment")

    def cdata(self) -> None:
        if not self._is_free:
            raise _difference("it has a CDATA section")

    def instruction(self, _target: str, _data: str) -> None:
        if not self._is_free:
            raise _difference("it has a processing instruction")

    def declaration(self, *_said: object) -> None:
        raise _difference("it declares something")


def _difference(what: str) -> HypervisorError:
    return HypervisorError(
        f"the source's XML is none of libvirt's: {what}",
        remedy="see it with `virsh dumpxml`, and take that out with `virsh edit`",
    )
