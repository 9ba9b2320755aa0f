"""Speaks to the agent of another host as a source would that is none; run on a lab host.

``python -m tests.e2e.attacker HOST COMMAND`` reads ``[name, body]`` from each line of its standard
input, calls that, and answers with a line each: ``{"reply": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from entourage.errors import EntourageError
from entourage.hosts.link import Question
from entourage.hosts.ssh import start_agent
from entourage.settings.model import Settings, SshSettings


async def _attack(host: str, command: str) -> None:
    async with start_agent(host, Settings(ssh=SshSettings(remote_command=command))) as link:
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, body = json.loads(line)
            answer: dict[str, Any]
            try:
                answer = {"reply": await link.call(Question(name, object, object), body)}
            except EntourageError as error:
                answer = {"error": str(error)}
            sys.stdout.write(json.dumps(answer, default=str) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_attack(*sys.argv[1:]))
