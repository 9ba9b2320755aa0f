"""Links to the agent of a target: its own, or a proxy agent where it has no Entourage."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from entourage.hosts import proxy_agent, ssh
from entourage.hosts.link import Link
from entourage.hosts.route import host_of
from entourage.hypervisors.registry import elsewhere
from entourage.settings.model import Settings


def agent_link(host: str, hypervisor: str, settings: Settings) -> AbstractAsyncContextManager[Link]:
    """A link to a target's own agent, or to a proxy agent; the agent ends with the context.

    Args:
        host: As ssh knows it; ``proxy_agent.THIS_HOST`` where a save is restored; of one that is
            made its directory, ``HOST:DIRECTORY`` on another host.
        hypervisor: The name of the target's.
        settings: This host's.

    Raises:
        LinkError: It cannot be started.
    """
    if host == proxy_agent.THIS_HOST:
        return proxy_agent.local_link(settings)
    there = elsewhere(hypervisor)
    if there is None:
        return ssh.start_agent(host, settings)
    if not there.is_host and (far := host_of(host)):
        return ssh.start_agent(far, settings, ["agent", "--saves"])
    return proxy_agent.proxy_link(host, settings, local=not there.is_host)
