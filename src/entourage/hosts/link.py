"""The link between two hosts: frames, calls, one-way messages and heartbeats over two byte streams.

Both ends may call; answers may come in any order. A frame that is too long, malformed or of an
unknown kind ends the link, since nothing after it can be trusted. Neither memory, disks nor TPM
state ever travel here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, overload

import msgspec

from entourage.errors import EntourageError, LinkError, LinkLost, plain_words, what_to_do
from entourage.hosts.frames import (
    MAX_FRAME,
    Answer,
    Beat,
    Call,
    Fault,
    Frame,
    Notice,
    Question,
    Reply,
    Request,
    Tell,
    decoder,
    encoder,
    revived,
    taken,
)
from entourage.settings.textfile import printable

Handler = Callable[[Any], Awaitable[Any]]

_log = logging.getLogger(__name__)
# Bytes of what is being handled at which no more is read, and of what nobody takes at which the
# link ends: what a peer sends must not cost this host its memory.
_MOST_AT_ONCE, _MOST_UNREAD = 8 << 20, 32 << 20
# What a login shell prints before it runs the agent is passed over: no more bytes than this.
_MOST_NOISE = 64 << 10
_BEAT_EVERY = 0.5  # seconds
SILENT = 1.2
"""Seconds without a word after which nobody at a prompt waits for the other end any more."""
_QUOTED = 120  # characters of it that are shown


class Link:
    """One end of a link. Run ``serve()`` in a task for as long as the link is to live.

    Args:
        reader: Where frames come from.
        writer: Where they go.
        peer: The other host's name, for messages.
        silence: Seconds without a frame after which the link is lost.
        first_word: The same before the first one, where that may take longer.
        last_words: Asked when the other end went away: what it said about it, as an error.
        noisy: A shell may have printed something before the other end began to speak.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        peer: str,
        silence: float,
        first_word: float | None = None,
        last_words: Callable[[], Awaitable[LinkLost]] | None = None,
        noisy: bool = False,
    ) -> None:
        self.peer = peer
        self.silence = silence
        self._patience = silence if first_word is None else first_word
        self._last_words = last_words
        self._noisy = noisy
        self._noise = bytearray()
        self._reader = reader
        self._writer = writer
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._heard = time.monotonic()
        self._heard_stamp = 0
        self._asked = self._heard
        self._lost: asyncio.Future[LinkLost] = asyncio.get_running_loop().create_future()
        self._running: set[asyncio.Task[None]] = set()
        self._at_once = 0
        self._less = asyncio.Event()

    @overload
    def on(
        self, kind: Question[Request, Reply], handler: Callable[[Request], Awaitable[Reply]]
    ) -> None: ...

    @overload
    def on(self, kind: Notice[Request], handler: Callable[[Request], Awaitable[None]]) -> None: ...

    def on(self, kind: Question[Any, Any] | Notice[Any], handler: Handler) -> None:
        """Answer such calls, or take such one-way messages, with ``handler``."""

        async def take(body: Any) -> Any:
            return await handler(taken(body, kind.request))

        self._handlers[kind.name] = take

    def take_handlers_of(self, other: Link) -> None:
        """Use the handlers of another link, which this one replaces."""
        self._handlers.update(other._handlers)

    @property
    def alive(self) -> bool:
        """False once the link is lost or closed."""
        return not self._lost.done()

    @property
    def quiet(self) -> float:
        """Seconds since something was last heard: heartbeats come twice a second, or more often."""
        return time.monotonic() - self._heard

    @property
    def unasked(self) -> float:
        """Seconds since the other end last asked for anything; 0 while it waits for an answer."""
        return 0.0 if self._running else time.monotonic() - self._asked

    async def lost(self) -> LinkLost:
        """Returns when the link is lost, with the reason; never before."""
        return await asyncio.shield(self._lost)

    def tell(self, kind: Notice[Request], body: Request) -> None:
        """Send a one-way message; handed to the kernel when this returns, if it has room."""
        self._send(Tell(kind.name, body))

    async def call(self, kind: Question[Request, Reply], body: Request) -> Reply:
        """Ask the other end and return its answer.

        Raises:
            LinkLost: The link went away before the answer came.
            EntourageError: What the other end raised, of the same class.
            LinkError: The answer is not what was asked for.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(Call(number, kind.name, body))
            answer = await future
        finally:
            self._waiting.pop(number, None)
        try:
            return msgspec.convert(answer, kind.reply)
        except msgspec.ValidationError as error:
            raise LinkError(
                f"the answer to {kind.name!r} is not understood: {error}", host=self.peer
            ) from error

    async def serve(self) -> None:
        """Take frames until the link is lost or closed; then wake everybody who waits."""
        beats = asyncio.create_task(self._beat())
        reason, said = "it was closed", LinkLost("")
        try:
            header = await self._first_header()
            while True:
                length = int.from_bytes(header, "big")
                if length > MAX_FRAME:
                    reason = f"a frame of {length} bytes is not ours"
                    break
                while self._at_once and self._at_once + length > _MOST_AT_ONCE:
                    self._less.clear()
                    await self._less.wait()
                frame = decoder.decode(await self._reader.readexactly(length))
                self._heard, self._patience = time.monotonic(), self.silence
                if self.alive:  # else it was closed: whoever would act on this has gone
                    self._take(frame, length)
                header = await self._reader.readexactly(4)
        except asyncio.IncompleteReadError as error:
            reason = f"the other end went away{self._printed()}"
            if error.partial:
                reason += " in the middle of a frame"
            if self._last_words:
                said = await self._last_words()
                reason = f"{reason}: {said.message}" if said.message else reason
        except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
            reason = f"what came over it is not ours: {error}"
        except (OSError, LinkLost) as error:
            reason = plain_words(error)
        finally:
            beats.cancel()
            self.close(reason, said)

    async def _first_header(self) -> bytes:
        """The length of the first frame, which begins with a zero, as no text that is printed does.

        Raises:
            ValueError: What comes before it has no end.
        """
        header = await self._reader.readexactly(1)
        while self._noisy and header != b"\0":
            self._noise += header
            if len(self._noise) > _MOST_NOISE:
                raise ValueError(f"no Entourage speaks there{self._printed()}")
            header = await self._reader.readexactly(1)
        header += await self._reader.readexactly(3)
        self._noise.clear()  # it was harmless, and is no reason of what may come
        return header

    def _printed(self) -> str:
        """What a shell printed instead, for people; empty where it printed nothing."""
        said = " ".join(self._noise.decode(errors="replace").split())
        if not said:
            return ""
        said = printable(said if len(said) <= _QUOTED else f"{said[:_QUOTED]}…")
        return f"; the shell there printed {said!r} (see its start-up files, as ~/.bashrc)"

    def close(self, reason: str = "it was closed", said: LinkLost | None = None) -> None:
        """End the link; everybody who waits for an answer gets LinkLost.

        Args:
            reason: Why.
            said: The other end's last words, which give the error its kind and remedy.
        """
        if not self._lost.done():
            kind, remedy = (type(said), said.remedy) if said else (LinkLost, "")
            self._lost.set_result(kind(f"link lost: {reason}", host=self.peer, remedy=remedy))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost.result())
                future.exception()  # retrieved: whoever was cancelled meanwhile does not ask
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    async def settle(self) -> None:
        """Wait for the calls that are being answered."""
        if self._running:
            await asyncio.wait(self._running)

    def _send(self, frame: Frame) -> None:
        if self._lost.done():
            raise self._lost.result()
        data = encoder.encode(frame)
        if self._writer.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.close("the other end reads nothing of what it is told")
            raise self._lost.result()
        try:
            self._writer.write(len(data).to_bytes(4, "big") + data)
        except (OSError, RuntimeError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> LinkLost:
        remedy = what_to_do(error)
        return LinkLost(f"link lost: {plain_words(error)}", host=self.peer, remedy=remedy)

    def _take(self, frame: Frame, length: int) -> None:
        match frame:
            case Beat():
                self._heard_stamp = frame.sent
            case Answer():
                future = self._waiting.get(frame.number)
                if future and not future.done():
                    future.set_result(frame.body)
            case Fault():
                future = self._waiting.get(frame.number)
                if future and not future.done():
                    future.set_exception(revived(frame, self.peer))
            case Call() | Tell():
                task = asyncio.create_task(self._handle(frame))
                self._running.add(task)
                self._at_once += length
                task.add_done_callback(lambda done: self._done(done, length))

    def _done(self, task: asyncio.Task[None], length: int) -> None:
        self._running.discard(task)
        self._asked = time.monotonic()
        self._at_once -= length
        self._less.set()

    async def _handle(self, frame: Call | Tell) -> None:
        handler = self._handlers.get(frame.verb, _unknown)
        try:
            answer = await handler(frame.body)
        except EntourageError as error:
            fault = (type(error).__name__, error.message, error.device, error.host, error.remedy)
        except OSError as error:
            fault = ("EntourageError", plain_words(error), "", "", what_to_do(error))
        except ValueError as error:
            fault = ("LinkError", f"{frame.verb}: {error}", "", "", "")
        except Exception as error:  # noqa: BLE001 - a bug here must not leave the peer waiting
            fault = ("LinkError", f"{frame.verb}: internal error {error!r}", "", "", "")
        else:
            if isinstance(frame, Call):
                with contextlib.suppress(LinkLost):
                    self._send(Answer(frame.number, answer))
            return
        if isinstance(frame, Call):
            with contextlib.suppress(LinkLost):
                self._send(Fault(frame.number, *fault))
        else:  # nobody waits for an answer: on the target, ssh carries it to the source
            _log.error("%s", printable(f"{frame.verb} failed: {fault[1]}"))

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(LinkLost):
                self._send(Beat(time.monotonic_ns(), self._heard_stamp))
            await asyncio.sleep(min(_BEAT_EVERY, self.silence / 4))
            silent = time.monotonic() - self._heard
            if silent > self._patience:
                self.close(f"nothing was heard for {silent:.1f} s")


async def _unknown(_: Any) -> Any:
    raise LinkError("this is not something that this host is asked", remedy="the same version?")
