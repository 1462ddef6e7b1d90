"""The requests of a campaign's clients, from their first byte to the server's log. No time-out of them is a race."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_provider_whisul.api.messages import Request
from airflow_provider_whisul.api.transport import Exchange
from airflow_provider_whisul.hooks.whisul import WhisulHook
from airflow_provider_whisul.hooks.whisul_async import WhisulAsyncHook
from airflow_provider_whisul.sandbox import LoggedRequest
from airflow_provider_whisul.sandbox.state import API
from tests.support.clock import VirtualLoop

#: Seconds of real time after which this machine is not slow: something is broken.
PATIENCE = 60.0

#: Seconds that the sandbox takes for a response that it holds back: longer than any test.
HELD_SECONDS = 3600.0


class NotReceived(BaseException):
    """A client has sent a request that the server never received. It is no Exception, so that no task handles it."""


@dataclass(eq=False)
class _Flight:
    """A request of a client, until the client goes on."""

    request: Request
    exchange: Exchange | None = None
    received: threading.Event = field(default_factory=threading.Event)
    held: bool = False
    #: Whether the loop's time stands still for it.
    stops_time: bool = False


class Traffic:
    """
    Keeps clients and server in step.

    No client goes on before the server has received its request. A request times out where the server holds its
    response back, and nowhere else, however slow this machine is. The loop's time stands still while a request waits
    for a response that will come.

    :param loop: The triggerer's event loop.
    :param monkeypatch: Replaces the parts of the clients that send and that time out.
    """

    def __init__(self, loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._flights: list[_Flight] = []
        self._strays: list[str] = []
        #: Whether the sandbox holds slow responses back: set by the world.
        self.holds = False
        #: Seconds of the loop's time that a response takes to the triggerer.
        self.latency = 0.0
        #: Waits until the server has closed what it will close, where it closes connections that clients keep.
        self.settle: Callable[[], None] = lambda: None
        #: How many requests have been sent.
        self.sent = 0
        exchange, exchange_async, post_init = WhisulHook._exchange, WhisulAsyncHook._exchange, Exchange.__post_init__

        def send(hook: WhisulHook, request: Request) -> Any:
            flight = self._depart(_Flight(request))
            try:
                return exchange(hook, request)
            finally:
                self._end(flight)

        async def send_async(hook: WhisulAsyncHook, shared: Any, settings: Any, request: Request) -> Any:
            flight = self._depart(_Flight(request, stops_time=True))
            loop.virtual.threads += 1
            try:
                response = await exchange_async(hook, shared, settings, request)
                self._let_time_pass(flight)
                await asyncio.sleep(self.latency)
                return response
            finally:
                self._let_time_pass(flight)
                self._end(flight)

        def begin(this: Exchange) -> None:
            post_init(this)
            self._flight_of(this.request).exchange = this

        def remaining(this: Exchange) -> float:
            # Before the first byte the client connects. After it, it waits for the response.
            if not this.sent:
                return PATIENCE
            flight = self._flight_of(this.request)
            self._await(flight)
            return 0.001 if flight.held else PATIENCE

        monkeypatch.setattr(WhisulHook, "_exchange", send)
        monkeypatch.setattr(WhisulAsyncHook, "_exchange", send_async)
        monkeypatch.setattr(Exchange, "__post_init__", begin)
        monkeypatch.setattr(Exchange, "remaining", remaining)

    def on_request(self, entry: LoggedRequest) -> None:
        """Take note of what the sandbox has logged. Called in the sandbox's thread, before it responds."""
        self.on_received(entry.method, entry.path, held=self._is_held(entry))

    def as_met(self, entry: LoggedRequest) -> LoggedRequest:
        """Return a request as its client has met it: without a status, where the response was held back."""
        return replace(entry, status=None) if self._is_held(entry) else entry

    def _is_held(self, entry: LoggedRequest) -> bool:
        return self.holds and (entry.fault or "").endswith("-slow")

    def on_received(self, method: str, path: str, *, held: bool = False) -> None:
        """
        Take note of a request that a server has received, before it responds.

        :param method: Its method.
        :param path: Its path.
        :param held: Whether its response is held back.
        """
        sent = (method, unquote(path.removeprefix(API)))
        with self._lock:
            for flight in self._flights:
                is_it = (flight.request.method, unquote(flight.request.path)) == sent
                if is_it and not flight.received.is_set():
                    flight.held = held
                    flight.received.set()
                    break
            else:
                self._strays.append(" ".join(sent))
                return
        if held and flight.stops_time:
            self._loop.call_soon_threadsafe(self._let_time_pass, flight)

    def check(self, logged: int) -> None:
        """
        Raise an ``AssertionError`` unless the server has received each request once.

        :param logged: How many requests the server, or one server after the other, has logged.
        """
        with self._lock:
            assert not self._strays, f"the server received what no client was sending: {self._strays}"
            assert not self._flights, f"still being sent: {self._flights}"
            assert self.sent == logged, f"{self.sent} requests were sent, {logged} are logged"

    def _depart(self, flight: _Flight) -> _Flight:
        with self._lock:
            self._flights.append(flight)
        return flight

    def _end(self, flight: _Flight) -> None:
        if flight.exchange is not None and flight.exchange.sent:
            self.sent += 1
            self._await(flight)
        self.settle()
        with self._lock:
            self._flights.remove(flight)

    def _flight_of(self, request: Request) -> _Flight:
        with self._lock:
            return next(flight for flight in self._flights if flight.request is request)

    def _await(self, flight: _Flight) -> None:
        if not flight.received.wait(PATIENCE):
            raise NotReceived(f"{flight.request.method} {flight.request.path} was sent {PATIENCE:.0f} s ago")

    def _let_time_pass(self, flight: _Flight) -> None:
        if flight.stops_time:
            flight.stops_time = False
            self._loop.virtual.threads -= 1
