"""Commands in settings: split into words as a shell would, and run without one."""

from __future__ import annotations

import re
import shlex

_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_ORDERS = re.compile(r"[();<>|&\n]")


def split_command(text: str) -> list[str]:
    """Split a command as a shell would.

    Args:
        text: As ``/usr/local/bin/tool -v 'two words'``.

    Returns:
        The program and its arguments, at least one word.

    Raises:
        ValueError: It is empty, a quote is open, or it holds what only a shell could obey
            (``;``, ``|``, ``>`` … outside quotes, a variable set before the program). The message
            is a sentence for the user.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be split into words: {str(error).lower()}") from error
    if "\0" in text:
        raise ValueError(f"{text!r} holds a NUL character")
    if not words or not words[0]:
        raise ValueError("the command is empty")
    order = _ORDERS.search(_QUOTED.sub("", text.strip()))
    if order:
        raise ValueError(
            f"{text!r} has {order[0]!r} for a shell, and none is used: quote it, or write a script"
        )
    if re.match(r"[A-Za-z_]\w*=", words[0]):
        raise ValueError(f"{text!r} sets a variable first, as for a shell: write 'env {text}'")
    return words
