"""The page's addresses, and what answers each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast
from urllib.parse import parse_qs, quote

import jinja2
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from entourage.errors import EntourageError, UsageError, ours
from entourage.fleet.page import metrics
from entourage.fleet.page.access import Access, AccessError
from entourage.fleet.page.actions import ACTIONS, Actions
from entourage.fleet.page.guard import Guard
from entourage.fleet.page.rooms import Rooms
from entourage.fleet.page.views import COLUMNS, LINES, ROWS, Shown, Views
from entourage.fleet.records import Records
from entourage.fleet.shown import STATUSES
from entourage.fleet.store import Store
from entourage.fleet.values import Status
from entourage.hosts.threads import in_thread
from entourage.report.text import clean, duration, size
from entourage.version import __version__

HERE: Final = Path(__file__).parent
STREAMS: Final = 64
"""So many browsers are told of changes at once; more of them load the page again themselves."""
HOSTS: Final = 50
"""Hosts on one page."""
_READ_AT_ONCE: Final = 4
_LOOK_EVERY: Final = 1.0  # seconds
_SPEAK_EVERY: Final = 15.0  # seconds: a proxy ends what is silent
_FAR: Final = 10_000_000
_FIELDS: Final = 8  # of a form
Found = TypeVar("Found")
Parameters = ParamSpec("Parameters")


class Page:
    """Answers browsers, and Prometheus.

    Args:
        store: The campaigns.
        rooms: What hosts say.
        names: The fleet's hosts.
        actions: What a user may do.
        access: Who may.
        note: Is told of a bug.
    """

    def __init__(
        self,
        store: Store,
        rooms: Rooms,
        names: Sequence[str],
        actions: Actions,
        access: Access,
        *,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._note = note
        self._store, self._rooms, self._names = store, rooms, names
        self._actions, self._access = actions, access
        self._views = Views(store, Records(store.engine))
        self._streams = 0
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)
        self._over = asyncio.Event()
        self._templates = _templates()

    def app(self) -> ASGIApp:
        """What a server runs."""
        static = StaticFiles(directory=HERE / "static")
        routes = [
            Route("/", self._told(self._campaigns)),
            Route("/hosts", self._told(self._hosts)),
            Route("/campaigns/{name}", self._told(self._campaign)),
            Route("/campaigns/{name}/live", self._told(self._live)),
            Route("/campaigns/{name}/plan", self._told(self._plan)),
            Route("/campaigns/{name}/{action}", self._told(self._act), methods=["POST"]),
            Route("/domains/{uuid}", self._told(self._domain)),
            Route("/metrics", self._told(self._metrics)),
            Mount("/static", static),
        ]
        handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            HTTPException: self._unknown
        }
        inner = Starlette(routes=routes, exception_handlers=cast("Any", handlers))
        return Guard(inner, self._access, self._refused)

    def close(self) -> None:
        """Tell browsers of no more changes: a server waits for its connections."""
        self._over.set()

    # Pages

    async def _campaigns(self, request: Request) -> Response:
        return await self._page(request, "campaigns.html", await self._read(self._views.campaigns))

    async def _hosts(self, request: Request) -> Response:
        first = _number(request, "first")
        rooms, names = self._rooms.known(), self._names[first : first + HOSTS]
        counts = {
            "hosts": len(self._names),
            "cordoned": sum(bool(one.room and one.room.cordons) for one in rooms.values()),
            "silent": sum(one.room is None for one in rooms.values()),
            "asking": self._rooms.is_asking,
        }
        shown = [(name, rooms.get(name)) for name in names]
        pages = {"first": first, "most": HOSTS, "now": time.time()}
        return await self._page(request, "hosts.html", {"shown": shown, **counts, **pages})

    async def _campaign(self, request: Request) -> Response:
        name, status, first = _which(request)
        shown = await self._read(self._views.campaign, name, status, first)
        around = await self._read(self._views.around, name)
        more = await self._rights(request)
        return await self._page(
            request,
            "campaign.html",
            {"shown": shown, "status": status, "first": first, "most": LINES, **around, **more},
        )

    async def _live(self, request: Request) -> Response:
        name, status, first = _which(request)
        await self._read(self._views.campaign, name, status, first)  # raises where there is none
        if self._streams >= STREAMS:
            raise AccessError(503, "too many browsers watch already", "close some of them")
        rights = await self._rights(request)

        def parts() -> tuple[Shown, dict[str, str]]:
            shown = self._views.campaign(name, status, first)
            more = {"shown": shown, "status": status, "first": first, "most": LINES, **rights}
            return shown, {
                part: self._templates.get_template(f"_{part}.html").render(more)
                for part in ("state", "controls")
            }

        events = self._events(parts)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(
        self, parts: Callable[[], tuple[Shown, dict[str, str]]]
    ) -> AsyncGenerator[str]:
        """What has changed, once a second, until the campaign is over."""
        self._streams += 1
        try:
            last: dict[str, str] = {}
            spoken = time.monotonic()
            while not self._over.is_set():
                shown, new = await self._read(parts)
                for part, html in new.items():
                    if last.get(part) != html:
                        last[part] = html
                        spoken = time.monotonic()
                        yield _event(part, html)
                if shown.summary.is_over:
                    yield _event("over", "")
                    return
                if time.monotonic() - spoken >= _SPEAK_EVERY:
                    spoken = time.monotonic()
                    yield ":\n\n"
                try:
                    await asyncio.wait_for(self._over.wait(), _LOOK_EVERY)
                except TimeoutError:
                    continue
        except EntourageError:  # the database may come back: browsers ask again
            return
        finally:
            self._streams -= 1

    async def _plan(self, request: Request) -> Response:
        name = request.path_params["name"]
        row, column = _number(request, "row"), _number(request, "column")
        found = await self._read(self._views.plan, name, row, column)
        more = {"name": name, "rows_most": ROWS, "columns_most": COLUMNS}
        return await self._page(request, "plan.html", {**found, **more})

    async def _domain(self, request: Request) -> Response:
        uuid = request.path_params["uuid"]
        found = await self._read(self._views.domain, uuid)
        here = [
            (host, one.name)
            for host, answer in self._rooms.known().items()
            if answer.room is not None
            for one in answer.room.domains
            if one.uuid == uuid
        ]
        if not (found["moves"] or found["attempts"] or here):
            raise HTTPException(404)
        names = [found["name"], *(name for _, name in here), uuid]
        found["name"] = next(name for name in names if name)
        found["runs_on"] = [host for host, _ in here]
        return await self._page(request, "domain.html", found)

    async def _metrics(self, request: Request) -> Response:
        del request
        rooms = dict(self._rooms.known())
        text = await in_thread(metrics.exposed, self._store.engine, time.time(), self._names, rooms)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _act(self, request: Request) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        if action not in ACTIONS:
            raise HTTPException(404)
        user: str = request.state.user
        if not await self._access.may_act(user):
            who = user or "whom no proxy names"
            raise AccessError(
                403, f"{who} may only look", "[fleet] may in the controller's settings says who may"
            )
        try:
            form = parse_qs((await request.body()).decode("latin-1"), max_num_fields=_FIELDS)
        except ValueError:
            raise AccessError(400, "the form cannot be understood", "use this page's own") from None
        self._access.check_token(user, form.get("token", [""])[0])
        await self._actions.do(name, action, user)
        return RedirectResponse(f"/campaigns/{_segment(name)}", status_code=303)

    # Answers

    async def _read(
        self, what: Callable[Parameters, Found], *args: Parameters.args, **named: Parameters.kwargs
    ) -> Found:
        """Read the database, with a few others: the campaigns' own connections are not to wait."""
        async with self._reading:
            return await in_thread(what, *args, **named)

    def _told(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """With errors of ours as pages."""

        async def told(request: Request) -> Response:
            try:
                return await answer(request)
            except AccessError as error:
                return self._problem(request, error.status, error.message, error.remedy)
            except UsageError as error:
                status = 404 if request.method == "GET" else 409
                return self._problem(request, status, error.message, error.remedy)
            except EntourageError as error:
                return self._problem(request, 503, error.message, error.remedy)
            except HTTPException:
                raise
            except ClientDisconnect:  # before its form was here: nobody is there to be told
                return Response(status_code=400)
            except Exception as error:  # noqa: BLE001 - a bug of one page ends no campaign
                self._note(f"the page {request.url.path}: {ours(error)}")
                return self._problem(request, 500, "this is a bug of the page", "")

        return told

    async def _rights(self, request: Request) -> dict[str, Any]:
        user: str = request.state.user
        may = await self._access.may_act(user)
        return {"may": may, "token": self._access.token(user) if may else ""}

    async def _page(self, request: Request, template: str, what: Mapping[str, Any]) -> Response:
        more = {"user": request.state.user, "path": request.url.path, "version": __version__}
        return HTMLResponse(self._templates.get_template(template).render({**what, **more}))

    def _problem(self, request: Request, status: int, message: str, remedy: str) -> Response:
        what = {
            "message": message, "remedy": remedy, "user": request.state.user,
            "path": "", "version": __version__,
        }  # fmt: skip
        html = self._templates.get_template("problem.html").render(what)
        return HTMLResponse(html, status_code=status)

    async def _unknown(self, request: Request, error: HTTPException) -> Response:
        message = "there is nothing here" if error.status_code == 404 else error.detail  # noqa: PLR2004
        return self._problem(request, error.status_code, message, "")

    def _refused(self, scope: Scope, error: AccessError) -> ASGIApp:
        return self._problem(Request(scope), error.status, error.message, error.remedy)


def _templates() -> jinja2.Environment:
    """Whatever is put into one is escaped, and has nothing in it that turns text around."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"size": size, "span": duration, "when": _when, "ago": _ago, "segment": _segment}
    cast("dict[str, Any]", made.filters).update(filters)
    cast("dict[str, Any]", made.globals)["STATUSES"] = STATUSES
    return made


def _finalize(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _segment(text: str) -> str:
    """As a part of an address."""
    return quote(text, safe="")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _ago(at: float, now: float) -> str:
    return f"{duration(max(1, round(now - at)))} ago"


def _event(kind: str, text: str) -> str:
    """One of a stream of events; lines of a text end with a line feed alone."""
    lines = text.replace("\r", "").split("\n")
    return f"event: {kind}\n" + "".join(f"data: {line}\n" for line in lines) + "\n"


def _which(request: Request) -> tuple[str, Status | None, int]:
    """A campaign, and which of its domains."""
    status = request.query_params.get("status", "")
    known = cast("Status", status) if status in STATUSES else None
    return request.path_params["name"], known, _number(request, "first")


def _number(request: Request, key: str) -> int:
    """A number of the address; 0 where it is none."""
    text = request.query_params.get(key, "")
    return min(int(text), _FAR) if text.isascii() and text.isdigit() and len(text) < 9 else 0  # noqa: PLR2004
