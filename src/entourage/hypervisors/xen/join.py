"""The far end of an ssh that carries a stream: gives its ends to the agent, and waits for it.

``entourage agent --join SOCKET WHAT`` is run by ssh on the target. Standard input and output go to
the agent over its unix socket; this process only stays, because sshd closes them when it ends.
Standard input begins with the secret of the migration, which the agent reads.
"""

from __future__ import annotations

import array
import socket
import sys

from entourage.errors import plain_words

REFUSED = b"-"
"""The agent's answer to a stream that does not begin with the secret."""


def join(path: str, what: str) -> int:
    """Hand over standard input and output, and return when the agent has done with them.

    Args:
        path: The agent's socket.
        what: What the stream is: ``memory``, or ``disk ID``.
    """
    with socket.socket(socket.AF_UNIX) as agent:
        try:
            agent.connect(path)
            ends = array.array("i", (0, 1))
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)]
            agent.sendmsg([what.encode() + b"\n"], ancillary)
            if agent.recv(1) == REFUSED:
                sys.stderr.write("entourage: the agent takes no such stream from here\n")
                return 1
        except OSError as error:
            sys.stderr.write(
                f"entourage: the agent does not take the stream: {plain_words(error)}\n"
            )
            return 1
    return 0
