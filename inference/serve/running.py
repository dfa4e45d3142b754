"""A server from its first request to its last.

SIGINT and SIGTERM end it in order: nothing new is taken, answers that are being written have a few seconds to end by
themselves, the others are ended with a line that says why, and the port is free again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import signal
import socket
import threading
from collections.abc import Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mull.inference.serve.application import Service
from mull.inference.serve.limits import BODY_SECONDS, GRACE
from mull.inference.serve.refusals import Refused

MAX_HEAD = 32 << 10  # bytes of a request's head
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: the address is not to be had, or no address.
    """
    found: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(256)
        found.setblocking(False)
        return found
    except (OSError, OverflowError, UnicodeError) as error:
        if found is not None:
            found.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use; name another with --port, 0 for any") from None
        raise ValueError(f"{host}, port {port}, cannot be listened at ({error}); name others") from None


class Protocol(H11Protocol):
    """HTTP/1.1 with patience that ends: a connection on which no request comes whole is closed; and what is no HTTP is
    told so as everything else is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.wait()

    def wait(self) -> None:
        self.patience = self.loop.call_later(BODY_SECONDS, self.too_slow)

    def too_slow(self) -> None:
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.patience.cancel()
        self.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.patience.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        with contextlib.suppress(h11.LocalProtocolError):
            answer = Refused(f"this is no HTTP request that can be read ({msg.rstrip('.')}); send another").body
            body = json.dumps(answer).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Serves a service at a socket until it is told to end: by a signal in the main thread, or by `end`."""

    def __init__(self, service: Service, at: socket.socket) -> None:
        self.service, self.at = service, at
        config = uvicorn.Config(
            service.application(),
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=4 * service.limits.max_requests + 64,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        host, port = self.at.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Serve until the end."""
        self.service.schedule.start()
        try:
            asyncio.run(self.serve([self.at]))
        finally:
            self.service.schedule.close()
            self.at.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let a signal begin the end, where signals come; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.signalled) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def signalled(self, number: int, frame: object) -> None:
        del number, frame
        if self.service.ending:
            self.force_exit = True
        self.end()

    def end(self) -> None:
        """Begin the end, from any thread."""
        self.service.ending = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, then end them; then everything else."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        for _ in range(int(GRACE / 0.05)):
            if not self.service.metrics.in_flight or self.force_exit:
                break
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.service.schedule.close)  # what is left is told that it ends
        await super().shutdown([])
