"""What every request passes before a page sees it, and what every answer says to the browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from entourage.fleet.page.access import Access, AccessError, check_origin

FORM: Final = 4096
"""Bytes of a form at most."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    # With no-referrer a browser would not say where a form comes from (Origin: null).
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Embedder-Policy", "require-corp"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
_NO_STORE: Final = (b"cache-control", b"no-store")
Refuse = Callable[[Scope, AccessError], ASGIApp]


class Guard:
    """Refuses what is not to be answered, and adds headers to all that is.

    Args:
        app: What answers.
        access: The rules.
        refuse: Makes the answer to what is refused.
    """

    def __init__(self, app: ASGIApp, access: Access, refuse: Refuse) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        scope["state"]["user"] = ""
        app = self._app
        try:
            self._check(scope)
        except AccessError as error:
            app = self._refuse(scope, error)
        await app(scope, receive, _with_headers(send))

    def _check(self, scope: Scope) -> None:
        client = scope.get("client")
        peer: str | None = client[0] if client else None
        hosts = _values(scope, "host")
        self._access.check_host(hosts)
        self._access.check_peer(peer)
        scope["state"]["user"] = self._access.user(peer, _values(scope, self._access.header))
        if scope["method"] in {"GET", "HEAD"}:
            return
        if scope["method"] != "POST":
            raise AccessError(405, f"{scope['method']} is not understood here")
        check_origin(hosts[0], _values(scope, "origin"), _values(scope, "sec-fetch-site"))
        lengths = _values(scope, "content-length")
        length = lengths[0] if len(lengths) == 1 else ""
        if not (length.isascii() and length.isdigit()):
            raise AccessError(411, "a form says how long it is")
        if len(length) > 6 or int(length) > FORM:  # noqa: PLR2004 - digits that int() may have
            raise AccessError(413, "no form is so long")


def _values(scope: Scope, name: str) -> Sequence[str]:
    wanted = name.encode("ascii")
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            headers += [(key.lower().encode(), value.encode()) for key, value in HEADERS]
            if not any(key == b"cache-control" for key, _ in headers):
                headers.append(_NO_STORE)
            message = {**message, "headers": headers}
        await send(message)

    return sent
