"""From the engine to those who look on: held back while the guest stands still, then passed on."""

from __future__ import annotations

from entourage.events import AnyEvent, CopyProgress, Finished, GuestResumed, GuestStopped, Listener


class Stream:
    """The one listener of a migration, which passes every event on to all others, in order.

    Between the guest's stop and its resume an event costs one ``list.append``: whoever draws or
    writes hears of it afterwards. A listener that fails is left out from there on, because
    nobody's display is worth a migration.

    Args:
        listeners: Who looks on.
        hold: False passes everything on at once, for a migration that is not live: there the guest
            stands still for minutes anyway, and somebody wants to see why.

    Attributes:
        failures: What listeners that were left out had raised.
    """

    def __init__(self, *listeners: Listener, hold: bool = True) -> None:
        self._listeners = list(listeners)
        self.hold = hold
        self._held: list[AnyEvent] | None = None
        self.failures: list[Exception] = []

    @property
    def held(self) -> bool:
        """True while the guest stands still: nobody draws now."""
        return self._held is not None

    def __call__(self, event: AnyEvent) -> None:
        """Take one event."""
        if self._held is not None:
            self._held.append(event)
            if isinstance(event, GuestResumed | Finished):
                self.release()
        elif self.hold and isinstance(event, GuestStopped):
            self._held = [event]
        else:
            self._pass_on(event)

    def release(self) -> None:
        """Pass on what was held back."""
        held, self._held = self._held or [], None
        for event in held:
            self._pass_on(event)

    def _pass_on(self, event: AnyEvent) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - a bug in a display must not end a migration
                self._listeners.remove(listener)
                self.failures.append(error)


class Recorder:
    """Keeps the events for the report at the end; of each copy's progress only the newest."""

    def __init__(self) -> None:
        self._events: list[AnyEvent] = []
        self._copies: dict[str, int] = {}

    def __call__(self, event: AnyEvent) -> None:
        """Take one event."""
        if isinstance(event, CopyProgress):
            if (place := self._copies.get(event.what)) is not None:
                self._events[place] = event
                return
            self._copies[event.what] = len(self._events)
        self._events.append(event)

    @property
    def events(self) -> tuple[AnyEvent, ...]:
        """What happened so far."""
        return tuple(self._events)

    @property
    def finished(self) -> Finished | None:
        """The last event, where it has come."""
        last = self._events[-1] if self._events else None
        return last if isinstance(last, Finished) else None
