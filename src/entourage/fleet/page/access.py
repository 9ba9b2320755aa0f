"""Who looks at the page, what they may do, and by which name the page was asked for."""

from __future__ import annotations

import grp
import hmac
import ipaddress
import os
import pwd
import re
import secrets
import time
from collections.abc import Sequence
from typing import Final

from entourage.hosts.threads import in_thread
from entourage.settings.model import FleetSettings

_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,127}\Z", re.ASCII)
_LOOPBACK: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?\Z", re.ASCII)
_TOKEN: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})\Z", re.ASCII)
_TOKEN_LIVES: Final = 12 * 3600  # seconds


class AccessError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP's.
        message: Why not.
        remedy: What to do about it.
    """

    def __init__(self, status: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.remedy = remedy


class Access:
    """The rules of one page.

    Args:
        settings: Who may act, what the page is called, which proxies are believed.
        over_unix: It listens at a unix socket: whoever may connect to that is believed.
        for_proxies: It listens beyond this host: only trusted proxies are answered.
    """

    def __init__(
        self, settings: FleetSettings, *, over_unix: bool, for_proxies: bool = False
    ) -> None:
        self._settings = settings
        self._over_unix = over_unix
        self._for_proxies = for_proxies
        self._names = {name.lower() for name in settings.names}
        self._trusted = [ipaddress.ip_network(one) for one in settings.trusted_proxies]
        self._key = secrets.token_bytes(32)

    @property
    def header(self) -> str:
        """The header that names the user, in lower case."""
        return self._settings.user_header.lower()

    def check_host(self, hosts: Sequence[str]) -> None:
        """See that a browser was told the page's own name: others may be made to lead here too.

        Args:
            hosts: The request's Host headers.

        Raises:
            AccessError: It was told another one, or several.
        """
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if host not in self._names and not _LOOPBACK.match(host):
            raise AccessError(
                421,
                "this page is not known by that name",
                "the name belongs into [fleet] names of the controller's settings",
            )

    def check_peer(self, peer: str | None) -> None:
        """See that whoever connects may; raises AccessError.

        Args:
            peer: Its address; None over a unix socket.
        """
        if self._for_proxies and not self._believed(peer):
            raise AccessError(403, "only trusted proxies are answered here", "go by the proxy")

    def user(self, peer: str | None, named: Sequence[str]) -> str:
        """Who the user is; empty where nobody says so who is believed.

        Args:
            peer: The address of whoever connects; None over a unix socket.
            named: What the headers say.

        Raises:
            AccessError: They say it twice, or what is no name.
        """
        if not named or not self._believed(peer):
            return ""
        if len(named) > 1 or not _USER.match(named[0]):
            raise AccessError(
                400, "who the user is cannot be understood", "see what the proxy sends"
            )
        return named[0]

    def _believed(self, peer: str | None) -> bool:
        if self._over_unix:
            return True
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        # A socket that listens at [::] has ::ffff:10.0.0.2 for 10.0.0.2; settings may have either.
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any(
            address in one or (mapped is not None and mapped in one) for one in self._trusted
        )

    async def may_act(self, user: str) -> bool:
        """Whether a user may do more than look."""
        if not _USER.match(user):
            return False
        if user in self._settings.may:
            return True
        groups = [name[1:] for name in self._settings.may if name.startswith("@")]
        # Names may come from a server that does not answer.
        return bool(groups) and await in_thread(_is_in, user, groups)

    def token(self, user: str) -> str:
        """What a form of this user's carries, which no other page can know."""
        until = str(int(time.time()) + _TOKEN_LIVES)
        return f"{until}.{self._sign(user, until)}"

    def check_token(self, user: str, token: str) -> None:
        """See that a form was made here for this user; raises AccessError."""
        match = _TOKEN.match(token)
        good = match is not None and hmac.compare_digest(match[2], self._sign(user, match[1]))
        if match is None or not good or int(match[1]) < time.time():
            raise AccessError(
                403,
                "the form is not one of this page as it runs now",
                "go back, load the page again, and repeat it",
            )

    def _sign(self, user: str, until: str) -> str:
        return hmac.digest(self._key, f"{until} {user}".encode(), "sha256").hex()


def check_origin(host: str, origins: Sequence[str], sites: Sequence[str]) -> None:
    """See that a form was sent by a page of this very name; raises AccessError.

    Args:
        host: The request's Host header.
        origins: Its Origin headers.
        sites: Its Sec-Fetch-Site headers.
    """
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    if any(site != "same-origin" for site in sites):
        raise AccessError(403, "another page has sent this form", "open this page itself")
    if len(origins) > 1 or any(origin.lower() not in own for origin in origins):
        raise AccessError(403, "another page has sent this form", "open this page itself")
    if not (origins or sites):
        raise AccessError(403, "what has sent this form does not say", "use a newer browser")


def _is_in(user: str, groups: Sequence[str]) -> bool:
    """Whether a user of this system is in one of its groups."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return False
    own = set(os.getgrouplist(user, entry.pw_gid))
    for name in groups:
        try:
            if grp.getgrnam(name).gr_gid in own:
                return True
        except KeyError:
            continue
    return False
