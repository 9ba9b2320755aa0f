"""What `ss` says of the receive buffers of TCP connections."""

from __future__ import annotations

import re

from entourage.hypervisors.backlog import buffer_for

SS = ("ss", "-tnmiH", "state", "established", "sport")
_CONNECTION = re.compile(r",rb(\d+),[^\n]* minrtt:([\d.]+)")


def one_is_bounded(told: str) -> bool:
    """Whether a connection has the buffer that is meant for a way as short as its own."""
    text = told.replace("\n\t", " ")
    return any(
        int(one[1]) == buffer_for(float(one[2]) / 1000) for one in _CONNECTION.finditer(text)
    )
